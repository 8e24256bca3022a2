"""How gradients pass back through model calls: the joint rule, TextGrad's, none, and users' own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import textautograd as ta
from textautograd import engines, errors, nn, rules
from textautograd.engines import Reply, Request, Scripted
from textautograd.functional import complete

Answer = Callable[[Request], str | Reply]
Make = Callable[[Answer], Scripted]


def _sync(answer: Answer) -> Scripted:
    return Scripted(answer)


def _async(answer: Answer) -> Scripted:
    async def later(request: Request) -> str | Reply:
        await asyncio.sleep(0)
        return answer(request)

    return Scripted(later)


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


class Agent(nn.Module):
    """The paper's graph: two hints, then the answer."""

    def __init__(self) -> None:
        self.first = nn.LLM("Give a hint.")
        self.second = nn.LLM("Give another hint.")
        self.solve = nn.LLM("Solve it.", output_format="One word.")

    def forward(self, question: str) -> ta.TextVariable:
        first, second = self.first(question=question), self.second(question=question)
        output: ta.TextVariable = self.solve(question=question, first=first, second=second)
        return output


def forward_text(request: Request) -> str:
    said = {"Give a hint.": "HINT-A", "Give another hint.": "HINT-B"}
    return said.get(request.messages[0]["content"], "wrong")


def playing(backward: Answer) -> Answer:
    return lambda r: forward_text(r) if r.purpose == "forward" else backward(r)


def names_of(request: Request) -> list[str]:
    assert request.schema is not None
    return list(request.schema["properties"])


def agreeing(request: Request) -> str:
    return json.dumps({name: f"change {name}" for name in names_of(request)})


def backward_calls(engine: Scripted) -> list[Request]:
    return [call for call in engine.calls if call.purpose == "backward"]


def user_text(request: Request) -> str:
    return request.messages[-1]["content"]


def wrong_answer(agent: nn.Module, question: str = "why?") -> ta.TextVariable:
    loss: ta.TextVariable = nn.ExactMatchLoss()(agent(question=question), "right")
    return loss


def texts(variable: ta.TextVariable) -> list[str]:
    assert variable.grad is not None
    return [feedback.text for feedback in variable.grad]


EXPECTED = 'The expected output is: "right".'


# The joint rule


def test_one_call_for_a_node_names_all_its_predecessors_and_shows_everything(make: Make) -> None:
    engine = make(playing(agreeing))
    agent = Agent().to(engine)
    assert wrong_answer(agent).backward() == []
    (call,) = backward_calls(engine)
    assert names_of(call) == ["first", "second"]
    assert call.temperature == 0
    system, user = (message["content"] for message in call.messages)
    assert system.startswith("You look back at one step")
    assert user == (
        "<task>\nSolve it.\n\nOne word.\n</task>\n\n<question>\nwhy?\n</question>\n\n"
        "<first>\nHINT-A\n</first>\n\n<second>\nHINT-B\n</second>\n\n<output>\nwrong\n</output>\n\n"
        f"<feedback>\n{EXPECTED}\n</feedback>\n\n"
        "How should each of these inputs change: first, second?\n"
        'Reply with one JSON object. Its keys: "first", "second". '
        "Each value is text."
    )
    assert texts(agent.first.instruction) == ["change first"]
    assert texts(agent.second.instruction) == ["change second"]


def test_an_instruction_gets_inputs_output_and_feedback_without_a_call() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    wrong_answer(agent).backward()
    assert agent.solve.instruction.grad == ta.Gradient(
        [
            ta.Feedback(
                EXPECTED,
                inputs={"question": "why?", "first": "HINT-A", "second": "HINT-B"},
                output="wrong",
            )
        ]
    )
    assert agent.first.instruction.grad == ta.Gradient(
        [ta.Feedback("change first", inputs={"question": "why?"}, output="HINT-A")]
    )


def test_no_call_when_only_the_instruction_needs_a_gradient(make: Make) -> None:
    engine = make(playing(agreeing))
    solve = nn.LLM("Solve it.").to(engine)
    nn.ExactMatchLoss()(solve(question="why?", hint="a constant"), "right").backward()
    assert backward_calls(engine) == []
    assert texts(solve.instruction) == [EXPECTED]


