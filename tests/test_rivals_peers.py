"""The rival optimizers have none of their sources' defects, and keep within an engine's limit."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rivals import Agent, asked, backed, made, world
from test_summarise import Limited, first_third, is_summary, long_text

import textautograd as ta
from textautograd import errors, nn, optim
from textautograd.engines import Request, Scripted
from textautograd.prompts.size import size
from textautograd.traced import Step

RIVALS = [optim.TextGrad, optim.OptoPrime, optim.COPRO]
HERE = Path(__file__).parent


def losing() -> float:
    return 1.0


class Tagged(Scripted):
    structured = "tagged"


def tagged(say: Callable[[list[str]], str]) -> Callable[[Request], str]:
    """Answers an optimizer's call by the tags that it asks for."""

    def reply(request: Request) -> str:
        if request.purpose == "forward":
            return world(request)
        names = re.findall(r"<([\w-]+)>…</\1>", request.messages[1]["content"])
        return say(names) if request.purpose == "optimize" else between(names, "better")

    return reply


def between(names: list[str], text: str) -> str:
    return "\n".join(f"<{name}>{text}</{name}>" for name in names)


UNUSABLE: dict[str, Callable[[list[str]], str]] = {
    "G1 an unfinished thought": lambda names: f"<think>I could {between(names, 'Do it')}",
    "G1 no end": lambda names: between(names, "Do it").rpartition("</")[0],
    "G1 no tags": lambda names: "Do it",
    "G2 two blocks": lambda names: f"```\n{between(names, 'A')}\n```\nor\n{between(names, 'B')}",
    "talk of the prompt": lambda names: between(names, "Do it as value-2 of attempt-1"),
}


@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("say", UNUSABLE.values(), ids=UNUSABLE)
def test_a_reply_that_cannot_be_used_changes_nothing(kind: Any, say: Any) -> None:
    engine = Tagged(tagged(say))
    agent = Agent().to(engine)
    optimizer = kind(agent.parameters(), engine=engine, candidates=2)
    before = agent.state_dict()
    backed(optimizer, agent, "q of hardness 9")
    result = optimizer.step(lambda: 0.0 if agent.state_dict() != before else 1.0)
    assert not result.accepted and "cannot be used, also when asked again" in str(result.why)
    assert agent.state_dict() == before


@pytest.mark.parametrize("kind", RIVALS)
def test_texts_that_look_like_prompts_come_through_whole_G3_G4(kind: Any) -> None:
    odd = "<side_info> <variable> <value-1> </instruction> {question} %s {{"
    new = f"```Answer\nit, with {odd}```"

    def reply(request: Request) -> str:
        assert request.schema is not None
        return json.dumps(dict.fromkeys(request.schema["properties"], new))

    engine = Scripted(reply)
    agent = nn.LLM(f"Solve it with {odd}", engine=engine)
    agent.engine = Scripted(lambda request: "wrong")
    optimizer = kind(agent.parameters(), engine=engine)
    nn.ExactMatchLoss()(agent(question="why? <side_info>"), "so").backward(
        rule=optimizer.rule, engine=engine
    )
    assert optimizer.step(lambda: 0.0 if agent.instruction.data == new else 1.0).accepted
    assert agent.instruction.data == new
    assert all(f"\nSolve it with {odd}\n" in text for text in asked(engine))


@pytest.mark.parametrize("kind", RIVALS)
def test_no_prompt_is_above_the_limit(kind: Any) -> None:
    def reply(request: Request) -> str:
        if is_summary(request):
            return first_third(request)
        assert request.schema is not None
        new = f"{request.sample}: solve it. {long_text(80)}"  # COPRO shows what was proposed
        return json.dumps(dict.fromkeys(request.schema["properties"], new))

    limit = 3000
    engine = Limited(reply, limit)
    agent = Agent().to(Scripted(world))
    optimizer = kind(agent.parameters(), engine=engine, candidates=3, check=lambda *a: None)
    story = long_text(60).replace("\n", " ")
    questions = [f"{story} {i} of hardness 9" for i in range(3)]
    losses = [nn.ExactMatchLoss()(agent(question=q), "right") for q in questions]
    ta.mean(losses).backward(rule=optimizer.rule, engine=engine)
    for _ in range(3):
        result = optimizer.step(losing)
        assert any(candidate.state for candidate in result.candidates)
    assert engine.summaries and engine.others
    assert all(size(call.messages, call.schema) <= limit for call in engine.calls)


