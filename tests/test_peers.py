"""Defects of other frameworks that have a counterpart here, each with a test that it is not ours.

Most of these tests stand beside what they test: README.md lists which defect has which. Here are
those that had no other place, and a check that the list tells the truth.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import textautograd as ta
from textautograd import engines, nn, optim
from textautograd.backward import BackwardWarning
from textautograd.data import Example
from textautograd.engines import Request, Scripted
from textautograd.errors import EngineError

HERE = Path(__file__).parent
OPTIMIZERS = [
    kind
    for name in optim.__all__
    if isinstance(kind := getattr(optim, name), type)
    and issubclass(kind, optim.Optimizer)
    and kind is not optim.Optimizer
]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_T5_a_first_step_with_default_arguments_asks_with_whole_texts(kind: Any) -> None:
    """TextGrad: its momentum optimizer sent `None` for a prompt, and failed with its defaults."""

    def reply(request: Request) -> str:
        names = request.schema["properties"] if request.schema else ["said"]
        return json.dumps(dict.fromkeys(names, "Be exact."))

    engine = Scripted(reply)
    agent = nn.LLM("Be brief.", engine=engine)
    with ta.use_engine(engine):
        optimizer = kind(agent.parameters())
        nn.ExactMatchLoss()(agent("why?"), "so").backward(rule=optimizer.rule)
        scores = {"Be brief.": 1.0, "Be exact.": 0.0}
        assert optimizer.step(lambda: scores[agent.instruction.data]).accepted
    assert agent.state_dict() == {"instruction": "Be exact."}
    calls = [call for call in engine.calls if call.purpose == "optimize"]
    assert calls
    for call in calls:
        for message in call.messages:
            assert isinstance(message["content"], str) and "None" not in message["content"]
        assert "Be brief." in call.messages[-1]["content"]


_ASK_ONCE = """
import sys
import textautograd as ta
from textautograd import nn
from textautograd.engines import Scripted, caching
engine = Scripted(lambda request: "paid")
with caching(sys.argv[1]):
    assert nn.LLM("Solve it.", engine=engine)(question="why?", hint="so").data == "paid"
