"""`benchmarks.paper`: arms stay what they are, at the engine's seam; lines, data and costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_server import answer
from hypothesis import given
from hypothesis import strategies as st
from test_paper_peers import metered

import textautograd as ta
from benchmarks import report
from benchmarks.paper import __main__ as command
from benchmarks.paper import dry, lines
from benchmarks.paper.__main__ import main
from benchmarks.paper.graphs import STATE, Graph, analysts, two_hints
from benchmarks.paper.groups import changes, tokens
from benchmarks.paper.methods import METHODS
from benchmarks.paper.peer import job
from benchmarks.paper.questions import FORMATS, Questions, load, with_wrong_answers
from benchmarks.paper.run import ours
from benchmarks.paper.settings import Setting, definition, queued
from benchmarks.paper.statistics import holm, interval, sign_test, wilson
from benchmarks.paper.tables import level
from textautograd import engines
from textautograd.data import Example
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import (
    AuthenticationError,
    ConnectionFailed,
    ContentFilterError,
    Error,
    IncompleteReplyError,
    UsageError,
)
from textautograd.prompts.graph import SYSTEM as WITH_GRAPH
from textautograd.prompts.optimize import SYSTEM as OPTIMIZING
from textautograd.prompts.propose import SYSTEM as PROPOSING
from textautograd.prompts.rewrite import SYSTEM as IMPROVING
from textautograd.prompts.semantic import SYSTEM as JOINT
from textautograd.prompts.textgrad import SYSTEM as ONE_INPUT
from textautograd.variable import Scored

FIELDS = ["statement", "job_title", "party", "state", "source"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_rows(tmp_path)


def with_rows(place: Path) -> Path:
    """A few rows in the authors' formats."""
    bbh = [{"input": f"Is {i} odd?", "target": "Yes" if i % 2 else "No"} for i in range(40)]
    (place / "bbh").mkdir()
    (place / "bbh" / "navigate.json").write_text(json.dumps({"examples": bbh}), "utf-8")
    (place / "liar").mkdir()
    for split in ("train", "valid"):
        rows = []
        for i in range(30):
            row = [f"{i}.json", ("true", "barely-true")[i % 2], f"Claim {split} {i}.", "taxes"]
            row += ["who", f"job {i}", f"state {i}", f"party {i}", *"00000", f"source {i}"]
            rows.append("\t".join(row))
        (place / "liar" / f"{split}.tsv").write_text("\n".join(rows), "utf-8")
    return place


class Model:
    """Answers wrong, until the last node's instruction has been rewritten `right` times; every
    rewrite is another one."""

    def __init__(self, right: int = 99) -> None:
        self.seen: list[Request] = []
        self.rewrites = 0
        self.right = right

    def __call__(self, request: Request) -> Reply:
        self.seen.append(request)
        return Reply(self.said(request), usage=Usage(10, 5, calls=1))

    def said(self, request: Request) -> str:
        if request.schema is None:
            system = request.messages[0]["content"]
            return f"Well, {len(system)} {len(request.messages[1]['content'])}."
        names = list(request.schema["properties"])
        if request.purpose == "optimize":
            self.rewrites += 1
            return json.dumps({"prompt": f"Do better, way {self.rewrites}."})
        return json.dumps({name: f"Change {name}." for name in names})

    def of(self, purpose: str) -> list[Request]:
        return [request for request in self.seen if request.purpose == purpose]


def run(
    root: Path, method: str, model: Model, cache: str | None = None, **settings: Any
) -> dict[str, Any]:
    given = Setting(
        "liar",
        method,
        "forward",
        "writer",
        **{"sizes": (8, 8, 6), "steps": 4, "batch_size": 4, **settings},
    )
    file = root / (cache or f"{id(model)}.sqlite")
    return ours(given, root, file, lambda *_: engines.Scripted(model))


class Improving(Model):
    """Says "Yes" to more and more claims as rewrites come in, so that gates accept."""

    gain = 1.2

    def said(self, request: Request) -> str:
        if request.schema is None and "<on_statement>" in request.messages[1]["content"]:
            way = request.messages[0]["content"].partition("way ")[2].split(".")[0]
            number = int(re.findall(r"Claim \w+ (\d+)", request.messages[1]["content"])[0])
            return "Yes" if number % 2 == 0 and number < self.gain * int(way or 0) else "No"
        return super().said(request)


def accepted(line: dict[str, Any]) -> int:
    return sum(step["accepted"] for step in line["steps"])


NODES = [each["name"] for each in analysts()]
WRITTEN = {each["instruction"]: each["name"] for each in analysts()}
HINTS = [f"on_{name}" for name in NODES[:-1]]
OTHER = {"Yes": "No", "No": "Yes"}
SIZES = (5, 5, 2)
TRAINED = [
    name for name in METHODS if METHODS[name].peer is None and name not in ("start", "format")
]
Way = tuple[int, int]
"""A rewrite's step, from 1, and draw; (0, 0) is the text as written."""

RIGHT = {"start": (2, 2), "worse": (1, 1), "train": (4, 1), "val": (1, 4), "both": (3, 3)}
"""How many of 5 training and 5 gate questions an agent answers rightly, by its newest rewrite."""
ONE: dict[Way, str] = {(2, 0): "train", (3, 0): "val"}
FIVE: dict[Way, str] = {(1, 2): "train", (1, 3): "val", (1, 4): "both"}
"""What rewrites make of an agent, with one candidate and with five; all others make it worse."""
TAKEN: dict[tuple[str | None, int], dict[int, int]] = {
    (None, 1): {1: 0, 2: 0, 3: 0, 4: 0},
    (None, 5): {1: 1, 2: 0},  # the first of step 1 lacks a rewrite
    ("train", 1): {2: 0},
    ("train", 5): {1: 2},
    ("val", 1): {3: 0},
    ("val", 2): {3: 0},
    ("val", 5): {1: 3},
}
"""Which draw of which step is to be written, by gate and number of candidates."""


