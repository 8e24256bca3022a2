"""The update gate: old and new are compared side by side, and only a better one is kept."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import engines, errors, nn, optim
from textautograd.data import Example
from textautograd.engines import Request, Scripted


def with_gradient(text: str = "old", name: str = "x") -> nn.Parameter:
    parameter = nn.Parameter(text, name=name)
    parameter.grad = ta.Gradient([ta.Feedback("be better", inputs={"q": "why?"}, output="wrong")])
    return parameter


def proposing(*texts: str) -> Scripted:
    """Proposes these texts, one per call, whatever it is asked."""
    left = iter(texts)
    return Scripted(lambda request: json.dumps({"prompt": next(left)}))


def drawing(*texts: str) -> Scripted:
    """The candidates' texts, by the number of the draw."""
    return Scripted(lambda request: json.dumps({"prompt": texts[request.sample % 1000]}))


def test_the_closure_runs_once_per_state_all_at_once() -> None:
    x, y = with_gradient(), nn.Parameter("untouched", name="y")
    together, seen = threading.Barrier(4), []

    def closure() -> float:
        together.wait(60)
        seen.append((x.data, str(x), y.data, threading.current_thread()))
        assert not ta.is_grad_enabled()
        together.wait(60)
        return {"old": 0.5, "new 0": 0.4, "new 1": 0.2, "new 2": 0.3}[x.data]

    engine = drawing("new 0", "new 1", "new 2")
    result = optim.SGD([x, y], engine=engine, candidates=3).step(closure)
    assert sorted(row[:3] for row in seen) == [
        (text, text, "untouched") for text in ("new 0", "new 1", "new 2", "old")
    ]
    assert len({row[3] for row in seen} | {threading.current_thread()}) == 5
    assert (result.accepted, result.before, result.after) == (True, 0.5, 0.2)
    assert [c.loss for c in result.candidates] == [0.4, 0.2, 0.3]
    assert result.changes == {"x": ("old", "new 1")} and x.data == "new 1"
    assert ta.is_grad_enabled()


@given(
    st.sampled_from([0.0, 0.25, 0.5, 1.0, float("inf")]),
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, float("inf")]), min_size=1, max_size=4),
)
def test_the_best_is_kept_only_if_strictly_lower(before: float, losses: list[float]) -> None:
    x = with_gradient()
    texts = [f"new {i}" for i in range(len(losses))]
    engine = proposing(*texts) if len(losses) == 1 else drawing(*texts)
    result = optim.SGD([x], engine=engine, candidates=len(losses)).step(
        lambda: {"old": before, **dict(zip(texts, losses, strict=True))}[x.data]
    )
    best = min(losses)
    assert result.before == before
    if best < before:
        assert result.accepted and result.after == best
        assert x.data == texts[losses.index(best)]
    else:
        assert not result.accepted and result.after == before and result.changes == {}
        assert x.data == "old"


def test_the_state_dict_of_a_module_reads_as_the_candidates() -> None:
    module = nn.ModuleDict({"a": nn.LLM("old a"), "b": nn.LLM("old b")})
    first, _ = module.parameters()
    first.grad = ta.Gradient(["be better"])
    states = []

    def closure() -> float:
        states.append(module.state_dict())
        return 1.0

    optim.SGD(module.parameters(), engine=proposing("new a")).step(closure)
    assert sorted(states, key=str) == [
        {"a.instruction": "new a", "b.instruction": "old b"},
        {"a.instruction": "old a", "b.instruction": "old b"},
    ]


def test_the_modules_calls_use_the_candidates_text() -> None:
    model = Scripted(lambda r: r.messages[0]["content"])
    module = nn.LLM("old").to(model)
    module.instruction.grad = ta.Gradient(["be better"])
    loss = nn.ExactMatchLoss()
    result = optim.SGD(module.parameters(), engine=proposing("new")).step(
        lambda: loss(module("why?"), "new").item()
    )
    assert result.accepted and (result.before, result.after) == (1.0, 0.0)