print(len(engine.calls))
"""


def test_T11_a_cache_is_hit_by_the_next_process(tmp_path: Path) -> None:
    """TextGrad: the keys of its cache come from salted hashes, so that no other process ever hits
    what one has paid for."""
    paid = [
        subprocess.run(
            [sys.executable, "-c", _ASK_ONCE, str(tmp_path / "calls.sqlite")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.strip()
        for seed in ("1", "2", "3")
    ]
    assert paid == ["1", "0", "0"]


@pytest.mark.parametrize("text", ["False", "True", "None", "null", "0", "3.5", "[]", '{"a": 1}'])
def test_O7_a_text_that_looks_like_a_value_stays_a_text(text: str) -> None:
    """Trace: a suggestion is cast to the type of the old value, so that "False" becomes True."""
    engine = Scripted(lambda request: json.dumps({"prompt": text}))
    agent = nn.LLM("Be brief.", engine=engine)
    agent.instruction.grad = ta.Gradient(["f"])
    unchecked = optim.SGD(agent.parameters(), engine=engine, check=lambda *_: None)
    assert unchecked.step().accepted
    assert agent.state_dict() == {"instruction": text}
    other = nn.LLM("Be brief.")
    other.load_state_dict(json.loads(json.dumps(agent.state_dict())))
    assert other.instruction.data == text


@pytest.mark.parametrize("fails_late", [False, True])
def test_S7_a_successor_that_never_runs_holds_nobody_up(fails_late: bool) -> None:
    """The reference: a node waits, and polls, for all of its successors, and so for ever for one
    that failed, or that the program never came to."""

    def answer(request: Request) -> str:
        if "unlucky" in str(request.messages):
            raise EngineError("the server is gone")
        if request.schema:
            return json.dumps({name: f"better {name}" for name in request.schema["properties"]})
        return "said"

    async def later(request: Request) -> str:
        await asyncio.sleep(0)
        return answer(request)

    engine = Scripted(later if fails_late else answer)
    hint, solve = nn.LLM("Give a hint.", engine=engine), nn.LLM("Solve it.", engine=engine)
    shared = hint(question="why?")
    failed = nn.LLM("unlucky", engine=engine)(hint=shared)
    behind = nn.LLM("never runs", engine=engine)(hint=failed)
    nn.ExactMatchLoss()(solve(hint=shared), "right").backward()
    assert hint.instruction.grad is not None
    assert [f.text for f in hint.instruction.grad] == ["better hint"]
    with pytest.raises(EngineError, match="the server is gone"):
        str(behind)


def test_S7_a_rule_that_fails_holds_nobody_up() -> None:
    """The reference: the same, where the successor fails in the backward pass."""

    async def answer(request: Request) -> str:
        if request.purpose == "backward" and "unlucky" in str(request.messages):
            raise EngineError("the server is gone")
        if request.schema:
            return json.dumps({name: f"better {name}" for name in request.schema["properties"]})
        return "said"

    engine = Scripted(answer)
    hint = nn.LLM("Give a hint.", engine=engine)
    shared = hint(question="why?")
    outputs = [nn.LLM(i, engine=engine)(hint=shared) for i in ("Solve it.", "unlucky")]
    with pytest.warns(BackwardWarning):
        failures = ta.mean([nn.ExactMatchLoss()(o, "right") for o in outputs]).backward()
    assert len(failures) == 1
    assert hint.instruction.grad is not None
    assert [f.text for f in hint.instruction.grad] == ["better hint"]


def test_S12_samples_with_one_question_share_a_paid_reply_and_nothing_else(tmp_path: Path) -> None:
    """The reference: results are kept by question, so that two samples that ask the same collide.
    (GPTSwarm #24: outputs go to the wrong question when samples run at once.)"""

    async def answer(request: Request) -> str:
        for _ in range(int(re.findall(r"\d+", str(request.messages))[-1]) % 5):
            await asyncio.sleep(0)
        return f"seen {request.messages[-1]['content']}"

    engine = Scripted(answer)
    agent = nn.LLM("Solve it.", engine=engine)
    examples = [Example(f"question {i % 3}?", f"answer {i}") for i in range(12)]
    loss = nn.FunctionLoss(lambda output, target: (1.0, f"{target} for {output}"))
    with engines.caching(tmp_path / "calls.sqlite"):
        rows = ta.evaluate(agent, examples, loss).rows
        assert [row.example for row in rows] == examples
        assert all(row.example.question in (row.output or "") for row in rows)
        ta.mean([loss(agent(question=e.question), e.answer) for e in examples]).backward()
    assert agent.instruction.grad is not None
    feedback = [(f.text.split(" for ")[0], dict(f.inputs or {})) for f in agent.instruction.grad]
    assert feedback == [(e.answer, {"question": e.question}) for e in examples]


def test_the_list_of_defects_names_tests_that_there_are() -> None:
    """README.md has a row for each defect, with tests that exist."""
    listed = re.findall(
        r"^\| ([TOS]\d+) \|.*\| (.+) \|$", (HERE / "README.md").read_text("utf-8"), re.M
    )
    defects = [*(f"T{i}" for i in range(1, 15)), *(f"O{i}" for i in range(3, 9))]
    defects += [*(f"S{i}" for i in range(1, 8)), "S12"]
    assert [defect for defect, _ in listed] == defects
    for defect, tests in listed:
        named = re.findall(r"`(test_\w+)\.(test_\w+)`", tests)
        assert named, defect
        for module, test in named:
            assert test in functions_of(module), f"{defect}: there is no {test} in {module}.py"


@cache
def functions_of(module: str) -> set[str]:
    tree = ast.parse((HERE / f"{module}.py").read_text("utf-8"))
    return {part.name for part in tree.body if isinstance(part, ast.FunctionDef)}