def test_an_input_that_needs_no_gradient_is_shown_but_not_asked_about() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    agent.second.requires_grad_(False)
    wrong_answer(agent).backward()
    (call,) = backward_calls(engine)
    assert names_of(call) == ["first"]
    assert "<second>\nHINT-B\n</second>" in user_text(call)
    assert agent.second.instruction.grad is None


def test_the_question_itself_can_want_a_gradient() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    question = ta.TextVariable("why?", requires_grad=True)
    nn.ExactMatchLoss()(agent(question), "right").backward()
    asked = [names_of(call) for call in backward_calls(engine)]
    assert asked == [["question", "first", "second"], ["question"], ["question"]]
    assert texts(question) == ["change question"] * 3


def test_right_answers_cost_nothing_backward() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    loss = nn.ExactMatchLoss()
    ta.mean([loss(agent(question="a?"), "wrong"), loss(agent(question="b?"), "right")]).backward()
    (call,) = backward_calls(engine)
    assert "b?" in user_text(call)
    assert len(agent.solve.instruction.grad or []) == 1

    agent.zero_grad()
    ta.mean([loss(agent(question="a?"), "wrong")]).backward()
    assert len(backward_calls(engine)) == 1
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_no_change_is_no_gradient_and_prunes_what_lies_behind() -> None:
    engine = Scripted(playing(lambda r: json.dumps({"first": None, "second": "be precise"})))
    agent = Agent().to(engine)
    wrong_answer(agent).backward()
    assert agent.first.instruction.grad is None
    assert texts(agent.second.instruction) == ["be precise"]


def test_feedback_of_all_successors_is_combined_before_a_node_is_pulled() -> None:
    class Diamond(nn.Module):
        def __init__(self) -> None:
            self.root = nn.LLM("Give a hint.")
            self.middle = nn.LLM("Middle.")
            self.left, self.right, self.end = nn.LLM("Left."), nn.LLM("Right."), nn.LLM("End.")

        def forward(self, question: str) -> Any:
            middle = self.middle(root=self.root(question=question))
            return self.end(left=self.left(middle=middle), right=self.right(middle=middle))

    def backward(request: Request) -> str:
        names = names_of(request)
        return json.dumps({n: f"{n} for {user_text(request).split()[1]}" for n in names})

    engine = Scripted(playing(backward))
    agent = Diamond().to(engine)
    wrong_answer(agent).backward()
    assert [names_of(call) for call in backward_calls(engine)] == [
        ["left", "right"],
        ["middle"],
        ["middle"],
        ["root"],
    ]
    last = user_text(backward_calls(engine)[-1])
    assert "<feedback>\n- middle for Left.\n- middle for Right.\n</feedback>" in last


def test_feedback_that_was_given_twice_is_shown_once() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    output = agent(question="why?")
    loss = nn.ExactMatchLoss()
    ta.mean([loss(output, "right"), loss(output, "right")]).backward()
    assert f"<feedback>\n{EXPECTED}\n</feedback>" in user_text(backward_calls(engine)[0])


def test_one_variable_in_two_slots_is_asked_about_under_both_names() -> None:
    engine = Scripted(playing(agreeing))
    both = nn.LLM("Solve it.").to(engine)
    x = ta.TextVariable("x", requires_grad=True)
    nn.ExactMatchLoss()(both(a=x, b=x), "right").backward()
    assert names_of(backward_calls(engine)[0]) == ["a", "b"]
    assert texts(x) == ["change a", "change b"]


def test_the_graph_above_a_tool_is_asked_what_the_tool_should_have_got() -> None:
    def shorten(text: str) -> str:
        """Keeps the first word."""
        return text.split()[0]

    engine = Scripted(playing(agreeing))
    hint = nn.LLM("Give a hint.").to(engine)
    output = ta.call_tool(shorten, text=hint(question="why?"))
    nn.ExactMatchLoss()(output, "right").backward(engine=engine)
    (call,) = backward_calls(engine)
    assert names_of(call) == ["text"]
    assert "<task>\nThe tool shorten. Keeps the first word.\n</task>" in user_text(call)
    assert texts(hint.instruction) == ["change text"]