def test_threads_that_map_starts_see_the_candidate() -> None:
    x = with_gradient()
    seen = []

    def closure() -> float:
        read = ta.map(lambda _: x.data, range(3))
        assert set(read) == {x.data}
        seen.append(read[0])
        return float(x.data == "old")

    assert optim.SGD([x], engine=proposing("new")).step(closure).accepted
    assert sorted(seen) == ["new", "old"]


def test_evaluate_in_a_closure_sees_the_candidate() -> None:
    module = nn.LLM("old").to(Scripted(lambda r: r.messages[0]["content"]))
    module.instruction.grad = ta.Gradient(["be better"])
    val = [ta.data.Example("why?", "new"), ta.data.Example("how?", "other")]
    result = optim.SGD(module.parameters(), engine=proposing("new")).step(
        lambda: ta.evaluate(module, val, nn.ExactMatchLoss()).loss
    )
    assert (result.before, result.after) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("old_fails", "new_fails", "accepted"),
    [("", "ab", False), ("a", "ab", False), ("a", "a", True), ("ab", "a", True), ("", "", True)],
)
def test_a_candidate_that_leaves_out_more_samples_is_no_better(
    old_fails: str, new_fails: str, accepted: bool
) -> None:
    """Without a, b the candidate has no loss at all, as c is right: so it must not count alone."""

    def reply(request: Request) -> str:
        instruction, asked = (m["content"] for m in request.messages)
        is_new = "new" in instruction
        question = next(q for q in "abcd" if f"{q}?" in asked)
        if question in (new_fails if is_new else old_fails):
            raise errors.ServerError("down")
        return "right" if question == "c" or (is_new and question == "d") else "wrong"

    agent = nn.LLM("old").to(Scripted(reply))
    agent.instruction.grad = ta.Gradient([ta.Feedback("be better", output="wrong")])
    module = Asked(agent)
    examples = [ta.data.Example(f"{q}?", "right") for q in "abcd"]
    optimizer = optim.SGD(module.parameters(), engine=proposing("new"))
    result = optimizer.step(lambda: ta.evaluate(module, examples, nn.ExactMatchLoss()).loss)
    assert result.accepted == accepted
    if not accepted:
        assert f"{len(new_fails)} samples failed" in str(result.candidates[0].error)


LOSSES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, None]), min_size=4, max_size=4)


@given(LOSSES.filter(lambda losses: losses != [None] * 4), st.lists(LOSSES, min_size=1, max_size=3))
def test_states_are_never_compared_over_different_samples(
    old: list[float | None], candidates: list[list[float | None]]
) -> None:
    tables = {"old": old, **{f"new {i}": losses for i, losses in enumerate(candidates)}}
    x = with_gradient()

    class Reads(nn.Module):
        def forward(self, question: str) -> str:
            return f"{x.data}/{question}"

    def score(output: str, target: str) -> tuple[float, str]:
        state, index = output.split("/")
        loss = tables[state][int(index)]
        if loss is None:
            raise errors.ServerError("500")
        return loss, "so"

    examples = [ta.data.Example(str(i), "x") for i in range(4)]
    texts = list(tables)[1:]
    engine = proposing(*texts) if len(texts) == 1 else drawing(*texts)
    result = optim.SGD([x], engine=engine, candidates=len(texts)).step(
        lambda: ta.evaluate(Reads(), examples, nn.FunctionLoss(score)).loss
    )
    gains = {}
    for text, new in zip(texts, candidates, strict=True):
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a is not None and b is not None]
        if pairs and new.count(None) <= old.count(None):
            gains[text] = sum(b - a for a, b in pairs) / len(pairs)
        elif not pairs and 0 < new.count(None) <= old.count(None):
            said = next(c.error for c in result.candidates if text in c.state.values())
            assert said == "not comparable with the old state: other samples failed"
    best = min(gains.values(), default=0.0)
    assert result.accepted == (best < 0)
    if result.accepted:
        assert gains[x.data] == pytest.approx(best)
    else:
        assert x.data == "old"