@dataclass(frozen=True)
class Arm:
    """What a method must be by its name alone."""

    name: str

    @property
    def base(self) -> str:
        return re.sub("-[57]$", "", self.name)

    @property
    def is_copro(self) -> bool:
        return self.base in ("copro", "copro-12")

    @property
    def candidates(self) -> int:
        return int(self.name[-1]) if self.base != self.name else 2 if self.is_copro else 1

    @property
    def steps(self) -> int:
        own = {"rewrite": 1, "copro": 6, "copro-12": 12}
        return own.get(self.name, 2 if self.candidates >= 5 else 4)

    @property
    def gate(self) -> str | None:
        if self.base in ("rewrite", "no-gate"):
            return None
        return "train" if self.base == "train-gate" else "val"

    @property
    def nodes(self) -> list[str]:
        return [self.name.removeprefix("only-")] if self.name.startswith("only-") else NODES

    @property
    def taken(self) -> dict[int, int]:
        found = TAKEN[self.gate, min(self.candidates, 5)]
        return {step: draw for step, draw in found.items() if step <= self.steps}

    def kind(self, way: Way) -> str:
        known = FIVE if self.candidates >= 5 else ONE
        return {(0, 0): "start", **known}.get(way, "worse")

    def drawn(self, step: int) -> set[tuple[str, int]]:
        """The nodes and numbers of a step's draws."""
        if self.is_copro:  # nodes in turn; in the first round one of two is the text in place
            return {(NODES[(step - 1) % 6], draw) for draw in range(1 if step <= 6 else 2)}
        return {(node, draw) for node in self.nodes for draw in range(self.candidates)}

    def before(self, step: int) -> Way:
        """The newest rewrite in place when a step begins."""
        return max((way for way in self.taken.items() if way[0] < step), default=(0, 0))

    def told(self, given: Questions, step: int) -> dict[int, str]:
        """The answers that a step's feedback tells, by the number of the claim."""
        right, _ = RIGHT[self.kind(self.before(step))]
        is_wrong = self.base == "wrong-labels"
        return {
            number_of(each.question): OTHER[each.answer] if is_wrong else each.answer
            for place, each in enumerate(given.train)
            if (place < right) is is_wrong
        }


class Judged(Model):
    """Every rewrite tells its node, step and draw, and every analyst's reply those of its
    instruction, so the newest rewrite of any node decides which claims are judged rightly."""

    def __init__(self, arm: Arm, given: Questions) -> None:
        super().__init__()
        self.arm = arm
        self.places = {
            each.question: (part, place, each.answer)
            for part, examples in enumerate((given.train, given.val))
            for place, each in enumerate(examples)
        }

    def said(self, request: Request) -> str:
        text = request.messages[1]["content"]
        if request.purpose == "optimize":
            return json.dumps(self.rewritten(request))
        if request.schema is not None:
            about = number_of(text)
            return json.dumps({name: f"Change {name} of {about}." for name in parts(request)})
        node, (step, draw) = node_of(request.messages[0]["content"]), way_of(request)
        if node != "decide":
            return f"{node} noted {step}.{draw} on {number_of(text)}."
        part, place, answer = self.places.get(question(request), (0, 0, "No"))
        return answer if place < RIGHT[self.arm.kind((step, draw))][part] else OTHER[answer]

    def rewritten(self, request: Request) -> dict[str, str]:
        step, draw = len(learning(self.seen)), request.sample % 1000
        is_first = self.arm.name == "no-gate-5" and (step, draw) == (1, 0)
        found = dict.fromkeys(parts(request), "Because.")
        for part, node in asked(request).items():
            is_lacking = is_first and node == "decide"
            found[part] = "No change." if is_lacking else rewrite(node, step, draw)
        return found


def rewrite(node: str, step: int, draw: int) -> str:
    return f"Do better at {node}, way {step}.{draw}."


def number_of(text: str) -> int:
    """The number of the first claim that a text is about."""
    return int(re.findall(r"(?:Claim \w+|noted \S+ on) (\d+)", text)[0])


def question(request: Request) -> str:
    return blocks(request)["statement"]


def node_of(text: str) -> str:
    """Whose instruction comes first in a text."""
    found = re.search("|".join([r"better at (\w+)", *map(re.escape, WRITTEN)]), text)
    return "" if found is None else found[1] or WRITTEN[found[0]]


def way_of(seen: object) -> Way:
    """The newest rewrite that something shows."""
    found = re.findall(r"(?:way|noted) (\d+)\.(\d+)", str(seen))
    return max(((int(step), int(draw)) for step, draw in found), default=(0, 0))


def parts(request: Request) -> list[str]:
    """What the reply to a request consists of."""
    assert request.schema is not None
    return list(request.schema["properties"])


def asked(request: Request) -> dict[str, str]:
    """The nodes that a request wants rewritten, by the part of its reply."""
    own = node_of(request.messages[1]["content"])
    named = [name for name in parts(request) if name != "reasoning"]
    return {name: name.split(".")[1] if "." in name else own for name in named}


def blocks(request: Request) -> dict[str, str]:
    """What is quoted in a request."""
    text = request.messages[1]["content"]
    return dict(re.findall(r"<([\w.-]+)>\n(.*?)\n</\1>", text, re.DOTALL))


def learning(seen: Sequence[Request]) -> list[list[Request]]:
    """What the optimizer asks in each step: between it come the agent's own calls."""
    runs = groupby(list(seen), lambda request: request.purpose == "forward")
    return [list(run) for is_forward, run in runs if not is_forward]


@dataclass(frozen=True)
class Made:
    """A run of a method: what was sent for it, and its line; `again` runs it with its cache."""

    arm: Arm
    given: Questions
    seen: list[Request]
    line: dict[str, Any]
    again: Callable[[Model], dict[str, Any]]

    def steps(self, purpose: str) -> Iterator[tuple[int, list[Request]]]:
        """The requests of a purpose, step by step."""
        steps = learning(self.seen)
        assert len(steps) == len(self.line["steps"]) == self.arm.steps
        for step, requests in enumerate(steps, 1):
            yield step, [request for request in requests if request.purpose == purpose]


