"""The dry run: what it counts is what a run makes whose every step is accepted by one question."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_paper import root

from benchmarks.counted.meter import Meter
from benchmarks.paper import dry
from benchmarks.paper.questions import load
from benchmarks.paper.run import ours
from benchmarks.paper.settings import Setting
from textautograd import engines
from textautograd.engines.base import Request

__all__ = ["root"]


class Agent:
    """Answers a Yes by No and a No by Yes; with each round of rewrites one more of the gate's
    questions, the last ones first, is answered right, if `gains`."""

    def __init__(self, setting: Setting, root: Path, gains: bool) -> None:
        found = load(setting.task, root, setting.seed, setting.sizes)
        self.answers = {e.question: e.answer for e in [*found.train, *found.val, *found.test]}
        self.rights = [e.question for e in found.val or found.train][::-1] if gains else []
        self.rounds, self.rewrites, self.purpose = 0, 0, ""

    def __call__(self, request: Request) -> str:
        self.rounds += request.purpose == "optimize" != self.purpose
        self.purpose = request.purpose
        if request.schema is None:
            return self.said(str(request.messages))
        self.rewrites += 1
        way = f"Go way {self.rounds}, turn {self.rewrites}" if self.purpose == "optimize" else "No"
        return json.dumps({name: f"{way} in {name}." for name in request.schema["properties"]})

    def said(self, seen: str) -> str:
        way = max(map(int, re.findall(r"way (\d+)", seen)), default=0)
        (question,) = re.findall(r"<(?:question|statement)>\\n(.*?)\\n<", seen)
        if "<hint_1>" not in seen and "<on_statement>" not in seen:
            return f"I took {''.join(re.findall(r'way [0-9]+, turn [0-9]+', seen))} to {question}"
        right = question in self.rights[:way]
        said = "Yes" if right == (self.answers[question] == "Yes") else "No"
        said += "" if right else f", as to {question}"
        return f"<output statement>{said}</output statement>" if "<output s" in seen else said


def calls(setting: Setting, root: Path, gains: bool) -> tuple[Counter[str], list[bool]]:
    """By purpose, of a run; and which of its steps were accepted."""
    agent = engines.Scripted(Agent(setting, root, gains))
    line = ours(setting, root, root / f"{gains}.sqlite", lambda *_: agent)
    found: Counter[str] = Counter()
    for purposes in line["cost"].values():
        found.update({purpose: counts[0] for purpose, counts in purposes.items()})
    return found, [step["accepted"] for step in line["steps"]]


@pytest.mark.parametrize("sizes", [(8, 0, 5), (8, 7, 5)], ids=["all", "gate"])
@pytest.mark.parametrize("task", ["bbh/navigate", "liar"])
@pytest.mark.parametrize("method", ["sgd", "textgrad", "optoprime", "copro", "blind"])
def test_a_dry_run_makes_the_calls_of_a_run_whose_every_step_is_accepted(
    root: Path, task: str, method: str, sizes: tuple[int, int, int]
) -> None:
    setting = Setting(task, method, "a", "b", sizes=sizes, steps=3, batch_size=8)
    counted = dry.cost(setting, root, Meter()).calls
    made, accepted = calls(setting, root, gains=True)
    assert all(accepted) and len(accepted) >= 3
    assert counted == made
    fewer, accepted = calls(setting, root, gains=False)
    assert not any(accepted)
    assert all(fewer[purpose] <= counted[purpose] for purpose in {*fewer, *counted})
    assert fewer.total() < counted.total()


def test_a_dry_run_counts_backward_calls_of_each_step(root: Path) -> None:
    def backward(task: str, method: str, sizes: tuple[int, int, int]) -> int:
        setting = Setting(task, method, "a", "b", sizes=sizes, steps=3, batch_size=8)
        return dry.cost(setting, root, Meter()).calls["backward"]

    for task in ("bbh/navigate", "liar"):
        assert backward(task, "sgd", (8, 0, 5)) == 8 + 7 + 6  # one node passes anything on
        assert backward(task, "sgd", (8, 7, 5)) == 8 * 3  # what the gate likes need not help there
        assert backward(task, "no-gate", (8, 0, 5)) == 8 * 3  # nor what no gate has seen
    assert backward("liar", "wrong-labels", (8, 7, 5)) == 8 * 3


@pytest.mark.parametrize("method", ["format", "start"])
def test_what_is_not_trained_is_counted_as_it_is_made(root: Path, method: str) -> None:
    setting = Setting("liar", method, "a", "b", sizes=(8, 0, 5))
    # the form is stated to one node of six
    assert dry.cost(setting, root, Meter()).calls == {"forward": 30 + 5 * (method == "format")}


def test_a_price_is_found_with_and_without_its_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any) -> None:
        raise AssertionError("no price is worth a connection")

    monkeypatch.setattr(socket.socket, "connect", connect)
    price = dry._price("gpt-4o-mini")
    assert price and price[0] < price[1]
    assert dry._price("openai/gpt-4o-mini") == price
    assert dry._price("azure/gpt-4o-mini") not in (price, None)  # which has its own
    for unknown in ("groq/gpt-4o-mini", "local/gpt-4o-mini", "ollama/none", "openai/", "none"):
        assert dry._price(unknown) is None