class Asked(nn.Module):
    def __init__(self, solve: nn.LLM) -> None:
        self.solve = solve

    def forward(self, question: str) -> ta.TextVariable:
        answer: ta.TextVariable = self.solve(question=question)
        return answer


def test_inside_a_closure_nothing_can_be_assigned() -> None:
    x = with_gradient()

    def closure() -> float:
        x.data = "mine"
        return 0.0

    with pytest.raises(errors.UsageError, match="cannot be assigned"):
        optim.SGD([x], engine=proposing("new")).step(closure)
    assert x.data == "old"


def test_inside_a_closure_a_state_is_loaded_as_a_whole_or_not_at_all() -> None:
    agent = nn.Sequential(nn.LLM("first"), nn.LLM("old"))
    x = agent[1].instruction
    x.grad = ta.Gradient([ta.Feedback("be better", output="wrong")])

    def closure() -> float:
        with pytest.raises(errors.UsageError, match="cannot be assigned"):
            agent.load_state_dict({"0.instruction": "mine", "1.instruction": "mine"})
        return 1.0

    optim.SGD([x], engine=proposing("new")).step(closure)
    assert agent.state_dict() == {"0.instruction": "first", "1.instruction": "old"}


@pytest.mark.parametrize(
    ("closure_of", "accepted"),
    [
        (lambda found, text: found.loss, True),
        (lambda found, text: found.loss + len(text), False),
        (lambda found, text: 1 - found.accuracy, True),
        (lambda found, text: 1.0, False),
        (lambda found, text: -float(len(text)), True),
    ],
)
def test_a_number_of_the_closures_own_decides_whatever_failed(
    closure_of: Any, accepted: bool
) -> None:
    """Where neither failed (c, d) the new text is better; a failed before, b does now."""

    def reply(request: Request) -> str:
        is_new = "newer" in request.messages[0]["content"]
        question = next(q for q in "abcd" if f"{q}?" in request.messages[1]["content"])
        if question == ("b" if is_new else "a"):
            raise errors.ServerError("down")
        return "right" if question == "c" or is_new else "wrong"

    agent = nn.LLM("old").to(Scripted(reply))
    agent.instruction.grad = ta.Gradient([ta.Feedback("be better", output="wrong")])
    module = Asked(agent)
    examples = [ta.data.Example(f"{q}?", "right") for q in "abcd"]

    def closure() -> float:
        found = ta.evaluate(module, examples, nn.ExactMatchLoss())
        return float(closure_of(found, agent.instruction.data))

    result = optim.SGD(module.parameters(), engine=proposing("newer")).step(closure)
    assert result.accepted == accepted
    if accepted:
        assert result.after is not None and result.before is not None
        assert result.after < result.before


def test_an_example_may_be_any_object_with_its_fields() -> None:
    class Mine:
        __hash__ = None  # type: ignore[assignment]

        def __init__(self, question: str) -> None:
            self.question, self.answer, self.extra = question, "right", {"more": ["x"]}

    class Reads(nn.Module):
        def forward(self, question: str, more: list[str]) -> str:
            if (x.data == "old") == (question == "a"):
                raise errors.ServerError("500")
            return "right" if x.data == "new" else "wrong"

    x = with_gradient()
    examples: Any = [Mine(q) for q in "abc"]
    loss = nn.FunctionLoss(lambda output, target: (float(output != target), "so"))
    result = optim.SGD([x], engine=proposing("new")).step(
        lambda: ta.evaluate(Reads(), examples, loss).loss
    )
    assert not result.accepted and "samples failed" in str(result.candidates[0].error)


def test_functional_call_in_a_closure_sees_the_candidate() -> None:
    """torch's idiom: a module with its own parameters, given by name."""
    agent = nn.LLM("old").to(Scripted(lambda request: request.messages[0]["content"]))
    agent.instruction.grad = ta.Gradient([ta.Feedback("be better", output="wrong")])
    seen: dict[str, str] = {}

    def closure() -> float:
        own = dict(agent.named_parameters())
        seen[agent.instruction.data] = ta.functional_call(agent, own, "q").data
        return 0.0 if agent.instruction.data == "new" else 1.0

    optim.SGD(agent.parameters(), engine=proposing("new")).step(closure)
    assert seen == {"old": "old", "new": "new"}


