"""`ta.grad`, which is `torch.autograd.grad` for texts and for arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rules import (
    EXPECTED,
    Agent,
    agreeing,
    backward_calls,
    names_of,
    playing,
    texts,
    wrong_answer,
)
from test_tape import Program, programs
from text_programs import Own, built, seeded

import textautograd as ta
from textautograd import errors, nn, numeric, rules
from textautograd.engines import Request, Scripted


def leaf(text: str = "x", name: str | None = None) -> ta.TextVariable:
    return ta.TextVariable(text, requires_grad=True, name=name)


def said(gradient: ta.Gradient | None) -> list[str] | None:
    return None if gradient is None else [f.text for f in gradient]


# On random programs


@given(programs(), st.data())
def test_it_is_what_backward_would_have_left_in_grad(program: Program, data: st.DataObject) -> None:
    """Of any set of inputs, leaves or not; and it touches nobody's `.grad`."""
    could = [i for i in range(len(program.slots)) if program.requires_grad(i)]
    variables = built(program)
    outputs, seeds = seeded(program, variables)
    if not outputs:
        return
    chosen = data.draw(st.lists(st.sampled_from(could), min_size=1, max_size=3))
    rule = Own(program)
    found = ta.grad(
        outputs,
        [variables[i] for i in chosen],
        seeds,
        rule=rule,
        retain_graph=True,
        allow_unused=True,
    )
    assert all(v.grad is None for v in variables)
    for i in could:
        variables[i].retain_grad()
    for n, (output, seed) in enumerate(zip(outputs, seeds, strict=True)):
        last = n == len(outputs) - 1
        output.backward(seed, rule=rule, retain_graph=not last)
    expected = [sorted(said(variables[i].grad) or []) for i in chosen]
    assert [sorted(said(g) or []) for g in found] == expected


@given(programs(), st.data())
def test_only_what_leads_to_an_input_is_pulled(program: Program, data: st.DataObject) -> None:
    """The oracle reads the program: a step is pulled if a gradient gets to it and, through one of
    its slots, an input can be got to."""
    could = [i for i in range(len(program.slots)) if program.requires_grad(i)]
    variables = built(program)
    outputs, seeds = seeded(program, variables)
    if not outputs:
        return
    chosen = data.draw(st.lists(st.sampled_from(could), min_size=1, max_size=2))
    rule = Own(program)
    inputs = [variables[i] for i in chosen]
    ta.grad(outputs, inputs, seeds, rule=rule, allow_unused=True)

    def leads(i: int) -> bool:
        return i in chosen or any(map(leads, program.slots[i]))

    seen = set(program.roots)
    for i, _, to in program.edges():
        if i in seen and leads(to):
            seen.add(to)
    expected = {i for i in seen if program.slots[i] and any(map(leads, program.slots[i]))}
    assert {int(names[0].split(".")[0]) for names in rule.seen} == expected
    assert len(rule.seen) == len(expected)


# What is paid for


def test_no_call_is_made_behind_the_inputs() -> None:
    """`torch.autograd.grad` with respect to an intermediate value."""
    engine = Scripted(playing(agreeing))
    first, second, last = (nn.LLM(text).to(engine) for text in ("One.", "Two.", "Three."))
    middle = second(text=first(text="why?"))
    loss = nn.ExactMatchLoss()(last(text=middle), "right")
    (gradient,) = ta.grad(loss, middle)
    assert said(gradient) == ["change text"]
    assert len(backward_calls(engine)) == 1
    assert all(llm.instruction.grad is None for llm in (first, second, last))
    (middle + "!").backward("go on")  # what lies behind the input was not freed
    assert len(backward_calls(engine)) == 2 and texts(first.instruction) == ["change text"]


def test_a_joint_rule_is_asked_about_the_inputs_alone_and_the_others_are_constants() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    (gradient,) = ta.grad(wrong_answer(agent), agent.second.instruction)
    (call,) = backward_calls(engine)
    assert names_of(call) == ["second"] and said(gradient) == ["change second"]


def test_an_instruction_alone_costs_no_call() -> None:
    engine = Scripted(playing(agreeing))
    agent = Agent().to(engine)
    (gradient,) = ta.grad(wrong_answer(agent), agent.solve.instruction)
    assert said(gradient) == [EXPECTED] and backward_calls(engine) == []