@pytest.mark.parametrize("kind", RIVALS)
def test_what_can_be_no_shorter_is_an_error_before_it_is_paid(kind: Any) -> None:
    engine = Limited(world, 1000)
    agent = Agent().to(Scripted(world))
    agent.hint.instruction.data = agent.solve.instruction.data = "Solve it. " * 1000
    optimizer = kind(agent.parameters(), engine=engine)
    loss = nn.ExactMatchLoss()(agent(question="of hardness 9"), "right")
    loss.backward(rule=ta.rules.none if kind is optim.TextGrad else optimizer.rule)
    with pytest.raises(errors.ContextOverflowError):
        optimizer.step(losing)
    assert not engine.calls


@pytest.mark.parametrize("kind", [optim.TextGrad, optim.OptoPrime])
def test_each_feedback_is_shown_once_and_all_of_them_are_T1_T2(kind: Any) -> None:
    agent, engine, optimizer = made(kind)
    outputs = [agent(question=f"q{i} of hardness 9") for i in range(4)]
    losses = [nn.ExactMatchLoss()(x, f"right {i}") for i, x in enumerate(outputs)]
    ta.mean([*losses, *losses]).backward(rule=optimizer.rule)
    optimizer.step()
    for prompt in asked(engine):
        for i in range(4):
            assert prompt.count(f"\nq{i} of hardness 9\n") == 1
    backward = asked(engine, "backward")
    assert len(backward) == (0 if kind is optim.OptoPrime else 12)
    for i in range(4):
        shown = asked(engine) if kind is optim.OptoPrime else backward
        assert {text.count(f'"right {i}"') for text in shown} <= {0, 1}
        assert any(f'"right {i}"' in text for text in shown)


@pytest.mark.parametrize("kind", [optim.TextGrad, optim.OptoPrime])
def test_what_a_sample_that_comes_twice_asks_is_shown_once(kind: Any) -> None:
    agent, engine, optimizer = made(kind)
    backed(optimizer, agent, *2 * ["q of hardness 9"])
    optimizer.step()
    for prompt in asked(engine):
        assert prompt.count("\nq of hardness 9\n") == 1
        assert prompt.count("= complete(") == (4 if kind is optim.OptoPrime else 0)


@pytest.mark.parametrize("kind", [optim.TextGrad, optim.OptoPrime])
def test_after_zero_grad_of_the_module_a_step_asks_nothing_T3(kind: Any) -> None:
    agent, engine, optimizer = made(kind, candidates=2)
    backed(optimizer, agent, "q of hardness 9")
    optimizer.step(losing)
    calls = len(engine.calls)
    agent.zero_grad()
    assert optimizer.step(losing).why == "no gradient" and len(engine.calls) == calls


@pytest.mark.parametrize("kind", [optim.TextGrad, optim.OptoPrime])
def test_a_chain_of_1500_calls_is_no_recursion_T8(kind: Any) -> None:
    engine = Scripted(world)
    call, p = nn.LLM("Give", engine=engine), nn.Parameter("p", name="p")
    call.instruction.requires_grad = False
    number = iter(range(1500))
    call.engine = Scripted(lambda request: f"out {next(number)}")
    x: ta.TextVariable = p
    for _ in range(1500):
        x = call(question=x)
    optimizer = kind([p], engine=engine)
    x.backward("better", rule=optimizer.rule, engine=engine)
    assert len(repr(list(p.grad or ()))) < 10_000
    assert optimizer.step().accepted
    del x
    p.grad = None


