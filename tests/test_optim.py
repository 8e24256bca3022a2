"""Semantic gradient descent: what is asked, what is taken, and what is left alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_prompts import sequence

import textautograd as ta
from textautograd import errors, nn, optim
from textautograd.engines import Reply, Request, Scripted
from textautograd.optim.gate import Verdict
from textautograd.prompts.optimize import SYSTEM

Feedback = ta.Feedback


def param(text: str = "old", name: str = "x", feedbacks: int = 1, **inputs: str) -> nn.Parameter:
    parameter = nn.Parameter(text, name=name)
    parameter.grad = ta.Gradient(
        [
            Feedback(f"feedback {i}", inputs=inputs or {"question": f"q{i}"}, output=f"output {i}")
            for i in range(feedbacks)
        ]
    )
    return parameter


def said(text: str) -> str:
    return json.dumps({"prompt": text})


def user_text(request: Request) -> str:
    return request.messages[1]["content"]


# What is asked


def test_one_call_for_each_parameter_with_a_gradient_T7() -> None:
    x, y, z = param("old x", "x"), nn.Parameter("old y", name="y"), param("old z", "z")
    z.grad = ta.Gradient()  # backward came by and had nothing to say
    engine = sequence(said("new x"))
    result = optim.SGD([x, y, z], engine=engine).step()
    (call,) = engine.calls
    assert (call.purpose, call.temperature, call.sample) == ("optimize", 0.0, 0)
    assert [p.data for p in (x, y, z)] == ["new x", "old y", "old z"]
    assert result.changes == {"x": ("old x", "new x")}


def test_the_request_shows_instruction_and_evidence_and_nothing_else_method_3_S5() -> None:
    engine = sequence(said("new"))
    optim.SGD([param()], engine=engine).step()
    system, user = (message["content"] for message in engine.calls[0].messages)
    assert system == SYSTEM
    assert user.startswith(
        "<instruction>\nold\n</instruction>\n\n<example-1-question>\nq0\n</example-1-question>\n\n"
        "<example-1-output>\noutput 0\n</example-1-output>\n\n"
        "<example-1-feedback>\nfeedback 0\n</example-1-feedback>\n\nWrite the better instruction"
    )
    how = 'Reply with one JSON object. Its keys: "prompt". Each value is text.'
    assert user.endswith("\n" + how)
    assert "False" not in user and "None" not in user


@given(st.integers(1, 5), st.integers(1, 12))
def test_up_to_so_many_feedbacks_are_shown(examples: int, feedbacks: int) -> None:
    engine = sequence(said("new"))
    optim.SGD([param(feedbacks=feedbacks)], engine=engine, examples=examples).step()
    text = user_text(engine.calls[0])
    shown = [i for i in range(feedbacks) if f"\nfeedback {i}\n" in text]
    assert len(shown) == min(examples, feedbacks)


def test_other_steps_and_seeds_show_other_feedback() -> None:
    def shown(seed: int, steps: int) -> list[str]:
        x = param(feedbacks=50)
        engine = Scripted(lambda r: said("new"))
        optimizer = optim.SGD([x], engine=engine, seed=seed)
        for _ in range(steps):
            x.data = "old"
            optimizer.step()
        return [user_text(call) for call in engine.calls]

    first, second = shown(0, 2)
    assert first != second and shown(0, 2) == [first, second]
    assert shown(1, 1) != [first]


def test_the_same_feedback_is_shown_once() -> None:
    x = nn.Parameter("old", name="x")
    x.grad = ta.Gradient([Feedback("same", output="o")] * 9)
    engine = sequence(said("new"))
    optim.SGD([x], engine=engine, examples=3).step()
    assert user_text(engine.calls[0]).count("\nsame\n") == 1


def test_parameters_and_candidates_are_asked_for_together() -> None:
    together = asyncio.Barrier(6)

    async def answer(request: Request) -> str:
        async with asyncio.timeout(60):
            await together.wait()
        return said(f"new {request.sample}")

    x, y = param(name="x"), param(name="y")
    result = optim.SGD([x, y], engine=Scripted(answer), candidates=3).step()
    assert [set(c.state) for c in result.candidates] == [{"x", "y"}] * 3


def test_several_candidates_are_different_draws_of_whole_states() -> None:
    engine = Scripted(lambda r: said(f"draw {r.sample}"))
    x, y = param(name="x"), param(name="y")
    result = optim.SGD([x, y], engine=engine, candidates=3, seed=2, temperature=0.7).step()
    assert {call.temperature for call in engine.calls} == {0.7}
    samples = sorted(call.sample for call in engine.calls)
    assert len(set(samples)) == 3 and samples[0] == samples[1]
    assert len({c.state["x"] for c in result.candidates}) == 3
    assert result.accepted and x.data == result.candidates[0].state["x"]  # no gate: the first


def test_equal_candidates_are_one() -> None:
    engine = Scripted(lambda r: said("new"))
    result = optim.SGD([param()], engine=engine, candidates=4).step()
    assert [c.state for c in result.candidates] == [{"x": "new"}]


def test_the_contexts_engine_is_the_default() -> None:
    engine = sequence(said("new"))
    optimizer = optim.SGD([param()])
    with ta.use_engine(engine):
        assert optimizer.step().accepted
    assert len(engine.calls) == 1


# What is taken

QUESTION = "How many apples does Ann have after lunch"
UNUSABLE = {
    "no fence (method 2, S6)": "Let me think. A better instruction would be to be brief.",
    "unclosed fence (G1)": "<prompt>Be brief.",
    "unclosed thought (G1)": "<think>Maybe <prompt>Be brief.</prompt>",
    "two fences (G2)": "<prompt>Be brief.</prompt> or rather <prompt>Be long.</prompt>",
    "cut off": Reply(said("Be br"), finish_reason="length"),
    "empty": Reply(""),
    "empty prompt": said("  "),
    "None for a prompt (T5)": '{"prompt": null}',
    "the same text": said("Answer {question} now."),
    "the same but for case and points": said("answer {question}, NOW!"),
    "copies a question": said(f"When asked {QUESTION}, answer {{question}} with 3."),
    "loses a placeholder": said("Answer it now."),
}


@pytest.mark.parametrize("bad", UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_rewrite_is_asked_again_once_then_left_alone(bad: str | Reply) -> None:
    def optimizer_of(*replies: str | Reply) -> tuple[Any, Any, Scripted]:
        x = param("Answer {question} now.", question=QUESTION)
        engine = sequence(*replies)
        return x, optim.SGD([x], engine=engine), engine

    good = "Answer {question} in one word."
    x, optimizer, engine = optimizer_of(bad, said(good))
    assert optimizer.step().accepted and x.data == good
    assert "This reply cannot be used: " in engine.calls[1].messages[-1]["content"]

    x, optimizer, engine = optimizer_of(bad, bad)
    result = optimizer.step()
    assert len(engine.calls) == 2
    assert not result.accepted and x.data == "Answer {question} now." and x._version == 0
    assert "cannot be used, also when asked again" in result.candidates[0].problems["x"]
    assert str(result).startswith(
        "nothing changed: rewrite refused: x: the model's optimize reply cannot"
    )


@pytest.mark.parametrize("rival", [optim.SGD, optim.TextGrad, optim.OptoPrime])
def test_what_is_asked_again_is_drawn_at_a_temperature(rival: Any) -> None:
    engine = Scripted(lambda request: "No reply of that form.")
    agent = nn.LLM("old").to(Scripted(lambda request: '{"instruction": "Lima, I think."}'))
    optimizer = rival(agent.parameters(), engine=engine, seed=3, temperature=0.7)
    nn.ExactMatchLoss()(agent("Capital of Peru?"), "Lima").backward(rule=optimizer.rule)
    optimizer.step()
    first, again = engine.calls
    assert (first.temperature, first.sample) == (0.0, 0)
    assert (again.temperature, again.sample) == (0.7, 3 * 10**6)


TAKEN = {
    "O1 def": "Define what is asked by default; def f(): pass",
    "O2 TERMINATE": "Write TERMINATE when done.",
    "O7 False": "False",
    "A1 ampersand": "Use R&D <terms> & a < b.",
    "A1 inner tags": "Wrap in <answer>…</answer>, then </stop>.",
    "G3 fence": "```Answer\nbriefly```",
    "G4 placeholder": "Look at <side_info> and <instruction> and <example-1-question>.",
    "braces": 'Reply {"answer": {}} or %s or $x.',
    "lines": "First.\n\nSecond.\n- third",
}


@pytest.mark.parametrize("structured", ["schema", "tagged"])
@pytest.mark.parametrize("text", TAKEN.values(), ids=TAKEN)
def test_any_text_is_taken_whole_and_literally(text: str, structured: str) -> None:
    x = param()
    reply = said(text) if structured == "schema" else f"I see.\n<prompt>\n{text}\n</prompt>"
    engine = sequence(reply)
    engine.structured = structured  # type: ignore[attr-defined]
    assert optim.SGD([x], engine=engine, check=lambda *_: None).step().accepted
    assert x.data == text and type(x.data) is str
    x.grad = ta.Gradient(["and again"])
    second = sequence(said("other"))
    optim.SGD([x], engine=second).step()
    assert f"\n{text}\n" in user_text(second.calls[0])


def test_words_that_the_instruction_had_already_are_no_copy() -> None:
    old = f"{QUESTION}? Such questions want a number."
    x = param(old, question=QUESTION)
    new = f"{QUESTION}? Such questions want one number and no unit."
    assert optim.SGD([x], engine=sequence(said(new))).step().accepted


def test_a_refused_rewrite_is_not_drawn_again_from_the_same_request() -> None:
    x = param()
    engine = Scripted(lambda r: said("old"))
    optimizer = optim.SGD([x], engine=engine, seed=3)
    assert not optimizer.step().accepted
    state = json.loads(json.dumps(optimizer.state_dict()))
    first, again = engine.calls
    assert (first.temperature, first.sample) == (0.0, 0)
    assert (again.temperature, again.sample) == (1.0, 3_000_000)
    resumed = optim.SGD([x], engine=engine, seed=3)
    resumed.load_state_dict(state)
    for each in (optimizer, resumed):
        each.step()
        second = engine.calls[-2]
        assert second.messages == first.messages
        assert (second.temperature, second.sample) == (1.0, 3_001_000)


def test_a_refused_rewrite_changes_no_other_request() -> None:
    x, y = param("old x", "x"), param("old y", "y")
    engine = Scripted(lambda r: said("old x") if "old x" in user_text(r) else said("new y"))
    optimizer = optim.SGD([x, y], engine=engine)
    optimizer.step()
    assert y.data == "new y"
    x.grad = ta.Gradient([Feedback("other evidence", output="o")])
    y.grad = ta.Gradient([Feedback("more evidence", output="o")])
    del engine.calls[:]
    optimizer.step()
    firsts = [call for call in engine.calls if len(call.messages) == 2]
    assert [(call.temperature, call.sample) for call in firsts] == [(0.0, 0)] * 2


@pytest.mark.parametrize("kind", [optim.SGD, optim.TextGrad, optim.OptoPrime])
@pytest.mark.parametrize("limit", [None, 4000])
def test_a_check_that_returns_no_reason_is_named(kind: Any, limit: int | None) -> None:
    engine: Any = Scripted(lambda r: json.dumps(dict.fromkeys(r.schema["properties"], "new")))
    engine.max_input_tokens = limit
    x = nn.Parameter("old", name="x")
    x.grad = ta.Gradient([Feedback("be better")])
    with pytest.raises(errors.UsageError, match=f"{kind.__name__}: check says .* returned True"):
        kind([x], engine=engine, check=lambda *_: True).step()


def test_named_parameters_are_told_what_to_be() -> None:
    with pytest.raises(errors.UsageError, match=r"can only optimize leaves.*pass \.parameters\(\)"):
        optim.SGD(nn.LLM("x").named_parameters())  # type: ignore[arg-type]


def test_a_name_may_be_any_text() -> None:
    x = param("old", "\ud800")
    assert optim.SGD([x], engine=Scripted(lambda r: said("new"))).step().accepted


def test_state_of_before_there_were_refusals_can_be_loaded() -> None:
    optimizer = optim.SGD([param()])
    optimizer.load_state_dict({"steps": 2, "rejected": [{"x": "a"}]})
    assert optimizer.state_dict() == {
        "kind": "SGD",
        "parameters": ["x"],
        "steps": 2,
        "rejected": [{"x": "a"}],
        "unjudged": [],
        "refused": [],
    }


@pytest.mark.parametrize("kind", [optim.SGD, optim.TextGrad, optim.OptoPrime, optim.COPRO])
def test_the_state_of_other_parameters_is_refused(kind: Any) -> None:
    state = kind([param("old", "x")]).state_dict()
    for names in (["y"], ["x", "y"]):
        other = kind([param("old", name) for name in names])
        before = other.state_dict()
        with pytest.raises(errors.StateError, match=r"no parameter [xy]$"):
            other.load_state_dict(state)
        assert other.state_dict() == before


class Proposes(optim.Optimizer):
    def __init__(self, found: Any) -> None:
        super().__init__([param("old", "x"), param("old", "y")], engine=Scripted(said))
        self.found = found

    async def propose(self, engine: Any) -> Any:
        return self.found


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "a list of Candidate, not None"),
        ([{"x": "new"}], "is none"),
        ([optim.Candidate({"z": "new"})], "'z' is no parameter: there are x, y"),
        ([optim.Candidate({"x": "new", "y": 5})], "a candidate's state is int"),  # type: ignore[dict-item]
    ],
)
@pytest.mark.parametrize("closure", [None, lambda: 1.0])
def test_what_is_proposed_is_checked_before_anything_is_written(
    found: Any, words: str, closure: Any
) -> None:
    optimizer = Proposes(found)
    with pytest.raises(errors.UsageError, match=words):
        optimizer.step(closure)
    assert [p.data for p in optimizer.params] == ["old", "old"]


@pytest.mark.parametrize("best", [3, -1])
def test_a_gate_of_ones_own_is_held_to_its_form(best: int) -> None:
    optimizer = Proposes([optim.Candidate({"x": "new"})])
    odd: list[Any] = [None, 0.5, Verdict(1.0, [], None), Verdict(1.0, [0.5], best)]
    odd += [Verdict(1.0, [why], 0) for why in (None, "broken", float("nan"), RuntimeError())]
    odd += [Verdict(None, [0.5], None), Verdict(1.0, None, None)]  # type: ignore[arg-type]
    for verdict in odd:
        with pytest.raises(errors.UsageError, match="a gate returns a Verdict of 1 candidates"):
            optimizer.step_with(lambda *_, verdict=verdict: verdict)  # type: ignore[misc]


def test_the_check_is_a_setting() -> None:
    seen: list[Any] = []

    def check(new: str, old: str, tried: Any, data: Any) -> str | None:
        seen.append((new, old, list(tried), list(data)))
        return "too long" if len(new) > 5 else optim.objection(new, old, tried, data)

    x = param(question="why so?")
    engine = sequence(said("far too long"), said("short"))
    optimizer = optim.SGD([x], engine=engine, check=check)
    assert optimizer.step(lambda: 1.0).candidates[0].state == {"x": "short"}
    assert seen == [("far too long", "old", [], ["why so?"]), ("short", "old", [], ["why so?"])]
    assert "too long" in engine.calls[1].messages[-1]["content"]
    assert optimizer.settings()["check"] != optim.SGD([x]).settings()["check"] == "objection"


# All or nothing


def test_T6_one_unusable_rewrite_leaves_that_parameter_alone_and_says_why() -> None:
    x, y = param("old x", "x"), param("old y", "y")
    engine = Scripted(lambda r: "nonsense" if "old y" in str(r.messages[1]) else said("new x"))
    result = optim.SGD([x, y], engine=engine).step()
    assert (x.data, y.data) == ("new x", "old y")
    assert list(result.candidates[0].problems) == ["y"]


@pytest.mark.parametrize("error", [ta.BudgetExceeded("enough"), ZeroDivisionError("mine")])
def test_T6_an_exception_while_drawing_leaves_everything_as_it_was(error: Exception) -> None:
    x, y = param("old x", "x"), param("old y", "y")
    with pytest.raises(type(error)):
        optim.SGD([x, y], engine=sequence(said("new x"), error)).step()
    assert (x.data, y.data) == ("old x", "old y") and x.grad is not None


def test_a_budget_covers_the_optimizers_calls() -> None:
    x, y = param("old x", "x"), param("old y", "y")
    engine = Scripted(lambda r: said("new"))
    with ta.Budget(calls=1), pytest.raises(ta.BudgetExceeded):
        optim.SGD([x, y], engine=engine).step()
    assert (x.data, y.data) == ("old x", "old y") and len(engine.calls) == 1


def test_where_no_call_comes_back_the_first_error_is_raised() -> None:
    x = param()
    with pytest.raises(errors.AuthenticationError):
        optim.SGD([x], engine=sequence(errors.AuthenticationError("wrong key"))).step()
    assert x.data == "old"


def test_where_some_calls_come_back_the_failure_is_a_problem() -> None:
    x, y = param("old x", "x"), param("old y", "y")
    result = optim.SGD([x, y], engine=sequence(errors.ServerError("500"), said("new"))).step()
    assert result.accepted and result.candidates[0].problems == {"x": "500"}


# The result


def test_a_result_tells_what_happened() -> None:
    x = param("Be kind.\nBe brief.")
    result = optim.SGD([x], engine=sequence(said("Be kind.\nBe long."))).step(
        lambda: float("brief" in x.data) / 2
    )
    diff = "--- x (before)\n+++ x (after)\n@@ -1,2 +1,2 @@\n Be kind.\n-Be brief.\n+Be long."
    assert result.diff() == diff
    assert str(result) == f"accepted: loss 0.5 → 0\n{diff}"
    assert result.changes == {"x": ("Be kind.\nBe brief.", "Be kind.\nBe long.")}


def test_a_rejected_result_tells_the_losses() -> None:
    result = optim.SGD([param()], engine=sequence(said("new"))).step(lambda: 0.25)
    assert str(result) == "nothing changed: not better than loss 0.25; candidates: loss 0.25"
    assert not result and result.diff() == "" and (result.before, result.after) == (0.25, 0.25)


def test_a_result_says_each_reason_once_and_names_what_it_is_about() -> None:
    same = {"a": "it is bad " * 40, "b": "it is bad " * 40}
    result = optim.StepResult(False, None, None, [optim.Candidate({}, problems=same)] * 2, {})
    assert repr(result).count("it is bad it is bad") < 12 and "refused: a, b: it is" in str(result)
    tried = [optim.Candidate({"a": "x"}, loss=1.0)] * 3
    result = optim.StepResult(False, 1.0, 1.0, tried, {})
    assert result.why == "not better than loss 1; candidates: loss 1 (3 times)"


def test_a_state_of_another_kind_is_refused() -> None:
    state = optim.SGD([nn.Parameter("old")]).state_dict()
    with pytest.raises(ta.errors.StateError, match="state of 'SGD', and the optimizer COPRO"):
        optim.COPRO([nn.Parameter("old")]).load_state_dict(state)


def test_a_step_without_gradients_says_so() -> None:
    result = optim.SGD([nn.Parameter("old")], engine=sequence()).step()
    assert str(result) == "nothing changed: no gradient"


# The optimizer itself


def test_its_repr_shows_its_settings() -> None:
    shown = repr(optim.SGD([param()], examples=3, prompt=lambda *_: []))
    assert shown.startswith(
        "SGD(1 parameter, step 0, candidates=1, seed=0, temperature=1.0, check='objection', "
        "examples=3, prompt='"
    )


def test_a_name_that_looks_like_a_made_up_one_is_no_clash() -> None:
    texts = ["x", "x#2", "x", "parameter4", None]
    names = optim.SGD([nn.Parameter("text", name=name) for name in texts]).names
    assert len(set(names)) == 5


def test_zero_grad_and_names() -> None:
    x, y, unnamed = param(name="x"), param(name="x"), nn.Parameter("z")
    optimizer = optim.SGD([x, y, unnamed])
    assert len(set(optimizer.names)) == 3
    optimizer.zero_grad()
    assert x.grad is y.grad is None


def test_its_state_is_json_and_comes_back() -> None:
    x = param()
    optimizer = optim.SGD([x], engine=sequence(said("new")))
    optimizer.step(lambda: 1.0)
    state = json.loads(json.dumps(optimizer.state_dict()))
    other = optim.SGD([x])
    other.load_state_dict(state)
    assert other.state_dict() == optimizer.state_dict() == state
    assert json.loads(json.dumps(optimizer.settings())) == optimizer.settings()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: optim.SGD([]),
        lambda: optim.SGD(["text"]),  # type: ignore[list-item]
        lambda: optim.SGD(nn.Module().parameters()),
        lambda: optim.SGD([ta.cat([nn.Parameter("a"), "b"])]),
        lambda: optim.SGD([param()] * 2),
        lambda: optim.SGD([param()], examples=0),
        lambda: optim.SGD([param()], candidates=0),
        lambda: optim.SGD([param()], temperature=0),
        lambda: optim.SGD([param()], engine=3),  # type: ignore[arg-type]
        lambda: optim.SGD(nn.LLM("x")),  # type: ignore[arg-type]
        lambda: optim.SGD(None),  # type: ignore[arg-type]
        lambda: optim.SGD([param()], candidates="3"),  # type: ignore[arg-type]
        lambda: optim.SGD([param()], prompt=5),  # type: ignore[arg-type]
        lambda: optim.SGD([param()], check=None),  # type: ignore[arg-type]
        lambda: optim.SGD([param()], temperature=float("inf")),
        lambda: optim.SGD([param()], temperature=float("nan")),
        lambda: optim.SGD([param()], temperature=True),
        lambda: optim.SGD([param()], temperature="x"),  # type: ignore[arg-type]
        lambda: optim.SGD([param()], seed=1.5),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_cannot_work_are_refused(wrong: Any) -> None:
    with pytest.raises(errors.UsageError):
        wrong()


def test_a_step_with_a_number_for_a_closure_is_refused_before_anything_is_spent() -> None:
    engine = sequence(said("new"))
    with pytest.raises(errors.UsageError):
        optim.SGD([param()], engine=engine).step(0.5)  # type: ignore[arg-type]
    assert engine.calls == []


@pytest.mark.parametrize(
    "returned",
    [
        None,
        "text",
        5,
        [],
        [5],
        [{"role": "user"}],
        [{"content": "x"}],
        [{"role": "user", "content": 5}],
        [{"role": None, "content": "x"}],
    ],
)
@pytest.mark.parametrize("limit", [None, 1000])
def test_a_prompt_of_ones_own_must_return_messages(returned: Any, limit: int | None) -> None:
    engine = Scripted(lambda request: pytest.fail("called"))
    engine.max_input_tokens = limit  # type: ignore[attr-defined]
    optimizer = optim.SGD([param()], engine=engine, prompt=lambda *_: returned)
    with pytest.raises(errors.UsageError, match="SGD's prompt must return messages"):
        optimizer.step()


def test_functions_of_other_arguments_are_refused_at_once() -> None:
    with pytest.raises(errors.UsageError, match=r"prompt is called as \(instruction, ex.*, but"):
        optim.SGD([param()], prompt=lambda instruction, how: [])  # type: ignore[arg-type,misc]
    with pytest.raises(errors.UsageError, match=r"check is called as \(new, old, tried, data\)"):
        optim.SGD([param()], check=lambda new: None)  # type: ignore[arg-type,misc]