# As in torch


def test_one_or_several_inputs_and_always_a_tuple() -> None:
    """`torch.autograd.grad` returns a tuple also for one input."""
    x, y = leaf("x"), leaf("y")
    z = x + y
    assert ta.grad(z, x, "f", retain_graph=True) == (ta.Gradient(["f"]),)
    assert ta.grad([z], (x, y, x), ["f"]) == (ta.Gradient(["f"]),) * 3
    assert x.grad is y.grad is None


def test_several_outputs_are_combined() -> None:
    """`torch.autograd.grad(outputs, inputs, grad_outputs)`."""
    x = leaf("wrong")
    loss = nn.ExactMatchLoss()(x, "right")
    (gradient,) = ta.grad([x + "1", x + "2", loss], x, ["a", "b", None])
    assert said(gradient) == ["a", "b", EXPECTED]
    losses = [nn.ExactMatchLoss()(x, target) for target in ("right", "left")]
    assert len(ta.grad(losses, x)[0]) == 2


def test_a_generator_of_parameters_is_a_sequence_of_inputs() -> None:
    agent = Agent().to(Scripted(playing(agreeing)))
    found = ta.grad(wrong_answer(agent), agent.parameters())
    assert [said(g) for g in found] == [["change first"], ["change second"], [EXPECTED]]


def test_an_unused_input_is_an_error_before_any_call_or_none_if_allowed() -> None:
    """`allow_unused`; torch finds out after the backward pass, here nothing is paid for it."""
    engine = Scripted(playing(agreeing))
    agent, unused = Agent().to(engine), leaf(name="unused")
    loss = wrong_answer(agent)
    with pytest.raises(errors.GraphError, match=r"'unused'.*allow_unused=True"):
        ta.grad(loss, [agent.first.instruction, unused])
    assert backward_calls(engine) == []
    found = ta.grad(loss, [agent.first.instruction, unused], allow_unused=True)
    assert [said(g) for g in found] == [["change first"], None]
    assert ta.grad(leaf() + "!", unused, "f", allow_unused=True) == (None,)


def test_none_where_there_is_nothing_to_say() -> None:
    x = leaf("right")
    assert ta.grad(nn.ExactMatchLoss()(x, "right"), x) == (None,)


def test_an_output_can_be_an_input() -> None:
    y = leaf() + "!"
    assert ta.grad(y, y, "f") == (ta.Gradient(["f"]),)
    x = leaf()
    assert ta.grad([x + "!", x], x, ["f", "g"]) == (ta.Gradient(["g", "f"]),)


def test_the_graph_is_freed_unless_it_is_retained() -> None:
    """`retain_graph`."""
    x = leaf()
    y = x + "!"
    ta.grad(y, x, "f", retain_graph=True)
    ta.grad(y, x, "f")
    with pytest.raises(errors.GraphError, match="second time"):
        ta.grad(y, x, "f")


def test_an_input_whose_own_graph_was_freed_is_where_the_walk_ends() -> None:
    """Only what is executed needs its saved values (`retain_graph`)."""
    x = leaf()
    middle = x + "middle"
    (middle + "1").backward("f")
    assert ta.grad(middle + "2", middle, "g") == (ta.Gradient(["g"]),)
    with pytest.raises(errors.GraphError, match="second time"):
        ta.grad(middle + "3", [middle, x], "g")
    with pytest.raises(errors.GraphError, match="second time"):  # one way to x leads through it
        ta.grad(middle + x, [middle, x], "g")


def test_hooks_run_and_what_they_return_is_the_gradient() -> None:
    """`Tensor.register_hook`: of what is on the way, and of the inputs."""
    x, z = leaf("x"), leaf("z")
    y = x + z
    seen = []
    y.register_hook(lambda g: seen.append(("y", str(g))) or "from y")
    x.register_hook(lambda g: seen.append(("x", str(g))) or "from x")
    z.register_hook(lambda g: seen.append(("z", str(g))))
    assert ta.grad(y + "!", x, "f") == (ta.Gradient(["from x"]),)
    assert seen == [("y", "f"), ("x", "from y")]


def test_retained_grads_are_left_alone() -> None:
    y = (x := leaf()) + "!"
    y.retain_grad()
    ta.grad(y + "?", x, "f")
    assert y.grad is x.grad is None


