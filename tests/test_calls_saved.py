"""Calls are the cost: programs make exactly those that they need.

Counted on the programs of `benchmarks.speed`; what each rule saves has its own tests elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import threading
import zlib
from pathlib import Path

import pytest

import textautograd as ta
from benchmarks.speed import CALLS, server, summary, table
from benchmarks.timed.chart import chart
from benchmarks.timed.ours import TwoSteps, calls
from benchmarks.timed.server import answer_to
from textautograd import nn, optim
from textautograd.engines import Request, Scripted
from textautograd.engines.cache import Cached, Coalesced


def as_the_server(request: Request) -> str:
    """What the benchmark's server replies."""
    body: dict[str, object] = {"model": "model", "messages": request.messages}
    if request.schema:
        body["response_format"] = {"json_schema": {"schema": request.schema}}
    reply = json.loads(answer_to(json.dumps(body).encode()))
    return str(reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("case", ["wide16", "batch32", "deep12", "evaluate1000"])
def test_a_program_makes_the_calls_that_it_needs_and_no_more(case: str) -> None:
    engine = Scripted(as_the_server)
    calls(engine)[case]()()
    assert len(engine.calls) == CALLS[case]["ours"]


def test_by_purpose_in_a_batch() -> None:
    """32 samples of two steps: the first step's instruction needs no call, nor does the judge."""
    engine = Scripted(as_the_server)
    calls(engine)["batch32"]()()
    purposes = [request.purpose for request in engine.calls]
    assert {p: purposes.count(p) for p in purposes} == {
        "forward": 64,
        "judge": 32,
        "backward": 32,
        "optimize": 2,
    }


def step(agent: nn.Module, engine: object, questions: list[str]) -> str:
    """One step of training; the instructions after it."""
    judge = nn.JudgeLoss("Correct answer: 42.").to(engine)  # type: ignore[arg-type]
    optimizer = optim.SGD(agent.to(engine).parameters(), engine=engine)  # type: ignore[arg-type]
    ta.mean([judge(agent(question)) for question in questions]).backward()
    optimizer.step()
    return str(agent.state_dict())


def test_a_second_run_is_served_from_the_cache(tmp_path: Path) -> None:
    questions = [f"Question {i}?" for i in range(8)]
    first, second = Scripted(as_the_server), Scripted(as_the_server)
    trained = step(TwoSteps(), Cached(first, tmp_path / "calls.sqlite"), questions)
    assert len(first.calls) == 8 * 4 + 2
    assert step(TwoSteps(), Cached(second, tmp_path / "calls.sqlite"), questions) == trained
    assert second.calls == []


def test_twin_samples_in_flight_are_one_sample() -> None:
    """All of them are written before the call that they wait for is answered."""
    written = threading.Event()

    async def answer(request: Request) -> str:
        if "First." in request.messages[0]["content"]:
            await asyncio.to_thread(written.wait)
        for _ in range(50):
            await asyncio.sleep(0)
        return as_the_server(request)

    engine = Scripted(answer)
    agent = nn.LLM("Answer.").to(Coalesced(engine))
    held = nn.LLM("First.").to(engine)("so that all eight begin together")
    outputs = [agent(question="What is 6*7?", given=held) for _ in range(8)]
    written.set()
    assert len({output.data for output in outputs}) == 1
    assert len(engine.calls) == 2


def test_the_tables_and_the_chart_of_the_benchmark() -> None:
    def run(system: str, seconds: float) -> dict[str, object]:
        counts = {"calls": 19, "connections": 1}
        return {"case": "wide16", "system": system, "seconds": seconds, **counts}

    node = {"forward_us": 7.0, "backward_us": 8.0, "seconds": 1.0, "calls": 0}
    rows = [run("ours", 0.2), run("ours", 0.3), run("textgrad", 3.0), run("ours", 0.21)]
    rows += [{"case": "exact 100", "system": "ours", **node}]
    rows += [{"case": "import", "system": "ours", "seconds": 0.1}]
    lines = summary(rows, 0.05)
    assert "| wide16 | ours | 0.20 s | 0.21 (0.20 to 0.30) | **1.05** | 19 | 1 |" in table(lines)
    assert "| exact 100 | ours | 7 (7 to 7) | 8 (8 to 8) |" in table(lines)
    assert chart(lines).count("0.21 s, 1.05 x path") == 1


def test_the_servers_replies_differ_with_the_request_alone() -> None:
    replies = [as_the_server(Request([{"role": "user", "content": c}])) for c in ("a", "b", "a")]
    assert replies[0] == replies[2] != replies[1]
    assert str(zlib.crc32(b'[{"role": "user", "content": "a"}]')) in replies[0]


def test_the_server_ends_where_measuring_fails() -> None:
    with pytest.raises(ZeroDivisionError), server(0):
        raise ZeroDivisionError