Make = Callable[[str], Made]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The run of each method, with an update in it; made once."""
    place = with_rows(tmp_path_factory.mktemp("arms"))
    given = load("liar", place, 0, SIZES)

    @cache
    def one(method: str) -> Made:
        arm = Arm(method)
        model = Judged(arm, given)

        def line(model: Model) -> dict[str, Any]:
            steps = 2 if arm.candidates >= 5 else 4
            file = f"{method}.sqlite"
            return run(place, method, model, file, sizes=SIZES, batch_size=5, steps=steps)

        return Made(arm, given, model.seen, line(model), line)

    return one


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_draws_its_candidates_and_rewrites_its_nodes_and_no_others(
    made: Make, method: str
) -> None:
    one = made(method)
    arm, expected = one.arm, dict(one.line["initial"])
    for step, requests in one.steps("optimize"):
        sent = {(node, r.sample % 1000) for r in requests for node in asked(r).values()}
        assert sent == arm.drawn(step)
        if step in arm.taken:
            taken = {node: rewrite(node, step, arm.taken[step]) for node, _ in arm.drawn(step)}
            changes = one.line["steps"][step - 1]["changes"]
            assert changes == {
                f"parts.{node}.instruction": [expected[node], text] for node, text in taken.items()
            }
            expected |= taken
    assert one.line["instructions"] == expected
    systems = {r.messages[0]["content"] for r in one.seen if r.purpose == "forward"}
    written = {each["name"]: f"{each['instruction']}\n\n" for each in analysts()}
    for node in {*NODES} - {*arm.nodes}:
        (same,) = [system for system in systems if node_of(system) == node]
        assert same.startswith(written[node])


@pytest.mark.parametrize("method", TRAINED)
def test_every_gate_evaluates_candidates_on_its_own_questions_and_takes_the_best_there(
    made: Make, method: str
) -> None:
    one = made(method)
    arm = one.arm
    assert METHODS[method].gate == arm.gate  # of a run's key, also where no gate reads it
    train, val = ({e.question for e in part} for part in (one.given.train, one.given.val))
    batch: set[str] = set() if arm.is_copro else train
    judged = {None: set(), "train": train, "val": val}[arm.gate]
    expected = {((0, 0), text) for text in batch | judged}
    for step in range(1, arm.steps + 1):
        for _, draw in arm.drawn(step):
            goes_on = arm.taken.get(step) == draw and step < arm.steps
            expected |= {((step, draw), text) for text in judged | (batch if goes_on else set())}
    sent = {(way_of(r.messages), question(r)) for r in one.seen if r.purpose == "forward"}
    held_out = {e.question for e in one.given.test}
    assert {(way, text) for way, text in sent if text not in held_out} == expected
    for step, found in enumerate(one.line["steps"], 1):
        assert found["accepted"] is (step in arm.taken)
        for name, way in (("before", arm.before(step)), ("after", arm.before(step + 1))):
            right = dict(zip(("train", "val"), RIGHT[arm.kind(way)], strict=True))
            loss = None if arm.gate is None else pytest.approx(1 - right[arm.gate] / 5)
            assert found[name] == loss


@pytest.mark.parametrize("method", TRAINED)
def test_every_backward_call_is_its_methods_and_tells_its_labels(made: Make, method: str) -> None:
    one = made(method)
    base = one.arm.base
    silent = ("rewrite", "random", "no-data", "no-gradient", "optoprime", "copro", "copro-12")
    each = [("decide", [name]) for name in HINTS]
    calls = {
        **{name: [] for name in silent},
        "one-by-one": each,
        "edges": each,
        "blind": [("", [name]) for name in HINTS],
        "textgrad": [*each, *((node, ["instruction"]) for node in NODES)],
    }.get(base, [("decide", HINTS)])
    system = ONE_INPUT if base in ("edges", "textgrad") else JOINT
    for step, requests in one.steps("backward"):
        told = one.arm.told(one.given, step)
        found = []
        for request in requests:
            assert request.messages[0]["content"] == system
            names, shown = parts(request), blocks(request)
            node, about = node_of(shown["task"]), number_of(request.messages[1]["content"])
            found.append((about, node, names))
            inputs = names if base == "blind" else FIELDS + HINTS * (node == "decide")
            assert shown.keys() == {"task", "output", "feedback", *inputs}
            feedback = f'The expected output is: "{told[about]}".'
            if node not in ("decide", ""):
                feedback = f"Change on_{node} of {about}."
            assert shown["feedback"] == feedback
        is_new = step == 1 or one.arm.before(step) != one.arm.before(step - 1)
        expected = [(about, *call) for about in told for call in calls]
        assert sorted(found) == (sorted(expected) if is_new else [])  # else they are in the cache


@pytest.mark.parametrize("method", [m for m in TRAINED if not m.startswith("optoprime")])
def test_every_rewriting_is_shown_what_its_method_says_and_nothing_else(
    made: Make, method: str
) -> None:
    one = made(method)
    base = one.arm.base
    systems = {"copro": PROPOSING, "copro-12": PROPOSING, "textgrad": IMPROVING}
    blank = ("rewrite", "random", "no-data", "no-samples", "copro", "copro-12")
    has_samples = base not in (*blank, "feedback")
    has_gradients = base not in (*blank, "samples", "no-gradient")
    for step, requests in one.steps("optimize"):
        told = one.arm.told(one.given, step)
        for request in requests:
            system, user = (message["content"] for message in request.messages[:2])
            if base in ("rewrite", "random"):
                assert system == "You improve the instructions of language models."
            elif base == "no-form":
                assert all(part in OPTIMIZING for part in re.split(r"(?<=\.)\s", system))
                assert "exactly that" not in system and "what kind of text" not in system
            else:
                assert system == systems.get(base, OPTIMIZING)
            is_own = base not in ("rewrite", "random", *systems)
            assert ("\n\nWrite the better instruction, the prompt." in user) is is_own
            node, shown = node_of(user), blocks(request)
            examples: dict[str, dict[str, str]] = {}
            for name in [*shown]:
                if match := re.fullmatch(r"example-(\d+)-(.+)", name):
                    examples.setdefault(match[1], {})[match[2]] = shown.pop(name)
            left = {re.sub(r"-\d+", "", name) for name in shown} - {"tried"}
            in_turn = {"attempt", "attempt-loss"} if step > 6 else {"instruction"}
            assert left == ({"role", "variable"} if base == "textgrad" else in_turn)
            if not one.arm.is_copro:
                text = shown["variable" if base == "textgrad" else "instruction"]
                assert way_of(text) == one.arm.before(step)
            if base in blank:
                assert not examples and "Claim" not in user and "noted" not in user
                continue
            assert len(examples) == (len(told) if base == "textgrad" else min(2, len(told)))
            for example in examples.values():
                inputs = FIELDS + HINTS * (node == "decide") if has_samples else []
                output = ["output"] * has_samples
                assert example.keys() == {*inputs, *output, "feedback"}
                texts = {"The system's final answer was wrong."}
                if has_gradients:
                    about = {number_of(example["statement"])} if has_samples else {*told}
                    part = "instruction" if base == "textgrad" else f"on_{node}"
                    texts = {f"Change {part} of {number}." for number in about}
                    if part == "on_decide":
                        texts = {f'The expected output is: "{told[number]}".' for number in about}
                assert example["feedback"] in texts
                assert not has_samples or number_of(example["statement"]) in told


@pytest.mark.parametrize("method", ["optoprime", "optoprime-5"])
def test_optoprime_is_shown_its_graph_and_the_feedback_on_wrong_answers(
    made: Make, method: str
) -> None:
    one = made(method)
    for step, requests in one.steps("optimize"):
        told = one.arm.told(one.given, step)
        for request in requests:
            assert request.messages[0]["content"] == WITH_GRAPH
            found = blocks(request)
            kinds = {name.split("-")[0] for name in found} - {"tried"}
            assert kinds == {"code", "documentation", "variable", "value", "feedback"}
            texts = [text for name, text in found.items() if name.startswith("variable-")]
            assert [node_of(text) for text in texts] == NODES
            assert {way_of(text) for text in texts} == {one.arm.before(step)}
            claims = [text for text in found.values() if text.startswith("Claim")]
            assert {number_of(text) for text in claims} == {*told}
            feedback = [text for name, text in found.items() if name.startswith("feedback-")]
            right = [f'The expected output is: "{answer}".' for answer in told.values()]
            assert sorted(feedback) == sorted(right)


def test_the_control_without_samples_refuses_what_copies_them(root: Path) -> None:
    class Copying(Improving):
        def said(self, request: Request) -> str:
            if request.purpose == "optimize":
                return json.dumps({"prompt": " ".join(e.question for e in given.train)})
            return super().said(request)

    given = load("liar", root, 0, (8, 8, 6))
    for method in ("no-samples", "no-samples-5"):
        line = run(root, method, Copying())
        assert not accepted(line) and "it copies the example text" in str(line["steps"])


def test_a_wrong_answer_is_another_questions() -> None:
    given = [Example(f"{i}?", answer, job=str(i)) for i, answer in enumerate("aabca")]
    found = with_wrong_answers(given)
    assert [(e.question, e.extra) for e in found] == [(e.question, e.extra) for e in given]
    assert [e.answer for e in found] == ["b", "b", "c", "a", "b"]


def test_an_agent_that_is_not_trained_is_asked_as_it_is_written(root: Path) -> None:
    for method, form in (("start", ""), ("format", " Reply with Yes or No and nothing else.")):
        model = Model()
        line = run(root, method, model)
        assert line["steps"] == [] and {r.purpose for r in model.seen} == {"forward"}
        written = {each["name"]: each["instruction"] for each in analysts()}
        stated = written | {"decide": written["decide"] + form}
        assert (line["initial"], line["instructions"]) == (written, stated)
        last = [r for r in model.seen if r.messages[0]["content"].startswith(written["decide"])]
        texts = [r.messages[0]["content"].split("\n")[0] for r in last]
        assert texts == [written["decide"]] * 6 + [stated["decide"]] * (6 if form else 0)


@pytest.mark.parametrize("method", ["start", "format", *TRAINED])
def test_every_method_says_what_it_cost(made: Make, method: str) -> None:
    one = made(method)
    costs = [cost for purposes in one.line["cost"].values() for cost in purposes.values()]
    calls, *tokens = (sum(numbers) for numbers in zip(*costs, strict=True))
    assert tokens == [10 * calls, 5 * calls]
    assert calls == len({str(request) for request in one.seen})
    again = one.again(Model())  # all of it from the cache, at the same cost
    assert {**again, "seconds": 0} == {**one.line, "seconds": 0}
    json.dumps(one.line)


def test_a_run_that_was_interrupted_goes_on_and_pays_nothing_twice(root: Path) -> None:
    whole = run(root, "sgd", Improving())

    class Failing(Improving):
        def said(self, request: Request) -> str:
            if len(self.seen) > 60:
                raise KeyboardInterrupt
            return super().said(request)

    first, second = Failing(), Improving()
    with pytest.raises(KeyboardInterrupt):
        run(root, "sgd", first, "calls.sqlite")
    second.rewrites = first.rewrites
    line = run(root, "sgd", second, "calls.sqlite")
    assert line["steps"] == whole["steps"]
    assert line["cost"] == whole["cost"]
    paid = {str(request) for request in first.seen[:60]}
    assert not paid & {str(request) for request in second.seen}


def test_training_ends_when_its_tokens_are_used(root: Path) -> None:
    line = run(root, "sgd", Improving(), tokens=900)
    spent = sum(c[1] + c[2] for c in line["cost"]["training"].values())
    assert line["stopped"]
    assert 900 <= spent < 900 + 64 * 15
    assert len(line["steps"]) < 4


def test_a_cut_off_answer_is_an_answer(root: Path) -> None:
    class Cut(Model):
        def __call__(self, request: Request) -> Reply:
            reply = super().__call__(request)
            return replace(reply, finish_reason="length") if request.schema is None else reply

    line = run(root, "sgd", Cut())
    assert line["after"]["failed"] == 0
    assert [step["failed"] for step in line["steps"]] == [[]] * 4


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_empty_answer_is_a_wrong_one(root: Path, reason: str) -> None:
    """It comes again at temperature 0, so a run that it ended could never be made."""

    class Silent(Model):
        def __call__(self, request: Request) -> Reply:
            reply = super().__call__(request)
            is_asked = request.schema is None and claim in str(request.messages)
            return Reply("", reason, reply.usage) if is_asked else reply

    claim = load("liar", root, 0, (8, 8, 6)).test[0].question
    line = run(root, "sgd", Silent(), "silent.sqlite")
    assert line["before"]["failed"] == 1
    whole = run(root, "sgd", Model(), "whole.sqlite")
    paid, all_paid = (each["cost"]["before"]["forward"] for each in (line, whole))
    assert paid[0] == all_paid[0] - 1  # the node that would have seen it was not called


def test_held_out_questions_are_nobody_elses(root: Path) -> None:
    for sizes in ((5, 5, 10), (5, 5, 0)):
        seen = [load("bbh/navigate", root, seed, sizes) for seed in (0, 1)]
        for found in seen:
            used = [*found.indices["train"], *found.indices["val"], *found.indices["test"]]
            assert len(set(used)) == len(used) == (20 if sizes[2] else 40)
        assert seen[0].indices["train"] != seen[1].indices["train"]
        assert (seen[0].indices["test"] == seen[1].indices["test"]) is bool(sizes[2])


@pytest.mark.parametrize("sizes", [(5, 5, 10), (5, 5, 0)])
def test_a_question_that_a_file_repeats_is_not_held_out_and_shown(
    root: Path, sizes: tuple[int, int, int]
) -> None:
    rows = [{"input": f"Is {i % 20} odd?", "target": "Yes"} for i in range(40)]
    (root / "bbh" / "navigate.json").write_text(json.dumps({"examples": rows}), "utf-8")
    for seed in range(5):
        found = load("bbh/navigate", root, seed, sizes)
        shown = {example.question for example in [*found.train, *found.val]}
        assert found.test and not shown & {example.question for example in found.test}


def test_nodes_reason_and_pass_their_statement_on() -> None:
    seen: list[Request] = []

    def said(request: Request) -> str:
        seen.append(request)
        return f"Because.\n<output statement>\nV{len(seen)}\n</output statement>"

    agent = Graph(two_hints(reasoning=True), 100).to(engines.Scripted(said))
    output = agent(question="Q?")
    assert output.data.startswith("V")
    assert "Because" not in seen[-1].messages[1]["content"]
    assert all(STATE in request.messages[0]["content"] for request in seen)
    output.backward(ta.Gradient(["Wrong."]), rule=ta.rules.none)
    gradient = agent.parts["solve"].instruction.grad
    assert gradient is not None
    assert [feedback.text for feedback in gradient] == ["Wrong."]


def test_a_line_that_was_cut_off_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "results" / "x.jsonl"
    one, other = {"key": {"seed": 1}}, {"key": {"seed": 3}, "said": "a lone \ud800, é"}
    lines.append(file, one)
    whole = json.dumps({"key": {"seed": 2}, "said": "é \\boxed{5}"}, ensure_ascii=False).encode()
    for end in range(1, len(whole)):
        file.write_bytes(file.read_bytes() + whole[:end])
        assert lines.read(file) == [one]
        lines.append(file, other)
        assert lines.read(file) == [one, other]
        file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    aside = (file.parent / "x.jsonl.cut-off").read_bytes()
    assert aside == b"".join(whole[:end] + b"\n" for end in range(1, len(whole)))


def test_where_it_goes_is_found_out_before_a_run(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"key": ')
    (tmp_path / "x.jsonl.cut-off").mkdir()
    with pytest.raises(OSError, match="cut-off"):
        lines.check(file)


def test_a_last_line_needs_no_end(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"key": {"seed": 1}}\n{"key": {"seed": 2}}')
    assert [line["key"]["seed"] for line in lines.read(file)] == [1, 2]
    lines.append(file, {"key": {"seed": 3}})
    assert [line["key"]["seed"] for line in lines.read(file)] == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    ['{"precious": 1}', "a word", "[1", '{"a": 1}\nnotes', "[" * 10**5],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(text)
    with pytest.raises(UsageError, match="is damaged or no result"):
        lines.check(file)
    assert file.read_text() == text


@pytest.mark.parametrize("damage", [b'{"key": {}, "a', b"[]", b"{}", b'{"key": 1}', b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"key": {}}\n' + damage + b'\n{"key": {}}\n')
    with pytest.raises(UsageError, match="line 2 is damaged"):
        lines.read(file)


class Dying(Model):
    """Fails from the call `dies` on, or where `when` says so."""

    def __init__(self, error: Error, dies: int = 0) -> None:
        super().__init__()
        self.error, self.dies = error, dies

    def said(self, request: Request) -> str:
        if self.when(request):
            raise self.error
        return super().said(request)

    def when(self, request: Request) -> bool:
        return len(self.seen) > self.dies


def test_a_server_that_dies_leaves_no_wrong_answers(root: Path) -> None:
    whole = Model()
    line = run(root, "no-gate", whole)
    total, after = len(whole.seen), line["cost"]["after"]["forward"][0]
    assert after > 6
    for dies in (4, total - 4):  # before training, and after it
        with pytest.raises(ConnectionFailed):
            run(root, "no-gate", Dying(ConnectionFailed("gone"), dies), f"{dies}.sqlite")
    rest = Model()
    rest.rewrites = whole.rewrites
    assert run(root, "no-gate", rest, f"{total - 4}.sqlite")["after"] == line["after"]
    assert len(rest.seen) < after


@pytest.mark.parametrize("reason", [None, "error"])
def test_what_a_server_says_for_a_model_is_no_answer(root: Path, reason: str | None) -> None:
    page = IncompleteReplyError("no JSON object", text="<html>Busy</html>", finish_reason=reason)
    with pytest.raises(IncompleteReplyError, match="no JSON"):
        run(root, "start", Dying(page))


@pytest.mark.parametrize("stage", ["backward", "optimize", "gate"])
def test_a_call_that_fails_in_training_is_no_opinion_and_ends_the_run(
    root: Path, stage: str
) -> None:
    """A gate would take a sample that failed for a bad candidate's, and the run would count."""

    class Failing(Dying):
        def when(self, request: Request) -> bool:
            rewritten = "Do better" in request.messages[0]["content"]
            return not self.tripped and (rewritten if stage == "gate" else request.purpose == stage)

        tripped = False

        def said(self, request: Request) -> str:
            try:
                return super().said(request)
            except ConnectionFailed:
                self.tripped = True  # once: the server is there again
                self.failed_after = len(self.seen)
                raise

    model = Failing(ConnectionFailed("gone"))
    with pytest.raises(ConnectionFailed, match="gone"):
        run(root, "sgd", model, "calls.sqlite")
    assert len(model.seen) < model.failed_after + 12  # those that were under way
    model.rewrites = 0
    whole = run(root, "sgd", Model())
    again = run(root, "sgd", model, "calls.sqlite")
    assert [step["failed"] for step in again["steps"]] == [[]] * 4
    assert again["after"] == whole["after"]


