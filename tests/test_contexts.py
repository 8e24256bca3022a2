"""Where programs run: threads, tasks of one loop, processes. Each has what it was given, and no
other's."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fault_server import answer, faults

import textautograd as ta
from textautograd import nn
from textautograd.data import Example
from textautograd.engines import HTTP, Budget, Cached, Reply, Request, Scripted, use_engine

KEY = "sk-planted-0123456789"


class Agent(nn.Module):
    def __init__(self, name: str) -> None:
        self.hint, self.solve = nn.LLM(f"{name} hints."), nn.LLM(f"{name} solves.")

    def forward(self, question: Any) -> ta.TextVariable:
        output: ta.TextVariable = self.solve(question=question, hint=self.hint(question=question))
        return output


def model(name: str) -> Scripted:
    """Answers with its own name, after others had their turn."""

    async def reply(request: Request) -> Reply:
        for _ in range(len(request.messages[-1]["content"]) % 7):
            await asyncio.sleep(0)
        said = f"{name} to {request.messages[-1]['content'].split()[1]}"
        if request.schema is not None:
            said = json.dumps(dict.fromkeys(request.schema["properties"], name))
        return Reply(said, usage=ta.engines.Usage(1, 1, calls=1))

    return Scripted(reply)


async def one_after_another(agent: Agent, n: int) -> tuple[Any, ...]:
    """One of many tasks: its own engine, budget and grad mode, held while others run."""
    name, recording = f"model-{n}", n % 2 == 0
    with ExitStack() as stack:
        budget = stack.enter_context(Budget(calls=3))
        stack.enter_context(use_engine(model(name)))
        if not recording:
            stack.enter_context(ta.no_grad())
        await asyncio.sleep(0)
        output = agent(ta.TextVariable(f"q{n}"))
        await asyncio.sleep(0)
        text = await output
        assert output.requires_grad == recording == ta.is_grad_enabled()
        grads = ()
        if recording:
            engine = model(f"back-{n}")
            found = ta.grad(output, list(agent.parameters()), f"feedback {n}", engine=engine)
            grads = tuple(g and g[0].text for g in found)
        await asyncio.sleep(0)
        return text, grads, budget.spent.calls


def test_tasks_of_one_loop_keep_engine_budget_and_grad_mode_apart() -> None:
    agents = [Agent("Ann"), Agent("Bob")]

    async def main() -> list[tuple[Any, ...]]:
        return await asyncio.gather(*(one_after_another(agents[n // 2 % 2], n) for n in range(60)))

    results = asyncio.run(main())
    for n, (text, grads, calls) in enumerate(results):
        recorded = n % 2 == 0
        assert text.startswith(f"model-{n} ")
        assert grads == ((f"back-{n}", f"feedback {n}") if recorded else ())
        assert calls == (3 if recorded else 2)
    assert all(p.grad is None for agent in agents for p in agent.parameters())
    assert ta.is_grad_enabled()


def test_two_agents_in_two_threads_with_crossed_contexts() -> None:
    """Each thread runs the other's agent within its own contexts, step by step in turn."""
    agents, barrier = (Agent("Ann"), Agent("Bob")), threading.Barrier(2)
    seen: dict[int, Any] = {}

    def work(n: int) -> None:
        with Budget() as budget, use_engine(model(f"model-{n}")):
            for turn in range(4):
                barrier.wait(60)
                agent = agents[(n + turn) % 2]
                if turn % 2:
                    with ta.no_grad():
                        output = agent(f"q{n}")
                        barrier.wait(60)
                        assert not output.requires_grad
                else:
                    output = agent(f"q{n}")
                    barrier.wait(60)
                    assert output.requires_grad
                assert output.data.startswith(f"model-{n} ")
            seen[n] = budget.spent.calls

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(work, n) for n in range(2)]:
            done.result()
    assert seen == {0: 8, 1: 8}


def echoing(body: dict[str, Any]) -> Any:
    return answer(f"{body['model']}: right")


def scored(output: Any, target: str) -> ta.TextVariable:
    loss: ta.TextVariable = nn.ExactMatchLoss()(output, target)
    return loss