def test_without_a_gate_a_whole_candidate_goes_before_one_that_lacks_a_rewrite() -> None:
    def rewrite(request: Request) -> str:
        is_second = any("second text" in message["content"] for message in request.messages)
        if is_second and request.sample % 1000 == 0:
            return "no JSON"
        return json.dumps({"prompt": f"draw {request.sample % 1000}"})

    params = [with_gradient("first text", "a"), with_gradient("second text", "b")]
    result = optim.SGD(params, engine=Scripted(rewrite), candidates=2).step()
    assert [list(c.problems) for c in result.candidates] == [["b"], []]
    assert [p.data for p in params] == ["draw 1", "draw 1"]


@pytest.mark.parametrize("value", [None, True, False, "0.5", float("nan"), [0.5], 1j, 10**400])
def test_a_closure_must_return_a_loss(value: Any) -> None:
    x = with_gradient()
    optimizer = optim.SGD([x], engine=proposing("new"))
    with pytest.raises(errors.UsageError, match="the closure must return a loss"):
        optimizer.step(lambda: value)
    assert x.data == "old" and x.grad is not None


def test_a_closure_that_returns_an_evaluation_is_told_to_return_its_loss() -> None:
    row = ta.evaluation.Row(Example("q", "a"), "a", 0.5)
    found = ta.Evaluation([row], engines.Usage())
    with pytest.raises(errors.UsageError, match=r"not the Evaluation: return its \.loss"):
        optim.SGD([with_gradient()], engine=proposing("new")).step(lambda: found)  # type: ignore[arg-type,return-value]


@pytest.mark.filterwarnings("error")
def test_an_async_closure_is_one_clear_error() -> None:
    async def closure() -> float:
        return 0.5

    engine = proposing("new")
    for gate in (closure, lambda: closure()):
        with pytest.raises(errors.UsageError, match="the closure is async"):
            optim.SGD([with_gradient()], engine=engine).step(gate)  # type: ignore[arg-type]
        assert len(engine.calls) == (gate is not closure)


@pytest.mark.parametrize("closure", [lambda state: 0.5, int.__add__])
def test_a_closure_that_takes_something_is_refused_before_anything_is_spent(closure: Any) -> None:
    engine = proposing("new")
    with pytest.raises(errors.UsageError, match=r"the closure is called as \(\), but"):
        optim.SGD([with_gradient()], engine=engine).step(closure)
    assert engine.calls == []


def test_a_closure_may_return_a_loss_variable_or_a_whole_number() -> None:
    x = with_gradient()
    loss = nn.ExactMatchLoss()
    result = optim.SGD([x], engine=proposing("new")).step(lambda: loss(x, "new"))
    assert (result.before, result.after) == (1.0, 0.0)
    x.grad = ta.Gradient(["again"])
    result = optim.SGD([x], engine=proposing("newer")).step(lambda: int(x.data == "new"))
    assert (result.before, result.after) == (1.0, 0.0)


@pytest.mark.parametrize("where", ["old", "new"])
@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("mine"),
        errors.BudgetExceeded("enough"),
        errors.UsageError("no"),
        errors.AuthenticationError("key"),
        errors.NoCreditError("pay"),
        errors.NotFoundError("where"),
    ],
)
def test_an_exception_in_the_gate_leaves_everything_as_it_was(where: str, error: Exception) -> None:
    x, y = with_gradient(name="x"), with_gradient("old y", "y")
    before = (x.grad, y.grad)

    def closure() -> float:
        if x.data == where:
            raise error
        return 0.0

    optimizer = optim.SGD([x, y], engine=proposing("new", "new y"))
    with pytest.raises(type(error), match=str(error)):
        optimizer.step(closure)
    assert (x.data, y.data, x.grad, y.grad) == ("old", "old y", *before)
    assert x._version == y._version == 0