@pytest.mark.parametrize(
    ("task", "method", "why"),
    [
        ("bbh/navigate", "only-party", "has no node party; it has hint_1, hint_2, solve"),
        ("bbh/same", "wrong-labels", "all answers are the same"),
        ("bbh/brackets", "format", "what an answer to bbh/brackets looks like is not known"),
    ],
)
def test_a_run_that_there_cannot_be_is_refused_before_a_call(
    root: Path, task: str, method: str, why: str
) -> None:
    for name, answers in (("same", ["(A)"]), ("brackets", ["] ]", ">"])):
        rows = [{"input": f"{i}?", "target": answers[i % len(answers)]} for i in range(40)]
        (root / "bbh" / f"{name}.json").write_text(json.dumps({"examples": rows}), "utf-8")
    model = Model()
    setting = Setting(task, method, "a", "b", sizes=(4, 4, 4), steps=1, batch_size=4)
    with pytest.raises(UsageError, match=why):
        ours(setting, root, root / "calls.sqlite", lambda *_: engines.Scripted(model))
    assert not model.seen
    told = dry.report([setting, replace(setting, method="start", task="bbh/navigate")], root)
    assert re.search(f"Not counted: {task}, {method}: .*{why}", told)


def test_what_a_provider_refuses_is_a_wrong_answer(root: Path) -> None:
    question = load("liar", root, 0, (8, 8, 6)).test[0].question

    class Prudish(Dying):
        def when(self, request: Request) -> bool:
            return question in request.messages[1]["content"]

    line = run(root, "start", Prudish(ContentFilterError("tut")))
    assert line["before"]["failed"] == line["after"]["failed"] == 1
    assert line["labels"][0] == "No" and line["after"]["exact"][0] == 0