def test_modified_after_it_was_used_raises_where_it_matters() -> None:
    """The version counter; only of what the walk goes through."""
    x, other = leaf("x", "x"), leaf("other", "other")
    y = (x + "1") + (other + "2")
    other.data = "changed"
    assert ta.grad(y, x, "f", retain_graph=True) == (ta.Gradient(["f"]),)
    with pytest.raises(errors.GraphError, match="'other' was modified"):
        ta.grad(y, other, "f")


@pytest.mark.parametrize(
    "outputs, inputs, gradients, said",
    [
        ("y", "x", None, "needs a seed"),
        ("constant", "x", "f", "does not require grad"),
        ("y", "constant", "f", "an input of grad, does not require grad"),
        (["y", "y"], "x", "f", "a list of 2 seeds"),
        (["y", "y"], "x", ["f"], "a list of 2 seeds"),
        ("y", "x", 5, "a gradient is a str or a Gradient"),
        ([], "x", "f", "grad needs outputs"),
        ("y", [], "f", "grad needs inputs"),
        (3, "x", "f", "the outputs of grad are variables, not int"),
        ("y", ["x", 3], "f", "the inputs of grad are variables, not int"),
    ],
)
def test_what_cannot_work_is_said(outputs: Any, inputs: Any, gradients: Any, said: str) -> None:
    x = leaf()
    known = {"x": x, "y": x + "!", "constant": ta.TextVariable("c", name="constant")}

    def find(value: Any) -> Any:
        if isinstance(value, list):
            return [known.get(v, v) for v in value]
        return known.get(value, value)

    with pytest.raises(errors.Error, match=said):
        ta.grad(find(outputs), find(inputs), gradients)


# Failures, as in backward


def test_one_of_several_samples_failing_is_a_warning_and_all_failing_raises() -> None:
    def backward(request: Request) -> str:
        return "nonsense" if "bad?" in request.messages[1]["content"] else agreeing(request)

    agent = Agent().to(Scripted(playing(backward)))
    loss = ta.mean([wrong_answer(agent, q) for q in ("good?", "bad?")])
    with pytest.warns(ta.BackwardWarning, match="through 1 of the calls") as caught:
        found = ta.grad(loss, agent.first.instruction, retain_graph=True)
    assert caught[0].filename == __file__
    assert said(found[0]) == ["change first"]
    with pytest.raises(errors.ReplyError):
        ta.grad(wrong_answer(agent, "bad?"), agent.first.instruction)


def test_rule_and_engine_are_backwards() -> None:
    engine, other = Scripted(playing(agreeing)), Scripted(agreeing)
    agent = Agent().to(engine)
    loss = wrong_answer(agent)
    first = agent.first.instruction
    assert ta.grad(loss, first, rule=rules.none, retain_graph=True) == (None,)
    ta.grad(loss, first, engine=other)
    assert (len(backward_calls(engine)), len(other.calls)) == (0, 1)


# Numbers


def test_arrays() -> None:
    x, y = (numeric.array(v, requires_grad=True) for v in ([1.0, 2.0], [3.0, 4.0]))
    z = x * y
    found = ta.grad(z, [x, y], [1.0, 10.0], retain_graph=True)
    assert [g.tolist() for g in found] == [[3.0, 40.0], [1.0, 20.0]]
    assert x.grad is y.grad is None
    (by_z,) = ta.grad(numeric.sum(numeric.exp(z)), z, retain_graph=True)
    assert np.allclose(by_z, np.exp(z.data))
    (by_x,) = ta.grad([numeric.sum(z), numeric.sum(x)], x)
    assert by_x.tolist() == [4.0, 5.0]
    with pytest.raises(errors.GraphError, match="needs a seed"):
        ta.grad(x * y, x)


def test_vjps_that_are_not_needed_are_not_computed() -> None:
    calls = []
    times = numeric.primitive(
        lambda x, y: x * y,
        lambda g, out, x, y: calls.append("x") or g * y,
        lambda g, out, x, y: calls.append("y") or g * x,
        name="times",
    )
    x, y = (numeric.array(v, requires_grad=True) for v in (2.0, 3.0))
    assert ta.grad(times(x, y), x) == (3.0,)
    assert calls == ["x"]