@pytest.mark.parametrize("error", [errors.ServerError("500"), errors.ReplyError("nonsense")])
def test_a_candidate_that_a_model_cannot_evaluate_is_out(error: Exception) -> None:
    x = with_gradient()

    def closure() -> float:
        if x.data == "new 0":
            raise error
        return 0.5 if x.data == "old" else 0.25

    result = optim.SGD([x], engine=drawing("new 0", "new 1"), candidates=2).step(closure)
    assert result.accepted and x.data == "new 1"
    assert result.candidates[0].loss is None
    assert result.candidates[0].error == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", [errors.ServerError("500"), errors.ReplyError("nonsense")])
def test_without_a_loss_of_the_old_state_there_is_nothing_to_compare(error: Exception) -> None:
    x = with_gradient()

    def closure() -> float:
        if x.data == "old":
            raise error
        return 0.0

    with pytest.raises(type(error), match=str(error)):
        optim.SGD([x], engine=proposing("new")).step(closure)
    assert x.data == "old"


def test_a_budget_that_ends_in_the_gate_leaves_everything_as_it_was() -> None:
    module = nn.LLM("old").to(Scripted(lambda r: "wrong"))
    module.instruction.grad = ta.Gradient(["be better"])
    val = [ta.data.Example(f"{i}?", "right") for i in range(5)]
    optimizer = optim.SGD(module.parameters(), engine=proposing("new"))
    with ta.Budget(calls=4) as budget, pytest.raises(ta.BudgetExceeded):
        optimizer.step(lambda: ta.evaluate(module, val, nn.ExactMatchLoss()).loss)
    assert module.instruction.data == "old" and budget.spent.calls <= 4


def test_with_nothing_to_compare_the_closure_is_not_called() -> None:
    x = nn.Parameter("old")

    def closure() -> float:
        raise AssertionError("not needed")

    engine = proposing()
    result = optim.SGD([x], engine=engine).step(closure)
    assert not result.accepted and result.before is result.after is None and engine.calls == []


# After a rejection


def same_text(request: Request) -> str:
    return json.dumps({"prompt": "Ever the same."})


def test_method_9_S11_a_rejected_text_is_shown_and_not_proposed_again() -> None:
    x = with_gradient()
    engine = Scripted(same_text)
    optimizer = optim.SGD([x], engine=engine)
    assert not optimizer.step(lambda: 1.0).accepted
    (first,) = engine.calls
    assert first.temperature == 0 and first.sample == 0

    result = optimizer.step(lambda: 1.0)
    second, third = engine.calls[1:]
    assert second != first
    assert second.temperature is not None and second.temperature > 0
    assert "<tried-1>\nEver the same.\n</tried-1>" in second.messages[1]["content"]
    assert "it was tried and did not help" in third.messages[-1]["content"]
    assert not result.accepted and result.candidates[0].state == {}
    assert "it was tried and did not help" in str(result)
    assert len(engine.calls) == 3

    optimizer.step(lambda: 1.0)
    assert engine.calls[3] != second  # another step is another draw


def test_method_9_S11_a_cache_does_not_bring_the_rejected_text_back(tmp_path: Any) -> None:
    answers = iter(["first", "second", "third"])
    engine = Scripted(lambda request: json.dumps({"prompt": next(answers)}))
    x = with_gradient()
    optimizer = optim.SGD([x], engine=engine)
    with ta.engines.caching(tmp_path / "calls.sqlite"):
        proposed = [optimizer.step(lambda: 1.0).candidates[0].state for _ in range(3)]
    assert proposed == [{"x": "first"}, {"x": "second"}, {"x": "third"}]


def writing(**texts: list[str]) -> Scripted:
    """Proposes each parameter's texts in turn, whatever it is asked."""
    left = {f"old {name}": iter(of_name) for name, of_name in texts.items()}

    def answer(request: Request) -> str:
        (asked,) = (old for old in left if old in str(request.messages))
        return json.dumps(dict.fromkeys(request.schema["properties"], next(left[asked])))

    return Scripted(answer)