def call(root: Path, *words: str, task: str = "bbh/navigate") -> int | str | None:
    """How the command exits."""
    given = ["--data", str(root), "--out", str(root / "out")]
    given += ["--results", str(root / "results" / "x.jsonl")]
    if "--queue" not in words:
        given += ["--task", task, "--sizes", "4", "4", "4", "--steps", "1", "--batch-size", "4"]
    try:
        main([*given, *words])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """What every engine of the command is."""
    found = Model()
    monkeypatch.setattr(command, "engine", lambda *_, **__: engines.Scripted(found))
    return found


@pytest.mark.parametrize(
    "words",
    [
        *(["--batch-size", "0"], ["--steps", "-1"], ["--examples", "0"], ["--tokens", "-5"]),
        *(["--max-tokens", "0"], ["--sizes", "-1", "4", "4"], ["--sizes", "0", "4", "4"]),
        ["--method", "peer-gepa", "--api-base", "http://127.0.0.1:9/v1"],
        ["--method", "peer-gepa", "--api-base", "http://127.0.0.1:9/v1", "--peers", "nowhere"],
        ["--method", "peer-gepa", "--peers", "{peers}"],
        ["--queue", "small", "--peers", "{peers}"],
        ["--method", "format", "--stated"],
        # a queue says what it runs
        *(["--queue", "full", "--model", "m"], ["--queue", "full", "--seed", "99"]),
        *(["--queue", "small", "--task", "bbh/nope"], ["--minutes", "nan"]),
        *(["--queue", "small", "--reasoning"], ["--queue", "small", "--sizes", "4", "4", "4"]),
    ],
)
def test_arguments_are_refused_before_a_call(root: Path, model: Model, words: list[str]) -> None:
    (root / "bin").mkdir()
    (root / "bin" / "python").touch()
    assert call(root, *(word.format(peers=root) for word in words)) == 2
    assert not model.seen and not (root / "results").exists()