def test_backwards_engine_answers_the_rule_and_only_the_rule() -> None:
    forward_engine, other = Scripted(forward_text), Scripted(agreeing)
    agent = Agent().to(forward_engine)
    wrong_answer(agent).backward(engine=other)
    assert len(other.calls) == 1 and len(forward_engine.calls) == 3


# Replies that cannot be used

BAD = {
    "cut off": Reply('{"first": "a", "second": "b"}', finish_reason="length"),
    "empty": Reply(""),
    "missing name": '{"first": "a"}',
    "extra name": '{"first": "a", "second": "b", "third": "c"}',
    "wrong type": '{"first": "a", "second": ["b"]}',
    "duplicate key": '{"first": "a", "first": "b", "second": "c"}',
    "prose": "This hint should be clearer. Hint 1: be right",
    "tags twice": "<first>a</first><first>b</first><second>c</second>",
    "unfinished thought": "<think><first>a</first><second>b</second>",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_reply_is_asked_again_once_with_the_error(bad: str | Reply, make: Make) -> None:
    replies = iter([bad, '{"first": "A", "second": "B"}'])
    engine = make(playing(lambda r: next(replies)))
    agent = Agent().to(engine)
    assert wrong_answer(agent).backward() == []
    first, again = backward_calls(engine)
    assert list(again.messages[: len(first.messages)]) == list(first.messages)
    assert "This reply cannot be used: " in user_text(again)
    assert texts(agent.first.instruction) == ["A"]
    assert texts(agent.second.instruction) == ["B"]


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_second_bad_reply_raises_and_changes_no_gradient(bad: str | Reply, make: Make) -> None:
    engine = make(playing(lambda r: bad))
    agent = Agent().to(engine)
    before = ta.Gradient(["from before"])
    agent.first.instruction.grad = before
    with pytest.raises(errors.ReplyError, match="also when asked again"):
        wrong_answer(agent).backward()
    assert len(backward_calls(engine)) == 2
    assert agent.first.instruction.grad is before
    assert agent.second.instruction.grad is agent.solve.instruction.grad is None


@pytest.mark.parametrize("failure", ["nonsense", "error"])
def test_one_of_several_samples_failing_is_recorded_and_the_others_stand(
    failure: str, make: Make
) -> None:
    def backward(request: Request) -> str:
        if "bad?" not in user_text(request) and "bad?" not in request.messages[1]["content"]:
            return agreeing(request)
        if failure == "error":
            raise errors.ServerError("500", status=500)
        return "nonsense"

    engine = make(playing(backward))
    agent = Agent().to(engine)
    loss = ta.mean([wrong_answer(agent, q) for q in ("good?", "bad?", "fine?")])
    with pytest.warns(ta.BackwardWarning, match="nothing passed backward through 1 of the calls"):
        failures = loss.backward()
    (failed,) = failures
    assert isinstance(failed.error, errors.ReplyError if failure == "nonsense" else errors.Error)
    assert failed.operation == "complete"
    assert failed.site is not None and failed.site[0] == __file__
    assert texts(agent.first.instruction) == ["change first"] * 2
    # The instruction's own evidence needs no call, so it is there for all three.
    assert [f.inputs and f.inputs["question"] for f in agent.solve.instruction.grad or []] == [
        "good?",
        "bad?",
        "fine?",
    ]


def test_where_all_fail_the_first_in_the_graphs_order_is_raised() -> None:
    release = threading.Event()

    async def backward(request: Request) -> str:
        which = "one" if "one?" in request.messages[1]["content"] else "two"
        if which == "one":
            await asyncio.to_thread(release.wait, 60)
        else:
            asyncio.get_running_loop().call_soon(release.set)
        raise errors.ServerError(f"500 for {which}")

    async def answer(request: Request) -> str:
        return forward_text(request) if request.purpose == "forward" else await backward(request)

    agent = Agent().to(Scripted(answer))
    with pytest.raises(errors.ServerError, match="500 for one"):
        ta.mean([wrong_answer(agent, "one?"), wrong_answer(agent, "two?")]).backward()
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_a_failure_keeps_the_graph_for_another_try() -> None:
    replies = iter(["nonsense", "nonsense", '{"first": "A", "second": "B"}'])
    agent = Agent().to(Scripted(playing(lambda r: next(replies))))
    loss = wrong_answer(agent)
    with pytest.raises(errors.ReplyError):
        loss.backward()
    loss.backward()
    assert texts(agent.first.instruction) == ["A"]


@pytest.mark.parametrize(
    "reply",
    [
        '```json\n{"first": "A", "second": "B"}\n```',
        '<think>\n{"first": "no"\n</think>\n\n{"first": "A", "second": "B"}',
        "<think>so <first>…</think><first>A</first>\n<second>B</second>",
    ],
)
def test_a_fence_and_a_finished_thought_around_a_reply_are_understood(reply: str) -> None:
    agent = Agent().to(Scripted(playing(lambda r: reply)))
    wrong_answer(agent).backward()
    assert texts(agent.first.instruction) == ["A"]
    assert texts(agent.second.instruction) == ["B"]


def test_tagged_engines_are_asked_for_tags() -> None:
    engine = Scripted(playing(lambda r: "So.\n<first>A</first>\n<second>NO CHANGE</second>"))
    engine.structured = "tagged"  # type: ignore[attr-defined]
    agent = Agent().to(engine)
    wrong_answer(agent).backward()
    (call,) = backward_calls(engine)
    assert call.schema is None
    assert user_text(call).endswith("<first>…</first>\n<second>…</second>")
    assert texts(agent.first.instruction) == ["A"]
    assert agent.second.instruction.grad is None


def test_an_engine_without_schemas_is_asked_for_tags_instead(make: Make) -> None:
    def backward(request: Request) -> str:
        if request.schema is not None:
            raise errors.SchemaRejected("response_format is not supported", status=400)
        return "<first>A</first><second>B</second>"

    engine = make(playing(backward))
    agent = Agent().to(engine)
    wrong_answer(agent).backward()
    assert [call.schema is None for call in backward_calls(engine)] == [False, True]
    assert texts(agent.second.instruction) == ["B"]


# The other rules


def test_textgrad_asks_about_each_predecessor_alone_and_shows_the_conversation(make: Make) -> None:
    engine = make(playing(agreeing))
    agent = Agent().to(engine)
    wrong_answer(agent).backward(rule=rules.textgrad)
    calls = backward_calls(engine)
    assert sorted(names_of(call) for call in calls) == [["first"], ["second"]]
    for call in calls:
        assert "HINT-A" in user_text(call) and "HINT-B" in user_text(call)
        assert "<task>\nSolve it.\n\nOne word.\n</task>" in user_text(call)
        assert f"The variable is {names_of(call)[0]}." in user_text(call)
        assert "null" not in user_text(call)
    assert texts(agent.first.instruction) == ["change first"]
    assert texts(agent.solve.instruction) == [EXPECTED]


def test_none_makes_no_call() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    wrong_answer(agent).backward(rule=rules.none)
    assert backward_calls(engine) == []
    assert texts(agent.solve.instruction) == [EXPECTED]
    assert agent.first.instruction.grad is None


def test_one_recorded_pass_under_three_rules(make: Make) -> None:
    engine = make(playing(agreeing))
    agent = Agent().to(engine)
    loss = wrong_answer(agent)
    counts = []
    for rule in (rules.semantic, rules.textgrad, rules.none):
        agent.zero_grad()
        before = len(backward_calls(engine))
        loss.backward(rule=rule, retain_graph=True)
        counts.append(len(backward_calls(engine)) - before)
        assert texts(agent.solve.instruction) == [EXPECTED]
    assert counts == [1, 2, 0]
    assert len(engine.calls) == 3 + 3


# Users' rules


def test_a_users_rule_gets_node_gradient_and_engine() -> None:
    seen = []
    here = threading.get_ident()

    def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        seen.append((node.operation.names, str(gradient), engine, threading.get_ident()))
        return [
            f"{name}: {text}" for name, text in zip(node.operation.names, node.inputs, strict=True)
        ]

    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    wrong_answer(agent).backward(rule=rule)
    assert seen[0] == (("instruction", "question", "first", "second"), EXPECTED, engine, here)
    assert len(seen) == 3
    assert texts(agent.solve.instruction) == ["instruction: Solve it."]
    assert texts(agent.first.instruction) == ["instruction: Give a hint."]


async def delegating(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    return await rules.textgrad(node, gradient, engine)


def delegating_plainly(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    return rules.semantic(node, gradient, engine)


@pytest.mark.parametrize("rule", [delegating, delegating_plainly])
def test_a_users_rule_can_pass_on_to_ours(rule: Any, make: Make) -> None:
    agent = Agent().to(make(playing(agreeing)))
    wrong_answer(agent).backward(rule=rule)
    assert texts(agent.first.instruction) == ["change first"]
    assert texts(agent.second.instruction) == ["change second"]


def test_a_users_rule_can_ask_a_module(make: Make) -> None:
    critic = nn.LLM("Criticise.").to(make(lambda r: "shorter"))

    async def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        with ta.no_grad():
            said = await critic(output=str(node.output), feedback=str(gradient))
        return [said] * len(node.predecessors)

    agent = Agent().to(make(forward_text))
    wrong_answer(agent).backward(rule=rule)
    assert texts(agent.first.instruction) == ["shorter"]


@pytest.mark.parametrize("returned", [["one too few"], "a str for four", 3, [1, 2, 3, 4], None])
def test_a_users_rule_of_the_wrong_shape_is_an_error(returned: Any) -> None:
    agent = Agent().to(Scripted(forward_text))
    with pytest.raises(errors.GraphError, match=r"the rule for <complete> returned"):
        wrong_answer(agent).backward(rule=lambda node, gradient, engine: returned)
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_what_a_users_rule_raises_is_raised() -> None:
    def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        raise ZeroDivisionError("mine")

    agent = Agent().to(Scripted(forward_text))
    with pytest.raises(ZeroDivisionError, match="mine"):
        wrong_answer(agent).backward(rule=rule)
    assert all(parameter.grad is None for parameter in agent.parameters())


# Defects of the reference (method.md 1-9, peers.md S): each is one that ours must not have


def graph_of(names: list[str], engine: Scripted) -> tuple[Any, dict[str, nn.LLM]]:
    hints = {name: nn.LLM(f"Hint for {name}.").to(engine) for name in names}
    solve = nn.LLM("Solve it.").to(engine)
    made = {name: hint(question="why?") for name, hint in hints.items()}
    return nn.ExactMatchLoss()(solve(**made), "right"), hints


def test_method_1_S1_S2_S4_every_hint_gets_exactly_its_own_whole_text(make: Make) -> None:
    names = [f"hint{i}" for i in range(1, 13)]
    said = {n: f"{n} is like hint1 and hint11.\nSecond line.\n\nbe right" for n in names}
    loss, hints = graph_of(names, make(playing(lambda r: json.dumps(said))))
    loss.backward()
    assert {name: texts(hint.instruction) for name, hint in hints.items()} == {
        name: [text] for name, text in said.items()
    }


def test_method_1_S1_tagged_text_keeps_its_last_character() -> None:
    engine = Scripted(playing(lambda r: "<hint1>be right</hint1><hint11>x\ny</hint11>"))
    engine.structured = "tagged"  # type: ignore[attr-defined]
    loss, hints = graph_of(["hint1", "hint11"], engine)
    loss.backward()
    assert texts(hints["hint1"].instruction) == ["be right"]
    assert texts(hints["hint11"].instruction) == ["x\ny"]


@pytest.mark.parametrize(
    "reply", ["**hint1:** be precise\n**hint2:** fine", '{"hint1": "be precise"}']
)
def test_method_1_S3_S4_a_missing_hint_is_an_error_not_an_empty_gradient(reply: str) -> None:
    loss, hints = graph_of(["hint1", "hint2"], Scripted(playing(lambda r: reply)))
    with pytest.raises(errors.ReplyError):
        loss.backward()
    assert all(hint.instruction.grad is None for hint in hints.values())


def test_method_4_S7_a_branch_that_nobody_reads_holds_nothing_up(make: Make) -> None:
    engine = make(playing(agreeing))
    hint, solve, other = nn.LLM("Give a hint."), nn.LLM("Solve it."), nn.LLM("Never used.")
    for module in (hint, solve, other):
        module.to(engine)
    shared = hint(question="why?")
    unread = other(hint=shared)
    nn.ExactMatchLoss()(solve(hint=shared), "right").backward()
    assert texts(hint.instruction) == ["change hint"]
    assert other.instruction.grad is None
    assert unread.data


def test_method_5_S8_a_wrong_key_is_one_call_and_an_error(make: Make) -> None:
    def refuse(request: Request) -> str:
        raise errors.AuthenticationError("wrong key", status=401)

    engine = make(refuse)
    with pytest.raises(errors.AuthenticationError):
        str(nn.LLM("Solve it.").to(engine)(question="why?"))
    assert len(engine.calls) == 1


def test_method_5_calls_that_differ_in_sampling_alone_are_kept_apart(tmp_path: Any) -> None:
    engine = Scripted(lambda r: f"{r.temperature} {r.max_tokens}")
    with engines.caching(tmp_path / "calls.sqlite"):
        said = [
            str(complete("Solve it.", {"q": "why?"}, engine=engine, **options))
            for options in ({}, {"temperature": 1.0}, {"max_tokens": 5}, {})
        ]
    assert said == ["0.0 None", "1.0 None", "0.0 5", "0.0 None"]
    assert len(engine.calls) == 3


def test_method_6_S12_the_same_question_twice_in_a_batch_is_two_samples() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    loss = nn.ExactMatchLoss()
    golds = ["one", "two"]
    ta.mean([loss(agent(question="why?"), gold) for gold in golds]).backward()
    assert texts(agent.solve.instruction) == [
        'The expected output is: "one".',
        'The expected output is: "two".',
    ]
    assert len(backward_calls(engine)) == 2


@pytest.mark.parametrize("rule", [rules.textgrad, rules.none])
def test_method_7_S13_an_ablation_stays_what_it_is_after_an_accepted_update(rule: Any) -> None:
    def answer(request: Request) -> str:
        if request.purpose == "optimize":
            return json.dumps({"prompt": f"Instruction number {len(engine.calls)}."})
        return "wrong" if request.purpose == "forward" else agreeing(request)

    engine = Scripted(answer)
    agent = Agent().to(engine)
    optimizer = ta.optim.SGD(agent.parameters(), engine=engine)
    for _ in range(3):
        optimizer.zero_grad()
        wrong_answer(agent).backward(rule=rule)
        assert optimizer.step().accepted
    asked = [names_of(call) for call in backward_calls(engine)]
    assert asked == ([] if rule is rules.none else [["first"], ["second"]] * 3)


# Defects of textgrad (peers.md T) and Trace (O)


def test_T1_a_sum_adds_each_gradient_once() -> None:
    x, y = (ta.TextVariable(t, requires_grad=True) for t in "xy")
    (x + y).backward("shorter")
    assert texts(x) == texts(y) == ["shorter"]
    a = ta.TextVariable("a", requires_grad=True)
    loss = nn.ExactMatchLoss()
    ta.mean([loss(a, "b"), loss(a, "c")]).backward()
    assert texts(a) == ['The expected output is: "b".', 'The expected output is: "c".']


def test_T2_a_mean_reaches_every_one_of_its_losses() -> None:
    leaves = [ta.TextVariable(str(i), requires_grad=True) for i in range(4)]
    ta.mean([nn.ExactMatchLoss()(leaf, "right") for leaf in leaves]).backward()
    assert [len(leaf.grad or []) for leaf in leaves] == [1, 1, 1, 1]


def test_T3_zero_grad_of_the_module_then_a_step_is_a_step_without_gradients() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    optimizer = ta.optim.SGD(agent.parameters(), engine=engine)
    wrong_answer(agent).backward()
    agent.zero_grad()
    calls = len(engine.calls)
    assert not optimizer.step().accepted
    assert len(engine.calls) == calls


def test_T4_nothing_of_a_pass_is_left_after_it() -> None:
    agent = Agent().to(Scripted(playing(agreeing)))
    nodes = []
    for _ in range(3):
        agent.zero_grad()
        output = agent(question="why?")
        nodes.append(weakref.ref(output.grad_fn))
        nn.ExactMatchLoss()(output, "right").backward()
        assert len(agent.solve.instruction.grad or []) == 1
        assert len(agent.first.instruction.grad or []) == 1
    del output
    assert [node() for node in nodes] == [None] * 3


def test_T9_a_fan_in_of_six_is_one_call() -> None:
    engine = Scripted(playing(agreeing))
    loss, hints = graph_of([f"hint{i}" for i in range(6)], engine)
    loss.backward()
    assert [names_of(call) for call in backward_calls(engine)] == [list(hints)]


_IN_ANOTHER_PROCESS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import textautograd as ta
from test_rules import Agent, playing, agreeing, wrong_answer
from textautograd.engines import Scripted
def answer(request):
    if request.purpose == "optimize":
        return json.dumps({"prompt": f"Do number {len(request.messages[-1]['content'])} better."})
    return playing(agreeing)(request)
engine = Scripted(answer)
agent = Agent().to(engine)
optimizer = ta.optim.SGD(agent.parameters(), engine=engine, examples=2, candidates=2, seed=3)
for step in range(2):
    optimizer.zero_grad()
    ta.mean([wrong_answer(agent, f"{i}?") for i in range(5)]).backward()
    optimizer.step()
print(json.dumps([
    [r.purpose, [dict(m) for m in r.messages], r.temperature, r.sample, r.schema]
    for r in engine.calls
]))
print(json.dumps(agent.state_dict()))
"""


def test_T10_the_same_requests_in_the_same_order_in_every_process() -> None:
    outputs = []
    for seed in ("0", "1", "42"):
        run = subprocess.run(
            [sys.executable, "-c", _IN_ANOTHER_PROCESS, os.path.dirname(__file__)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1] == outputs[2]
    purposes = [call[0] for call in json.loads(outputs[0].splitlines()[0])]
    assert purposes.count("backward") == 10 and purposes.count("optimize") == 12


def test_T13_a_second_backward_on_the_same_graph_raises() -> None:
    agent = Agent().to(Scripted(playing(agreeing)))
    loss = wrong_answer(agent)
    loss.backward()
    with pytest.raises(errors.GraphError, match="a second time"):
        loss.backward()
    assert len(agent.first.instruction.grad or []) == 1


def test_T14_backward_takes_an_engine_though_a_default_is_set() -> None:
    default, other = Scripted(playing(agreeing)), Scripted(agreeing)
    with ta.use_engine(default):
        agent = Agent()
        wrong_answer(agent).backward(engine=other)
    assert len(other.calls) == 1 and backward_calls(default) == []


def test_O3_examples_with_different_feedback_make_one_batch() -> None:
    agent = Agent().to(Scripted(playing(agreeing)))
    loss = nn.ExactMatchLoss()
    ta.mean([loss(agent(question=f"{i}?"), f"gold {i}") for i in range(3)]).backward()
    assert len(set(texts(agent.solve.instruction))) == 3


def test_O4_a_backward_prompt_shows_its_own_node_not_the_whole_graph() -> None:
    engine = Scripted(playing(agreeing))
    x: Any = ta.TextVariable("start", requires_grad=True)
    for i in range(30):
        x = nn.LLM(f"Step {i}.").to(engine)(text=x)
    nn.ExactMatchLoss()(x, "right").backward()
    lengths = [len(user_text(call)) for call in backward_calls(engine)]
    assert len(lengths) == 30
    assert max(lengths) - min(lengths) < 60


def test_a_failed_rule_names_the_line_of_the_call_it_belongs_to() -> None:
    engine = Scripted(lambda request: "wrong" if request.purpose == "forward" else "nonsense")
    agent = Agent().to(engine)
    with pytest.raises(errors.ReplyError) as caught:
        wrong_answer(agent).backward()
    (note,) = caught.value.__notes__
    assert "in backward through an LLM call" in note and __file__ in note


def test_a_rule_of_other_arguments_is_refused_before_any_call() -> None:
    engine = Scripted(lambda request: pytest.fail("called"))
    output = nn.LLM("Do.", engine=Scripted(lambda request: "wrong"))(
        ta.TextVariable("x", requires_grad=True)
    )
    for make in (lambda rule: rule, rules.blind):
        with pytest.raises(
            errors.UsageError, match=r"called as \(node, gradient, engine\), but .*takes"
        ):
            output.backward("f", rule=make(lambda node, gradient: [None, None]), engine=engine)