def test_nothing_keeps_the_graph_O5() -> None:
    agent, _, optimizer = made(optim.OptoPrime, memory_size=2)
    backed(optimizer, agent, "a of hardness 9", "b of hardness 9")
    optimizer.step(losing)
    optimizer.zero_grad()
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Step)]


@pytest.mark.parametrize("kind", RIVALS)
@pytest.mark.parametrize("error", [errors.EngineError, RuntimeError])
def test_a_call_that_fails_is_not_made_again_O8(kind: Any, error: Any) -> None:
    def reply(request: Request) -> str:
        if request.purpose == "optimize":
            raise error("broken")
        return world(request)

    agent, engine, optimizer = made(kind, reply, candidates=2 if kind is optim.COPRO else 1)
    agent.hint.instruction.requires_grad = False
    backed(optimizer, agent, "q of hardness 9")
    with pytest.raises(error, match="broken"):
        optimizer.step(losing)
    assert len(asked(engine)) == 1


_IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import hashlib
from test_rivals_peers import RIVALS, losing
from test_rivals import backed, made
for kind in RIVALS:
    agent, engine, optimizer = made(kind, candidates=2)
    for _ in range(3):
        optimizer.zero_grad()
        backed(optimizer, agent, *[f"q{i} of hardness 9" for i in range(3)])
        optimizer.step(losing)
    print(len(engine.calls), hashlib.sha256(repr(engine.calls).encode()).hexdigest())
"""


def test_every_process_asks_the_same_in_the_same_order_T10() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _IN_ANOTHER_PROCESS, str(HERE)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert said[0] == said[1] and len(said[0].splitlines()) == 3


@st.composite
def graphs(draw: Any) -> list[list[int]]:
    """For each call which earlier calls it uses."""
    return [
        draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else []
        for i in range(draw(st.integers(1, 12)))
    ]


@settings(max_examples=40, deadline=None)
@given(graphs(), st.integers(1, 6), st.integers(1, 6))
def test_optoprimes_prompt_is_linear_in_batch_and_graph_O4(
    graph: list[list[int]], batch: int, times: int
) -> None:
    """One line for each call that feedback comes through, and each text once."""
    number = iter(range(10_000))
    model = Scripted(lambda request: f"out-{next(number)}.")
    calls = [nn.LLM(f"Node {i}", engine=model) for i in range(len(graph))]
    losses, edges = [], 0
    for sample in range(batch):
        question: ta.TextVariable | str = f"question {sample}."
        for _ in range(times):  # in series
            values: list[ta.TextVariable] = []
            for call, uses in zip(calls, graph, strict=True):
                values.append(call(question=question, **{f"x{j}": values[j] for j in uses}))
                edges += 2 + len(uses)
            question = ta.cat(values, sep=" + ")
        losses.append(nn.ExactMatchLoss()(question, f"right {sample}"))
    ta.mean(losses).backward(rule=optim.OptoPrime.rule)
    engine = Scripted(lambda r: json.dumps(dict.fromkeys(r.schema["properties"], "new")))  # type: ignore[index]
    params = [call.instruction for call in calls]
    optim.OptoPrime(params, engine=engine, check=lambda *a: None).step()
    (prompt,) = asked(engine)
    code = prompt.partition("</code>")[0]
    nodes = batch * times * len(graph)
    assert code.count("= complete(") == nodes == next(number)
    for text in [f"out-{i}." for i in range(nodes)] + [f"question {i}." for i in range(batch)]:
        assert prompt.count(f"\n{text}\n</value") == 1
    joined = batch * (times - 1)  # texts of exact operations: as long as their parts together
    assert code.count("= made(") == (joined if len(graph) > 1 else 0)
    assert len(prompt) < 2000 + 150 * len(graph) + 80 * (nodes + edges + joined)
