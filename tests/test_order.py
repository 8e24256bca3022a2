"""The same program gives the same prompts, gradients and states, whoever answers first.

Under every PYTHONHASHSEED, number of threads and order of completion. Only the order in which an
engine receives calls that do not depend on one another may differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import textautograd as ta
from textautograd import nn, optim, rules
from textautograd.backward import BackwardWarning
from textautograd.data import Example
from textautograd.engines import Reply, Request, Scripted
from textautograd.errors import EngineError, ReplyError

# Worlds where every reply is a digest of the whole request: one prompt that differs changes all
# that comes after it.

World = Callable[[Request], str]


def said(request: Request) -> str:
    return json.dumps(
        [
            request.purpose,
            [dict(m) for m in request.messages],
            request.temperature,
            request.max_tokens,
            request.schema,
            request.sample,
        ]
    )


def world(salt: int) -> World:
    """One of many: right or wrong, usable or not, all by chance that the request decides."""

    def reply(request: Request) -> str:
        digest = hashlib.sha256(f"{salt} {said(request)}".encode()).hexdigest()
        fate = hashlib.sha256(f"{salt} {request.messages[1]}".encode()).hexdigest()[0]
        if request.purpose == "forward":
            if "question 7?" in request.messages[1]["content"] and fate in "0123":
                raise EngineError(f"no answer to {digest[:6]}")
            return "right" if int(digest[:4], 16) % 3 == 0 else f"wrong {digest[:6]}"
        if request.purpose == "optimize":
            return json.dumps({"prompt": f"Do it as {digest[:6]} says."})
        if request.purpose == "judge":
            score = int(digest[:2], 16) / 255
            return json.dumps({"score": score, "feedback": f"Seen: {digest[:6]}."})
        if fate in "01":
            return f"no JSON at all, {digest[:6]}"
        assert request.schema is not None
        return json.dumps({n: f"{n} as {digest[:6]}" for n in request.schema["properties"]})

    return reply


class AtOnce(Scripted):
    max_concurrency = 4


class Order(Scripted):
    """An async engine that lets calls wait until the loop has nothing else to do, and then answers
    the one that `choose` picks of those that wait, by its place in their order of arrival."""

    max_concurrency = 4

    def __init__(self, answer: World, choose: Callable[[int], int]) -> None:
        super().__init__(self._answer)
        self.answer = answer
        self.choose = choose
        self.waiting: list[asyncio.Event] = []

    async def _answer(self, request: Request) -> str:
        mine = asyncio.Event()
        self.waiting.append(mine)
        if len(self.waiting) == 1:
            self.task = asyncio.get_running_loop().create_task(self._let_go())
        await mine.wait()
        return self.answer(request)

    async def _let_go(self) -> None:
        while self.waiting:
            for _ in range(8):
                await asyncio.sleep(0)
            self.waiting.pop(self.choose(len(self.waiting))).set()


class Threaded:
    """A user's engine: each answer is written in a thread."""

    identity = "threaded"
    max_concurrency = 4

    def __init__(self, answer: World) -> None:
        self.answer = answer
        self.calls: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.calls.append(request)
        return Reply(await asyncio.to_thread(self.answer, request))


ENGINES: dict[str, Callable[[World], Any]] = {
    "at once": AtOnce,
    "first come first served": lambda answer: Order(answer, lambda n: 0),
    "last come first served": lambda answer: Order(answer, lambda n: -1),
    "any order": lambda answer: Order(answer, random.Random(0).randrange),
    "any other order": lambda answer: Order(answer, random.Random(1).randrange),
    "threads": Threaded,
}


# A program that uses all of it


class Agent(nn.Module):
    def __init__(self, engine: Any) -> None:
        self.hints = nn.ModuleDict({n: nn.LLM(f"Hint {n}.", engine=engine) for n in "abc"})
        self.solve = nn.LLM("Solve it.", engine=engine)

    def forward(self, question: str) -> ta.TextVariable:
        a = self.hints["a"](question=question)
        b = self.hints["b"](question=question, hint=a)
        c = self.hints["c"](question=question)
        output: ta.TextVariable = self.solve(question=question, a=a, b=b, c=c)
        return output


EXAMPLES = [Example(f"question {i}?", "right") for i in range(9)]


def shown(module: nn.Module) -> dict[str, Any]:
    return {
        name: [[f.text, f.inputs, f.output] for f in parameter.grad or ()]
        for name, parameter in module.named_parameters()
    }