def test_what_cannot_be_read_or_written_is_one_line_before_a_call(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "file").write_text("x")
    (root / "bad").write_text("{}\n")
    for words in (["--results", "file/x"], ["--results", "."], ["--results", "bad"]):
        assert str(root) in str(call(root, words[0], str(root / words[1])))
    for words in (["--out", str(root / "file")], ["--data", str(root / "none")]):
        assert words[1] in str(call(root, *words))
    assert call(root, task="none") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and not model.seen
    assert call(root) == 0 and model.seen


def test_a_peer_that_may_spend_what_sgd_did_waits_for_it(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[int | None] = []

    def theirs(setting: Setting, tokens: int | None, *_: Any) -> None:
        given.append(tokens)
        raise UsageError("as far as this goes")

    monkeypatch.setattr(command, "theirs", theirs)
    (root / "bin").mkdir()
    (root / "bin" / "python").touch()
    peer = ["--method", "peer-gepa", "--peers", str(root), "--api-base", "http://127.0.0.1:9/v1"]
    assert call(root, *peer) == 1
    assert "there is no line of sgd in this setting: run that first" in capsys.readouterr().err
    assert call(root, *peer, "--tokens", "7") == 1
    assert call(root, "--method", "sgd") == 0
    assert call(root, *peer) == 1
    (line,) = lines.read(root / "results" / "x.jsonl")
    assert given == [7, sum(c[1] + c[2] for c in line["cost"]["training"].values())]


def test_sigterm_ends_a_peer_too(root: Path, tmp_path: Path) -> None:
    peers, told = tmp_path / "peers", tmp_path / "pid"
    (peers / "bin").mkdir(parents=True)
    python = peers / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {told}.new; mv {told}.new {told}\nexec sleep 600\n")
    python.chmod(0o755)
    words = ["--task", "bbh/navigate", "--method", "peer-gepa", "--tokens", "99", "--sizes", *"444"]
    words += ["--peers", str(peers), "--data", str(root)]
    words += ["--out", str(root / "out"), "--results", str(root / "x.jsonl")]
    with (
        metered(answer()) as (url, _),
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.paper", *words, "--api-base", url],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        while not told.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (143, "interrupted; the same command goes on from here\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


def test_ctrl_c_ends_a_queue_in_one_line_and_the_same_command_goes_on(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = [Setting("bbh/navigate", "start", "a", "b", seed, (4, 4, 4)) for seed in (0, 1)]
    monkeypatch.setattr("benchmarks.paper.arguments.queued", lambda name: seeds)

    def interrupted(setting: Setting, *arguments: Any) -> Any:
        if setting.seed:
            raise KeyboardInterrupt
        return ours(setting, *arguments)

    monkeypatch.setattr(command, "ours", interrupted)
    assert call(root, "--queue", "small") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
    monkeypatch.setattr(command, "ours", ours)
    assert call(root, "--queue", "small") == 0
    assert [line["key"]["seed"] for line in lines.read(root / "results" / "x.jsonl")] == [0, 1]


def test_a_queue_ends_at_what_fails_every_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = [
        Setting("bbh/navigate", "start", "a", "b", seed, (4, 4, 4), steps=1) for seed in (0, 1)
    ]
    monkeypatch.setattr("benchmarks.paper.arguments.queued", lambda name: wanted)
    for error, last in (
        (AuthenticationError("no key"), "bbh/navigate, start: no key"),
        (ConnectionFailed("gone"), "2 of 2 runs failed"),
    ):
        engine = engines.Scripted(Dying(error))
        monkeypatch.setattr(command, "engine", lambda *_, e=engine, **__: e)
        assert call(root, "--queue", "small") == 1
        said = capsys.readouterr().err.splitlines()
        told = [line for line in said if not line.startswith("  ")]  # the others are notes
        assert len(told) == 1 + (last[0] == "2") and told[-1].startswith(last)


def test_the_interval_covers_what_it_should() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        found = interval((rng.random((5, 40)) < 0.3).astype(float).tolist())
        covered += found.low <= 0.3 <= found.high
    assert covered >= 50
    same = interval([[1.0, 0.0], [1.0, 0.0]])
    assert same.mean == 0.5
    assert interval([[0.0] * 5] * 3).excludes_zero() is False
    assert interval([[1.0] * 5] * 3).excludes_zero() is True


def test_a_share_of_few_cases_is_never_certain() -> None:
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 24) == pytest.approx((0.0, 0.138), abs=1e-3)
    assert level([[0] * 24]) == level([[0] * 24] * 3) == "0 (0 to 14)"


def test_the_sign_test_is_exact_and_pairs_by_question() -> None:
    assert sign_test([[1] * 9 + [0] * 15]) == pytest.approx(2 / 2**9)
    assert sign_test([[1] * 6 + [-1] * 2]) == pytest.approx(2 * (1 + 8 + 28) / 2**8)
    assert sign_test([[0.0] * 24]) == 1 and sign_test([[1, -1, 0]]) == 1
    assert sign_test([[1, 1, 0], [-1, 1, 0]]) == 1  # a question that differs by seed is one
    up = [[1.0] * 12 + [0.0] * 12]
    assert sign_test(up) == sign_test([[-v for v in up[0]]])


@given(st.lists(st.floats(0, 1), max_size=30))
def test_what_holds_among_many_is_what_holm_says(found: list[float]) -> None:
    cut, ordered = holm(found), sorted(found)
    holding = [p for p in ordered if p <= cut]
    for i, p in enumerate(holding):
        assert p <= 0.05 / (len(found) - i) or p == ordered[i - 1]
    if len(holding) < len(found):
        assert ordered[len(holding)] > 0.05 / (len(found) - len(holding))


def test_what_was_never_tried_is_not_told_as_no_gain(root: Path) -> None:
    line = run(root, "sgd", Model())
    same = {name: "as it was" for name in line["initial"]}
    none = {"exact": [0] * 6, "lenient": [0] * 6}
    quiet = line | {"initial": same, "instructions": same, "before": none, "after": none}

    def cell(**changes: Any) -> str:
        text = report.report([quiet | changes])
        (row,) = [r for r in text.split("\n") if r.startswith("| optim.SGD")][:1]
        return row.split(" | ")[1].strip(" |")

    assert cell(steps=[{"why": "rewrite refused: a", "accepted": False}]) == "0-"
    assert cell(steps=[{"stopped": "9 of 8 tokens"}]) == "0-"
    assert cell(steps=[{"score": 0.0, "proposed": same}]) == "0-"
    assert cell(steps=[{"score": 0.0, "proposed": {**same, "decide": "other"}}]) == "0="
    assert cell(steps=[{"why": "not better than 1: 1", "accepted": False}]) == "0="
    assert cell(steps=[{"changes": {"a": ["b", "c"]}}], instructions={"decide": "c"}) == "0 → 0"


def test_a_peer_stands_beside_what_it_is_compared_with(root: Path) -> None:
    line = run(root, "sgd", Model())
    own = {"method": "peer-gepa", "tokens": 55_000, "steps": 8, "optimizer_max_tokens": 1024}
    text = report.report([line, line | {"key": line["key"] | own}])
    assert text.count("### ") == 1 and "DSPy 3.4.1, GEPA, 55,000 tokens | " in text
    stated = line | {"key": line["key"] | own | {"stated": True}}
    assert report.report([line, stated]).count("### ") == 2


def test_the_report_says_what_a_constant_answer_would_bring(root: Path) -> None:
    line = run(root, "start", Model())
    labels = line["labels"]
    assert line["most_frequent"] == max(labels.count("Yes"), labels.count("No"))
    assert f"right in {line['most_frequent']} of them" in report.report([line])


def test_the_report_says_how_much_of_its_tokens_a_peer_has_used(root: Path) -> None:
    line = run(root, "sgd", Model())
    (spent,) = [row for row in report.report([line]).split("\n") if "semantic gradient" in row][:1]
    assert "%)" not in spent
    used = tokens(line)
    key = line["key"] | {"method": "peer-textgrad"}
    peer = line | {"key": key, "settings": {"method": "textgrad", "tokens": 2 * used}}
    assert f"| {used:,} (50%) |" in report.report([peer])


def test_differences_are_paired_by_seed_and_question(root: Path) -> None:
    one, other = (run(root, "start", Model(), seed=seed) for seed in (0, 1))
    one["after"]["exact"] = [1, 1, 1, 0, 0, 0]
    one["before"]["exact"] = [0, 1, 1, 0, 0, 0]
    assert changes([one], "exact") == [[1, 0, 0, 0, 0, 0]]
    assert changes([one, other], "exact", [other]) == [[0.0] * 6]


def test_only_seeds_share_a_row(root: Path) -> None:
    line = run(root, "start", Model())
    text = json.dumps(line)

    def other(after: list[int] | None = None, error: Any = None, **key: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(text) | {"error": error}
        found["key"] |= key
        if after is not None:
            found["before"] |= {"exact": after, "lenient": after}
            found["after"] |= {"exact": after, "lenient": after}
            found["labels"] = found["labels"][: len(after)]
            found["indices"]["test"] = found["indices"]["test"][: len(after)]
        return found

    def told(*found: dict[str, Any]) -> list[str]:
        return [
            row
            for row in report.report(list(found), True).split("<details>")[1].split("\n")
            if row[:3] in ("###", "| t", "| S")
        ]

    name = "| the agent as written"
    same = told(line, line, other(seed=1), other([1] * 6, seed=2))
    assert same[0] == "### liar" and same[1].startswith(f"{name} | 3 | ")
    models = told(line, other(model="another"))
    assert [row for row in models if row[0] == "#"] == [
        "### liar, model forward",
        "### liar, model another",
    ]
    assert all(
        " | 1 | " in row for row in models if row[0] == "|" and row.startswith(f"{name} | 1")
    )
    sizes = told(line, other([1] * 3, sizes=[8, 8, 3]))
    assert "### liar, sizes [8, 8, 6]" in sizes and "### liar, sizes [8, 8, 3]" in sizes
    states = told(line, other(prompts="0123", seed=1))
    assert states[0] == "### liar"
    assert [row for row in states if row.startswith(f"{name}, prompts 0123 | 1 | ")]
    single, sgd = (
        other(method="one-by-one"),
        [other(method="sgd"), other(method="sgd", prompts="0123")],
    )

    def less_sgd(*found: dict[str, Any]) -> str:
        named = (row for row in told(*found) if row.startswith("| SGD, its joint backward prompt"))
        return next(named).split(" | ")[6]

    assert less_sgd(line, single, *sgd) == ""  # which state to compare with is not known
    assert less_sgd(line, single, sgd[0]) == "same"


def test_what_a_peer_says_cannot_leave_its_cell(root: Path) -> None:
    line = run(root, "start", Model())
    said = "a | b\n## Heading\n<b>\ud800 [x](y)"
    bad = line | {"key": line["key"] | {"seed": 1}, "error": {"type": "X", "message": said}}
    text = report.report([line, bad])
    text.encode()
    (row,) = [row for row in text.split("\n") if "Heading" in row]
    assert r"X: a \| b \#\# Heading \<b\>? \[x\](y) |" in row


def test_a_report_of_a_damaged_file_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad").write_text('{"key": 1}\n')
    line = run(root, "start", Model())
    rows = (line, line | {"key": {}})
    (tmp_path / "lacks").write_text("".join(json.dumps(o) + "\n" for o in rows))
    for place, why in (
        (tmp_path / "bad", "line 1 is damaged"),
        (tmp_path / "lacks", "result 2 cannot be reported: it.key lacks task, method, .*: mend or"),
        (tmp_path / "none", "there are no results in .*none"),
        (tmp_path, "is no file"),
    ):
        for write in ([], ["--write"]):
            monkeypatch.setattr("sys.argv", ["report", "--results", str(place), *write])
            with pytest.raises(SystemExit, match=why):
                report.main()


def test_what_cannot_be_reported_is_named_before_a_table_is_made(root: Path) -> None:
    line = run(root, "start", Model())
    few, none = {"exact": [1], "lenient": [1]}, {"exact": [], "lenient": []}
    right = line["after"]
    for wrong, why in (
        ({"key": line["key"] | {"sizes": []}}, "key.sizes is no list of 3"),
        ({"key": line["key"] | {"tokens": "many"}}, "key.tokens is str"),
        ({"after": right | {"exact": ["yes"] * 6}}, r"exact\[0\] is str"),
        ({"after": right | {"lenient": [7] * 6}}, "neither 0 nor 1"),
        ({"after": few}, "after.exact is of 1 questions, and before.exact of 6"),
        ({"before": none, "after": none, "labels": []}, "there are no questions"),
        (
            {"before": few, "after": few, "labels": ["No"], "indices": {"test": [1]}},
            "held-out questions is 1 here, and 6 in result 1",
        ),
        ({"labels": ["No"]}, "labels is of 1 questions"),
        ({"labels": [[]] * 6}, r"labels\[0\] is list"),
        ({"steps": [1]}, r"steps\[0\] is int"),
        ({"instructions": {"a": 1}}, "instructions is int"),
        ({"initial": None}, "initial is NoneType"),
        ({"cost": {"training": {"forward": [1]}}}, "no list of 3"),
        ({"error": {}}, "error lacks type, message"),
    ):
        with pytest.raises(UsageError, match=f"result 2 .*{why}.*: mend or delete its line"):
            report.check([line, {**line, **wrong}])


def test_a_dry_run_costs_what_the_run_costs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--task", "bbh/navigate", "--data", str(root), "--sizes", "4", "4", "8"]
    main([*words, "--steps", "2", "--batch-size", "4", "--dry-run"])
    said = capsys.readouterr().out
    # both hints begin alike, so there are 2 calls a question until the first rewrite, then 3:
    # 16 before; 8 of the batch, 8 and 12 of the gate; 12 and 12 in the second step; 24 after
    assert "| bbh/navigate | sgd | 1 | 92 | 8 | 6 |" in said
    assert "| $0." in said
    peer = Setting("bbh/navigate", "peer-gepa", "a", "b")
    with pytest.raises(UsageError, match="only its run tells"):
        dry.report([peer], root)


def test_a_dry_run_of_a_queue_tells_runs_apart_and_names_what_it_leaves_out(root: Path) -> None:
    some = Setting("bbh/navigate", "start", "a", "b", sizes=(4, 4, 4))
    queue = [some, replace(some, seed=1), replace(some, stated=True)]
    told = dry.report([*queue, replace(some, method="peer-gepa")], root).splitlines()
    assert [line.split(" | ")[1:3] for line in told[2:4]] == [
        ["start", "2"],
        ["start, form stated", "1"],
    ]
    assert told[2].split(" | ")[3] == "16"  # 2 calls a question, once: nothing is trained
    assert told[-1].startswith("Not counted: peer-gepa: it is a peer")


def test_a_run_that_states_the_form_starts_where_the_control_ends(root: Path) -> None:
    control = run(root, "format", Model())
    found = run(root, "start", Model(), stated=True)
    assert found["initial"] == control["instructions"] != control["initial"]
    assert found["before"] == control["after"]
    setting = Setting("liar", "peer-copro", "a", "b", sizes=(8, 8, 6), stated=True)
    told = job(setting, load("liar", root, 0, (8, 8, 6)), "", "")["graph"]
    assert {node["name"]: node["instruction"] for node in told} == found["initial"]


@pytest.mark.parametrize("name", ["small", "full"])
def test_a_queue_names_runs_that_there_are(name: str) -> None:
    found = queued(name)
    assert len({json.dumps(setting.key()) for setting in found}) == len(found)
    assert {setting.method for setting in found} <= set(METHODS)


def test_a_key_changes_with_the_method_and_the_prompts_that_it_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def keys() -> dict[str, dict[str, Any]]:
        return {name: Setting("gsm8k", name, "a", "b").key() for name in METHODS}

    def changed(name: str, value: Any) -> set[str]:
        before = keys()
        with monkeypatch.context() as patched:
            patched.setattr(name, value)
            after = keys()
        return {name for name in METHODS if before[name] != after[name]}

    trained = {name for name, m in METHODS.items() if m.peer is None and m.steps != 0}
    walked, seen = {"textgrad", "textgrad-5"}, {"optoprime", "optoprime-5"}
    proposed = {"copro", "copro-12"}
    rivals = walked | seen | proposed
    blank = {"rewrite", "random", "random-5", "random-7"}
    assert changed("textautograd.prompts.rewrite.SYSTEM", "x") == walked
    assert changed("textautograd.prompts.graph.SYSTEM", "x") == seen
    assert changed("textautograd.prompts.propose.SYSTEM", "x") == proposed
    own = {"no-form-5"}
    assert changed("textautograd.prompts.optimize.SYSTEM", "x") == trained - rivals - blank - own
    assert changed("benchmarks.paper.methods.FORMLESS", "x") == own
    assert changed("textautograd.prompts.textgrad.SYSTEM", "x") == {*walked, "edges"}
    joint = trained - rivals - blank - {"no-gradient", "edges", "no-data", "no-data-5"}
    assert changed("textautograd.prompts.semantic.SYSTEM", "x") == joint
    assert changed("benchmarks.paper.settings.NOTHING", "x") == {"no-gradient"}
    assert changed("benchmarks.paper.methods.NOTHING", "x") == {"samples-5"}
    assert changed("benchmarks.paper.settings.once_more", lambda *_: ["x"]) == trained
    said = lambda *_: Scored("x", 1.0)  # noqa: E731
    assert changed("textautograd.nn.loss.ExactMatch.forward", said) == trained
    assert changed("benchmarks.paper.settings.FORMATS", {"gsm8k": "x"}) == {"format"}
    assert not changed("benchmarks.paper.settings.FORMATS", FORMATS | {"liar": "x"})
    stated = Setting("gsm8k", "sgd", "a", "b", stated=True)
    key = stated.key()
    with monkeypatch.context() as patched:
        patched.setattr("benchmarks.paper.settings.FORMATS", {"gsm8k": "x"})
        assert stated.key() != key
    for change in ({"candidates": 9}, {"steps": 9}, {"gate": None}, {"rule": ta.rules.none}):
        others = METHODS | {"sgd": replace(METHODS["sgd"], **change)}
        assert changed("benchmarks.paper.settings.METHODS", others) == {"sgd"}
    told = METHODS | {"sgd": replace(METHODS["sgd"], what="said otherwise")}
    assert not changed("benchmarks.paper.settings.METHODS", told)
    assert " at 0x" not in str([definition(m) for m in METHODS.values()])


def test_no_line_names_a_place_on_this_machine(root: Path) -> None:
    class Unusable(Improving):
        def said(self, request: Request) -> str:
            ours = request.purpose == "backward" and len(self.of("backward")) < 3
            return "no form at all" if ours else super().said(request)

    line = run(root, "sgd", Unusable())
    assert any("graphs.py" in text for step in line["steps"] for text in step["failed"])
    assert str(Path(report.__file__).parents[1]) not in json.dumps(line)