EXECUTORS = {
    "spawn": lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")),
    "forkserver": lambda: ProcessPoolExecutor(2, mp_context=get_context("forkserver")),
    "threads": lambda: ThreadPoolExecutor(2),
}


@pytest.mark.skipif(sys.platform == "win32", reason="knows spawn only")
@pytest.mark.parametrize("kind", EXECUTORS)
def test_an_agent_with_its_engine_goes_to_a_pool(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was given goes along, the environment's is read there, the cache is shared; so is
    the context's engine."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment-0123")
    data = [Example(f"q{i}", "own: right") for i in range(4)]
    with faults(echoing) as server:
        own = {"cache": tmp_path / "calls.sqlite", "api_key": KEY}
        agent = nn.LLM("Solve it.", engine=ta.engine("own", api_base=server.url, **own))
        executor: Executor
        with EXECUTORS[kind]() as executor:
            for _ in range(2):
                assert ta.evaluate(agent, data, scored, executor=executor).accuracy == 1
            assert len(server.bodies) == 4  # the second time from the cache
            with use_engine(ta.engine("contexts", api_base=server.url)):
                result = ta.evaluate(nn.LLM("Solve it."), data, scored, executor=executor)
    assert [row.output for row in result.rows] == ["contexts: right"] * 4
    keys = {
        (b["model"], h["Authorization"]) for b, h in zip(server.bodies, server.headers, strict=True)
    }
    assert keys == {("own", f"Bearer {KEY}"), ("contexts", "Bearer sk-environment-0123")}


_FORKING = """
import multiprocessing, sys, textautograd as ta
from textautograd import nn
agent = nn.LLM("Solve it.", engine=ta.engine("m", api_base=sys.argv[1], cache=sys.argv[2]))
def ask(text):
    return agent(text).data
assert ask("before") == "m: right"
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(ask, ["before", "a", "b", "c"], chunksize=1) == ["m: right"] * 4
    assert ask("a") == ask("after") == "m: right"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_use_connections_and_files_of_their_own(tmp_path: Path) -> None:
    with faults(echoing) as server:
        done = subprocess.run(
            [sys.executable, "-c", _FORKING, server.url, str(tmp_path / "calls.sqlite")],
            capture_output=True,
            text=True,
            timeout=120,
        )
    said = [line for line in done.stderr.splitlines() if "fork" not in line]  # 3.12 warns of it
    assert (done.returncode, said) == (0, [])
    assert len(server.bodies) == 5


@pytest.mark.parametrize("name", ["own", "openai/gpt-4o-mini", "local"])
def test_a_pickled_engine_holds_the_key_that_it_was_given_and_no_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment-0123")
    where = {"api_base": "http://127.0.0.1:9/v1"} if name == "own" else {}
    free = ta.engine(name, **where, temperature=0.5, max_input_tokens=900)  # type: ignore[arg-type]
    sent = pickle.dumps(nn.LLM("Solve it.", engine=free))
    assert b"sk-" not in sent
    back = pickle.loads(sent).engine
    for attribute in ("identity", "structured", "max_input_tokens", "max_concurrency"):
        assert getattr(back, attribute) == getattr(free, attribute)
    if name != "local":
        assert KEY.encode() in pickle.dumps(ta.engine(name, **where, api_key=KEY))  # type: ignore[arg-type]


def test_engines_are_pickled_one_by_one_too(tmp_path: Path) -> None:
    async def twice(there: Any) -> list[str]:
        request = Request([{"role": "user", "content": "q"}])
        return [(await there.complete(request)).text for _ in range(2)]

    with faults(echoing) as server:
        one = Cached(HTTP("m", server.url, api_key=KEY), tmp_path / "calls.sqlite")
        asyncio.run(twice(one))  # with a connection and an open file
        assert asyncio.run(twice(pickle.loads(pickle.dumps(one)))) == ["m: right"] * 2
        back = pickle.loads(pickle.dumps(HTTP("m", server.url, api_key=KEY)))
        asyncio.run(twice(back))
    assert len(server.bodies) == 3
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    for loaded in (one, back):
        assert KEY not in repr(loaded) + loaded.identity
