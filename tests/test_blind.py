"""`rules.blind`: a rule that sees one predecessor at a time, as an instance of a joint one."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from test_rules import (
    EXPECTED,
    Agent,
    Make,
    _async,
    _sync,
    agreeing,
    backward_calls,
    forward_text,
    names_of,
    playing,
    texts,
    user_text,
    wrong_answer,
)
from test_tape import Program, programs
from text_programs import Own, built, seeded

import textautograd as ta
from textautograd import errors, numeric, rules
from textautograd.engines import Request, Scripted


def gradients(program: Program, rule: Any) -> dict[int, list[str]]:
    variables = built(program)
    outputs, seeds = seeded(program, variables)
    if not outputs:
        return {}
    wanted = [variables[i] for i in program.wanted]
    found = ta.grad(outputs, wanted, seeds, rule=rule, allow_unused=True)
    pairs = zip(program.wanted, found, strict=True)
    return {i: [f.text for f in g] for i, g in pairs if g is not None}


@given(programs())
def test_blind_equals_a_joint_rule_that_ignores_neighbours(program: Program) -> None:
    own = Own(program)
    assert gradients(program, rules.blind(own)) == gradients(program, own)


@given(programs())
def test_once_per_node_if_joint_and_once_per_edge_if_blind(program: Program) -> None:
    """The oracle reads the program: a node counts if a gradient gets to it, an edge if besides what
    it leads to wants one."""
    joint, blind = Own(program), Own(program)
    gradients(program, joint)
    gradients(program, rules.blind(blind))
    nodes = [i for i in program.paths() if program.slots[i]]
    edges = [
        f"{i}.{slot}"
        for i in nodes
        for slot, p in enumerate(program.slots[i])
        if program.requires_grad(p)
    ]
    assert sorted(joint.seen) == sorted(
        tuple(f"{i}.{slot}" for slot in range(len(program.slots[i]))) for i in nodes
    )
    assert sorted(blind.seen) == sorted((edge,) for edge in edges)


def multiply(x: str, y: str) -> str:
    """Multiplies two numbers."""
    return f"{float(x) * float(y):g}"


def test_neighbours_are_necessary() -> None:
    """z = x * y at x = 0. What a blind rule is given for x is the same for y = 1 and for y = 2, so
    whatever function it is, it says the same; the derivative is y."""
    given: dict[str, list[Any]] = {"blind": [], "joint": []}

    def derivative(node: Any, gradient: ta.Gradient, engine: Any) -> list[str]:
        x, y = map(float, node.inputs)
        return [f"{float(str(gradient)) * y:g}", f"{float(str(gradient)) * x:g}"]

    for y in ("1", "2"):
        x = ta.TextVariable("0", requires_grad=True)

        def see(node: Any, gradient: Any, engine: Any, to: str) -> Any:
            operation = node.operation
            told = (operation.names, node.inputs, node.output, operation.task, str(gradient))
            given[to].append((*told, len(node.predecessors)))
            return [None] * len(node.predecessors)

        z = ta.call_tool(multiply, x=x, y=y)
        blind = rules.blind(lambda node, g, engine: see(node, g, engine, "blind"))
        z.backward("1", rule=blind, retain_graph=True)
        z.backward("1", rule=lambda n, g, e: see(n, g, e, "joint"), retain_graph=True)
        z.backward("1", rule=derivative)
        a = numeric.array(0.0, requires_grad=True)
        (exact,) = ta.grad(a * float(y), a)
        assert np.allclose(float(texts(x)[0]), exact) and texts(x) == [y]
    assert given["blind"][0] == given["blind"][1]
    assert given["joint"][0] != given["joint"][1]


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


def test_the_semantic_rule_made_blind_asks_about_each_input_and_shows_no_other(make: Make) -> None:
    engine = make(playing(agreeing))
    agent = Agent().to(engine)
    wrong_answer(agent).backward(rule=rules.blind(rules.semantic))
    calls = backward_calls(engine)
    assert sorted(map(names_of, calls)) == [["first"], ["second"]]
    for call in calls:
        hints = "HINT-A" in user_text(call), "HINT-B" in user_text(call)
        assert hints == (names_of(call) == ["first"], names_of(call) == ["second"])
        assert "why?" not in user_text(call) and "Solve it." not in user_text(call)
    assert texts(agent.first.instruction) == ["change first"]
    assert texts(agent.second.instruction) == ["change second"]
    (evidence,) = agent.solve.instruction.grad or []
    assert (evidence.text, evidence.inputs, evidence.output) == (EXPECTED, {}, "wrong")


def test_what_needs_no_waiting_stays_in_the_callers_thread() -> None:
    threads = set()

    def answer(request: Request) -> str:
        threads.add(threading.get_ident())
        return playing(agreeing)(request)  # type: ignore[return-value]

    wrong_answer(Agent().to(Scripted(answer))).backward(rule=rules.blind(rules.semantic))
    assert threads == {threading.get_ident()}


def test_one_failing_call_fails_the_node(make: Make) -> None:
    def answer(request: Request) -> str:
        return "nonsense" if names_of(request) == ["second"] else agreeing(request)

    agent = Agent().to(make(playing(answer)))
    with pytest.raises(errors.ReplyError, match="also when asked again"):
        wrong_answer(agent).backward(rule=rules.blind(rules.semantic))
    assert agent.first.instruction.grad is None


def test_what_cannot_be_made_blind_is_refused_and_so_is_a_wrong_count() -> None:
    with pytest.raises(errors.UsageError, match="a rule is a function"):
        rules.blind(None)  # type: ignore[arg-type]
    agent = Agent().to(Scripted(forward_text))
    with pytest.raises(errors.UsageError, match="a rule is a function"):
        wrong_answer(agent).backward(rule=rules.blind)
    two = rules.blind(lambda node, gradient, engine: ["a", "b"])
    with pytest.raises(errors.GraphError, match=r"returned 2 gradients for the one.*'instruction'"):
        wrong_answer(agent).backward(rule=two)
    assert repr(rules.blind(rules.semantic)) == "blind(semantic)"