@pytest.mark.parametrize("kind", [optim.SGD, optim.TextGrad])
def test_a_rewrite_that_failed_in_bad_company_can_succeed_in_better(kind: Any) -> None:
    x, y = with_gradient("old x", "x"), with_gradient("old y", "y")
    engine = writing(x=["good", "good"], y=["bad", "good"])
    optimizer = kind([x, y], engine=engine)

    def closure() -> float:
        return {"good good": 0.0, "old x old y": 1.0}.get(f"{x.data} {y.data}", 5.0)

    assert not optimizer.step(closure).accepted
    assert optimizer.step(closure).accepted and (x.data, y.data) == ("good", "good")


@pytest.mark.parametrize("kind", [optim.SGD, optim.TextGrad])
def test_rewrites_that_failed_together_are_not_evaluated_together_again(kind: Any) -> None:
    x, y = with_gradient("old x", "x"), with_gradient("old y", "y")
    optimizer = kind([x, y], engine=writing(x=["a"] * 9, y=["b"] * 9))
    steps = [optimizer.step(lambda: 1.0) for _ in range(4)]
    evaluated = [candidate.state for step in steps for candidate in step.candidates]
    assert evaluated == [{"x": "a", "y": "b"}, {"x": "a"}, {"y": "b"}, {}]
    assert str(steps[-1].why).count("it was tried and did not help") == 2


@pytest.mark.parametrize("kind", [optim.SGD, optim.TextGrad])
def test_of_rewrites_that_failed_together_one_is_asked_for_once_more(kind: Any) -> None:
    x, y = with_gradient("old x", "x"), with_gradient("old y", "y")
    optimizer = kind([x, y], engine=writing(x=["a", "a"], y=["b", "b", "c"]))
    assert not optimizer.step(lambda: 1.0).accepted
    assert optimizer.step(lambda: float("old" in x.data)).changes["y"] == ("old y", "c")


def test_a_check_that_allows_it_has_the_same_evaluated_again() -> None:
    x = with_gradient()
    optimizer = optim.SGD([x], engine=proposing("new", "new"), check=lambda *_: None)
    assert not optimizer.step(lambda: 1.0).accepted
    assert optimizer.step(lambda: float(x.data == "old")).accepted


class Echo(nn.Module):
    def forward(self, question: str) -> str:
        return question


@pytest.mark.parametrize("in_evaluate", [False, True])
@pytest.mark.parametrize("kind", [optim.SGD, optim.COPRO])
def test_a_rewrite_that_could_not_be_evaluated_can_be_proposed_again(
    kind: Any, in_evaluate: bool
) -> None:
    """In the documented loop, too, where `evaluate` makes a row of what failed. The same prompt at
    temperature 0 would bring it for ever, so the next draw may be another."""
    x, is_down = with_gradient(), True

    def measured(output: str, target: str) -> tuple[float, str]:
        if is_down and x.data == "new" and output == "2":
            raise errors.ServerError("503")
        return float(x.data == "old"), "be new"

    def closure() -> float:
        if not in_evaluate:
            return measured("2", "")[0]
        examples = [Example(question, "") for question in "12"]
        return ta.evaluate(Echo(), examples, nn.FunctionLoss(measured)).loss

    engine = Scripted(lambda request: json.dumps({name(request): "new"}))
    optimizer = kind([x], engine=engine)
    result = optimizer.step(closure)
    assert not result.accepted and "ServerError: 503" in str(result.candidates[0].error)
    resumed = kind([x], engine=engine)
    resumed.load_state_dict(json.loads(json.dumps(optimizer.state_dict())))
    is_down = False
    assert resumed.step(closure).accepted and x.data == "new"
    assert engine.calls[-1].temperature


def name(request: Any) -> str:
    (found,) = request.schema["properties"]
    return str(found)