def program(engine: Any, threads: int | None) -> dict[str, Any]:
    """Backward passes, gated steps and a run of `fit`: everything that may be seen of them, with
    the requests in no order."""
    agent, seen = Agent(engine), {}
    judge = nn.JudgeLoss("Is it good?", engine=engine)
    optimizer = optim.SGD(agent.parameters(), engine=engine, candidates=3, seed=5)
    for rule in (rules.semantic, rules.textgrad):
        optimizer.zero_grad()
        losses = ta.map(lambda e: judge(agent(e.question)), EXAMPLES[:4], max_workers=threads)
        failures = ta.mean(losses).backward(rule=rule)
        result = optimizer.step(lambda: ta.evaluate(agent, EXAMPLES, nn.ExactMatchLoss()).loss)
        seen[f"step with {rule.__name__}"] = {
            "failures": [str(failure) for failure in failures],
            "gradients": shown(agent),
            "result": str(result),
            "candidates": [[c.state, c.loss, c.error, c.problems] for c in result.candidates],
        }
    with tempfile.TemporaryDirectory() as folder:
        history = ta.fit(
            agent,
            EXAMPLES,
            nn.ExactMatchLoss(),
            optimizer,
            val=EXAMPLES[::-1],
            steps=3,
            batch_size=3,
            run_dir=folder,
            seed=2,
            progress=False,
        )
        names = ("metrics.jsonl", "states.jsonl", "best.json", "checkpoint.json")
        seen["files"] = {name: (Path(folder) / name).read_text("utf-8") for name in names}
    seen["metrics"], seen["states"] = history.metrics, history.states
    seen["state"], seen["usage"] = agent.state_dict(), repr(history.usage)
    seen["requests"] = sorted(map(said, engine.calls))
    return json.loads(json.dumps(seen))  # type: ignore[no-any-return]


def says_much(seen: dict[str, Any]) -> bool:
    """Whether all that can happen has happened: failures, rewrites that won and lost, early ends.
    Where it has not, the same result every time would mean little."""
    return bool(
        (seen["step with semantic"]["failures"] or seen["step with textgrad"]["failures"])
        and any(step["failed"] for step in seen["metrics"])
        and {step["accepted"] for step in seen["metrics"]} == {True, False}
        and any(state["error"] for state in seen["states"])
        and any(step["gate_samples_saved"] for step in seen["metrics"])
        and {json.loads(call)[0] for call in seen["requests"]}
        == {"forward", "backward", "judge", "optimize"}
    )


@pytest.fixture(scope="module")
def expected() -> tuple[int, dict[str, Any]]:
    """A world in which everything happens, and what does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BackwardWarning)
        for salt in range(100):
            try:
                seen = program(AtOnce(world(salt)), threads=1)
            except ReplyError:  # every call of a backward pass failed: a run that ends early
                continue
            if says_much(seen):
                return salt, seen
    raise AssertionError("no such world")


@pytest.mark.filterwarnings("ignore::textautograd.backward.BackwardWarning")
@pytest.mark.parametrize(
    ("name", "threads"),
    [*((name, None) for name in ENGINES), ("at once", 3), ("any order", 1), ("threads", 3)],
)
def test_threads_and_order_of_completion_change_nothing(
    name: str, threads: int | None, expected: tuple[int, dict[str, Any]]
) -> None:
    salt, seen = expected
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert program(ENGINES[name](world(salt)), threads) == seen
    finally:
        sys.setswitchinterval(interval)


_IN_ANOTHER_PROCESS = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
from test_order import ENGINES, BackwardWarning, program, world
warnings.simplefilter("ignore", BackwardWarning)
print(json.dumps(program(ENGINES[sys.argv[2]](world(int(sys.argv[3]))), threads=None)))
"""


def test_hashes_change_nothing(expected: tuple[int, dict[str, Any]]) -> None:
    """Nor does another process."""
    salt, seen = expected
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _IN_ANOTHER_PROCESS, os.path.dirname(__file__), name, str(salt)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, name in (("0", "at once"), ("1", "any order"), ("2", "threads"))
    ]
    for process in processes:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert json.loads(output) == seen


@pytest.mark.filterwarnings("ignore::textautograd.backward.BackwardWarning")
@pytest.mark.parametrize("limit", [1, 64])
def test_how_many_calls_an_engine_takes_changes_no_decision(
    limit: int, expected: tuple[int, dict[str, Any]]
) -> None:
    """It changes how far a candidate that has lost is evaluated, and with it forward calls only."""
    salt, seen = expected
    engine = AtOnce(world(salt))
    engine.max_concurrency = limit
    found = program(engine, threads=None)

    def decisions(seen: dict[str, Any]) -> list[Any]:
        told = ("gate_samples_saved", "why")  # how far a candidate got before it had lost
        return [
            [{k: v for k, v in step.items() if k not in told} for step in seen["metrics"]],
            [seen[what] for what in ("state", "step with semantic", "step with textgrad")],
            [call for call in seen["requests"] if json.loads(call)[0] != "forward"],
        ]

    assert decisions(found) == decisions(seen)
    assert found["requests"] != seen["requests"]
