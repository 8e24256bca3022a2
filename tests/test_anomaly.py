"""`ta.detect_anomaly`: which call, in which module, on which data, and what the model replied."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rules import Agent, Make, _async, _sync, agreeing, forward_text, playing, texts

import textautograd as ta
from textautograd import errors, nn, numeric, rules
from textautograd.engines import Reply, Request, Scripted


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


class Outer(nn.Module):
    def __init__(self) -> None:
        self.parts = nn.ModuleList([Agent()])

    def forward(self, question: str) -> Any:
        return self.parts[0](question)


def loss_of(agent: nn.Module, question: str = "why?") -> Any:
    return nn.ExactMatchLoss()(agent(question), "right")


def line_of(mark: str, file: str = __file__) -> int:
    lines = Path(file).read_text("utf-8").splitlines()
    (number,) = [n for n, line in enumerate(lines, 1) if line.rstrip().endswith(mark)]
    return number


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def test_a_reply_that_cannot_be_used_tells_the_whole_story(make: Make) -> None:
    agent = Outer().to(make(playing(lambda request: "No idea, sorry.")))
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss_of(agent).backward()
    (note,) = notes(caught.value)
    at = line_of("self.solve(question=question, first=first, second=second)", rules_file)
    assert note.splitlines() == [
        f"  in backward through an LLM call, at {rules_file}:{at}, in Agent.forward",
        "    module: parts.0.solve, the LLM of Outer",
        "    inputs: instruction='Solve it.', question='why?', first='HINT-A', second='HINT-B'",
        "    output: 'wrong'",
        "    feedback on the output: Gradient(['The expected output is: \"right\".'], 1 in all)",
        "    replies to the rule: 'No idea, sorry.' | 'No idea, sorry.'",
    ]


rules_file = str(Path(__file__).with_name("test_rules.py"))


def test_without_it_the_line_is_told_and_nothing_else(make: Make) -> None:
    agent = Outer().to(make(playing(lambda request: "No idea, sorry.")))
    with pytest.raises(errors.ReplyError) as caught:
        loss_of(agent).backward()
    (note,) = notes(caught.value)
    assert note.startswith(f"  in backward through an LLM call, at {rules_file}:")
    assert len(note.splitlines()) == 1


def test_one_sample_that_fails_raises_names_it_and_changes_nothing(make: Make) -> None:
    """`torch.autograd.detect_anomaly` raises, too; outside it is a warning and a `Failure`."""

    def backward(request: Request) -> str:
        return "nonsense" if "bad?" in request.messages[1]["content"] else agreeing(request)

    agent = Agent().to(make(playing(backward)))
    loss = ta.mean([loss_of(agent, question) for question in ("good?", "bad?", "fine?")])
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss.backward()
    assert "question='bad?'" in notes(caught.value)[0]
    assert all(p.grad is None for p in agent.parameters())
    with pytest.warns(ta.BackwardWarning):
        loss.backward()  # the graph is still there
    assert texts(agent.first.instruction) == ["change first"] * 2


def test_a_call_that_brings_no_reply_is_told_with_the_sample(make: Make) -> None:
    def backward(request: Request) -> Reply:
        raise errors.ServerError("500", status=500)

    with pytest.raises(errors.ServerError) as caught, ta.detect_anomaly():
        loss_of(Agent().to(make(playing(backward)))).backward()
    assert "module: solve, the LLM of Agent" in notes(caught.value)[0]
    assert "replies" not in notes(caught.value)[0]


@pytest.mark.parametrize("empty", ["", "  \n", ta.Gradient(), ta.Gradient([" ", ""])], ids=repr)
def test_an_empty_gradient_raises(empty: Any) -> None:
    def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        return [empty if name == "second" else "fine" for name in node.operation.names]

    agent = Agent().to(Scripted(forward_text))
    with pytest.raises(errors.GraphError, match="gradient for 'second' that is empty") as caught:
        with ta.detect_anomaly():
            loss_of(agent).backward(rule=rule, retain_graph=True)
    assert "question='why?'" in notes(caught.value)[0]
    assert all(p.grad is None for p in agent.parameters())
    loss_of(agent).backward(rule=rule)  # outside it passes


class Blank(ta.Function):
    @staticmethod
    def forward(ctx: Any, *texts: str) -> str:
        return "!".join(texts)

    @staticmethod
    def backward(ctx: Any, grad: ta.Gradient) -> Any:
        return ["fine", ""]


class Raising(Blank):
    @staticmethod
    def backward(ctx: Any, grad: ta.Gradient) -> Any:
        raise ZeroDivisionError("mine")


def test_an_empty_gradient_of_a_function_raises() -> None:
    x = ta.TextVariable("x", requires_grad=True)
    with pytest.raises(errors.GraphError, match="for 'input1' that is empty") as caught:
        with ta.detect_anomaly():
            Blank.apply("a", x).backward("f")
    assert "inputs: input0='a', input1='x'" in notes(caught.value)[0]


def test_no_change_and_right_answers_are_no_anomalies() -> None:
    engine = Scripted(playing(lambda r: json.dumps({"first": None, "second": "no change"})))
    agent, loss = Agent().to(engine), nn.ExactMatchLoss()
    with ta.detect_anomaly():
        ta.mean([loss(agent("a?"), "wrong"), loss(agent("b?"), "right")]).backward()
    assert agent.first.instruction.grad is None
    assert len(agent.solve.instruction.grad or []) == 1


@pytest.mark.parametrize("detects", [False, True])
def test_what_user_code_raises_keeps_its_type_and_gets_the_line(detects: bool) -> None:
    x = ta.TextVariable("x", requires_grad=True)
    agent = Agent().to(Scripted(forward_text))

    def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        raise ZeroDivisionError("mine")

    for start in (
        lambda: Raising.apply("a", x).backward("f"),  # the function
        lambda: loss_of(agent).backward(rule=rule),
    ):
        with pytest.raises(ZeroDivisionError, match="mine") as caught:
            if detects:
                with ta.detect_anomaly():
                    start()
            else:
                start()
        (note,) = notes(caught.value)
        assert ("inputs:" in note) is detects
        places = (f"{__file__}:{line_of('# the function')}", rules_file)
        assert any(f", at {place}" in note for place in places)


def test_what_a_module_replied_to_a_users_rule_is_told(make: Make) -> None:
    critic = nn.LLM("Criticise.").to(make(lambda r: "shorter"))

    async def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        said = await critic(output=str(node.output), feedback=str(gradient))
        raise errors.ReplyError(f"not this: {said}")

    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss_of(Agent().to(make(forward_text))).backward(rule=rule)
    assert "replies to the rule: 'shorter'" in notes(caught.value)[0]


def test_each_call_is_told_its_own_replies() -> None:
    def backward(request: Request) -> str:
        content = request.messages[1]["content"]
        return "nonsense" if "bad?" in content else json.dumps({"first": "1", "second": "2"})

    agent = Agent().to(Scripted(playing(backward)))
    loss = ta.mean([loss_of(agent, question) for question in ("good?", "bad?")])
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss.backward()
    assert notes(caught.value)[0].splitlines()[-1] == (
        "    replies to the rule: 'nonsense' | 'nonsense'"
    )


def test_long_texts_are_shortened() -> None:
    agent = Agent().to(Scripted(playing(lambda r: "x" * 10_000)))
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss_of(agent, "begin " + "y" * 10_000 + " end").backward()
    (note,) = notes(caught.value)
    assert "question='begin y" in note and "y end'" in note
    assert max(map(len, note.splitlines())) < 600


def test_a_forward_pass_outside_is_told_by_the_instructions_name() -> None:
    agent = Outer().to(Scripted(playing(lambda request: "nonsense")))
    loss = loss_of(agent)
    list(agent.named_parameters())  # as an optimizer does
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss.backward()
    assert "\n    module: parts.0.solve\n" in notes(caught.value)[0]


def test_a_module_that_is_called_by_itself_is_told_by_its_class() -> None:
    alone = nn.LLM("Solve it.").to(Scripted(playing(lambda request: "nonsense")))
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        alone(hint=ta.TextVariable("x", requires_grad=True)).backward("f")
    assert "\n    module: LLM\n" in notes(caught.value)[0]


def test_outside_no_module_is_recorded_and_no_reply_kept() -> None:
    agent = Agent().to(Scripted(playing(agreeing)))
    output = agent("why?")
    assert output.grad_fn is not None and output.grad_fn.within == ()
    with ta.detect_anomaly():
        output = agent("why?")
        assert output.grad_fn is not None
        assert output.grad_fn.within == (agent, agent.solve)
    output.backward("shorter")
    assert output.grad_fn.within == ()  # freed


def test_not_a_number() -> None:
    """What `torch.autograd.detect_anomaly` raises for."""
    with np.errstate(all="ignore"):
        x = numeric.array(0.0, requires_grad=True)
        y = numeric.log(x) * 0.0
        with pytest.raises(errors.GraphError, match=r"<log>.* that holds NaN") as caught:
            with ta.detect_anomaly():
                y.backward()
    assert "inputs: input0=" in notes(caught.value)[0]


# The context


def test_it_is_local_to_the_context_nests_and_decorates() -> None:
    """`torch.is_anomaly_enabled`; the decorators are those of `no_grad`."""
    assert not ta.is_anomaly_enabled()
    with ta.detect_anomaly():
        with ta.detect_anomaly(), ta.no_grad():
            assert ta.is_anomaly_enabled() and not ta.is_grad_enabled()
        assert ta.is_anomaly_enabled() and ta.is_grad_enabled()
        seen: list[bool] = []
        thread = threading.Thread(target=lambda: seen.append(ta.is_anomaly_enabled()))
        thread.start()
        thread.join()
        assert seen == [False]
        assert ta.map(lambda _: ta.is_anomaly_enabled(), [0]) == [True]

    @ta.detect_anomaly()
    def plain() -> bool:
        return ta.is_anomaly_enabled()

    @ta.detect_anomaly
    async def later() -> bool:
        await asyncio.sleep(0)
        return ta.is_anomaly_enabled()

    @ta.detect_anomaly
    def several() -> Iterator[bool]:
        yield ta.is_anomaly_enabled()

    async def two() -> list[bool]:
        async def outside() -> bool:
            await asyncio.sleep(0)
            return ta.is_anomaly_enabled()

        return list(await asyncio.gather(later(), outside()))

    assert plain() and list(several()) == [True]
    assert asyncio.run(two()) == [True, False]
    assert not ta.is_anomaly_enabled()


def test_a_blind_rule_is_told_of_the_whole_call() -> None:
    agent = Agent().to(Scripted(playing(lambda request: "nonsense")))
    with pytest.raises(errors.ReplyError) as caught, ta.detect_anomaly():
        loss_of(agent).backward(rule=rules.blind(rules.semantic))
    assert "first='HINT-A', second='HINT-B'" in notes(caught.value)[0]
    assert "replies to the rule: 'nonsense'" in notes(caught.value)[0]


def test_a_rule_of_too_many_gradients_and_a_hook_that_fails_are_told_with_the_sample(
    make: Make,
) -> None:
    agent = Outer().to(make(playing(agreeing)))

    def hook(gradient: Any) -> None:
        raise ZeroDivisionError("in the hook")

    with pytest.raises(errors.GraphError, match="returned 9 gradients") as caught:
        with ta.detect_anomaly():
            loss_of(agent).backward(rule=lambda node, gradient, engine: [None] * 9)
    assert "module: parts.0.solve, the LLM of Outer" in notes(caught.value)[0]
    assert "question='why?'" in notes(caught.value)[0]
    with pytest.raises(ZeroDivisionError, match="in the hook") as failed, ta.detect_anomaly():
        output = agent("why?")
        output.register_hook(hook)
        nn.ExactMatchLoss()(output, "right").backward()
    first, second = notes(failed.value)
    assert first == "  in a hook of this TextVariable"
    assert "module: parts.0.solve" in second and "question='why?'" in second