@pytest.mark.parametrize("worse", [0.5, 5.0])
def test_evaluations_of_a_closure_may_end_in_any_order(worse: float) -> None:
    """With one sample that fails in both states, what is left is compared sample by sample."""
    x, ended = with_gradient(), {state: threading.Event() for state in ("old", "new")}
    losses = {"old": {"a": 0.0, "b": 1.0}, "new": {"a": 0.0, "b": worse}}

    def measured(output: str, target: str) -> tuple[float, str]:
        if output == "bad":
            raise errors.ContentFilterError("no")
        return losses[x.data][output], "be new"

    def evaluated(questions: str) -> float:
        if is_second := (x.data == "old") == (questions == "b"):
            ended[x.data].wait(60)
        examples = [Example(question, "") for question in questions.split()]
        loss = ta.evaluate(Echo(), examples, nn.FunctionLoss(measured)).loss
        if not is_second:
            ended[x.data].set()
        return loss

    closure = lambda: sum(ta.map(evaluated, ["bad a", "b"]))  # noqa: E731
    result = optim.SGD([x], engine=proposing("new")).step(closure)
    assert result.accepted == (worse < 1)


def test_where_every_sample_fails_the_failures_decide_together() -> None:
    def measured(output: str, target: str) -> tuple[float, str]:
        if x.data == "new":
            raise errors.ServerError("503") if output == "1" else errors.ContentFilterError("no")
        return 1.0, "be new"

    x = with_gradient()
    examples = [Example(question, "") for question in "123"]
    loss_fn = nn.FunctionLoss(measured)
    result = optim.SGD([x], engine=proposing("new")).step(
        lambda: ta.evaluate(Echo(), examples, loss_fn).loss
    )
    assert result.candidates[0].error == "3 samples failed, 0 with the old state"
    assert not result.candidates[0].unjudged


def test_what_is_left_of_a_state_is_not_evaluated_again() -> None:
    params = [with_gradient(f"old {name}", name) for name in "xyz"]
    texts = writing(x=["same"] * 99, y=["b"] * 99, z=["c"] * 99)
    check = optim.objection
    optimizer = optim.SGD(
        params, engine=texts, check=lambda new, *rest: "no" if new == "same" else check(new, *rest)
    )
    steps = [optimizer.step(lambda: 1.0) for _ in range(6)]
    states = [c.state for step in steps for c in step.candidates if c.state]
    assert len(states) == len({json.dumps(state) for state in states}) > 1


def test_a_step_that_the_gate_cuts_short_was_none() -> None:
    """COPRO's turn does not pass, and the next call draws as this one did."""
    x, y = nn.Parameter("old x", name="x"), nn.Parameter("old y", name="y")
    engine = Scripted(lambda r: json.dumps({"instruction": f"new {r.sample}"}))
    optimizer = optim.COPRO([x, y], engine=engine, breadth=3)
    before = optimizer.state_dict()
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert optimizer.state_dict() == before
    assert list(optimizer.step(lambda: 1.0).candidates[0].state) == ["x"]


def test_what_was_tried_is_forgotten_once_the_text_has_changed() -> None:
    x = with_gradient()
    engine = proposing("first", "second", "first")
    optimizer = optim.SGD([x], engine=engine)
    assert not optimizer.step(lambda: 1.0).accepted
    assert optimizer.step(lambda: float(x.data == "old")).accepted
    x.grad = ta.Gradient(["again"])
    assert optimizer.step(lambda: float(x.data == "second")).accepted
    assert x.data == "first"
    assert engine.calls[2].temperature == 0


def test_what_was_tried_survives_in_the_optimizers_state() -> None:
    x = with_gradient()
    optimizer = optim.SGD([x], engine=proposing("first"))
    optimizer.step(lambda: 1.0)
    state = json.loads(json.dumps(optimizer.state_dict()))
    engine = Scripted(lambda request: json.dumps({"prompt": "first"}))
    resumed = optim.SGD([x], engine=engine)
    resumed.load_state_dict(state)
    assert not resumed.step().accepted
    assert resumed.steps == 2 and "tried" in engine.calls[0].messages[1]["content"]
