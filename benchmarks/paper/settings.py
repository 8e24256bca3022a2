"""What determines a run, and the runs that fit on a small machine, in the order they are made."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import FunctionType
from typing import Any

from benchmarks.paper.graphs import analysts, two_hints
from benchmarks.paper.methods import (
    METHODS,
    NOTHING,
    Method,
    blind_to_siblings,
    no_gradient,
    one_by_one,
)
from benchmarks.paper.questions import CHOICE, FORMATS
from textautograd import nn, optim, rules
from textautograd.gradient import Feedback
from textautograd.prompts.form import Form, once_more
from textautograd.prompts.forward import forward
from textautograd.prompts.graph import COMPLETE, MADE, Call, graph
from textautograd.prompts.optimize import optimize
from textautograd.prompts.propose import propose
from textautograd.prompts.rewrite import rewrite
from textautograd.prompts.semantic import semantic
from textautograd.prompts.textgrad import textgrad


@dataclass(frozen=True, slots=True)
class Setting:
    """One run. `sizes` are training, gate and held-out questions; 0 of the last: all that are left.

    `tokens` ends training when it has cost so many, of whatever step. With `stated` the last
    node's instruction says from the beginning what an answer looks like.
    """

    task: str
    method: str
    model: str
    optimizer_model: str
    seed: int = 0
    sizes: tuple[int, int, int] = (20, 20, 0)
    steps: int = 4
    batch_size: int = 20
    examples: int = 2
    max_tokens: int = 1024
    optimizer_max_tokens: int = 1024
    tokens: int | None = None
    reasoning: bool = True
    stated: bool = False

    def key(self) -> dict[str, Any]:
        """Everything that determines the run: the settings, what the method is, and the prompts
        that it uses as they are."""
        method = METHODS[self.method]
        is_stated = self.stated or method.state_format
        form = FORMATS.get(self.task, CHOICE) if is_stated else None
        return {
            **asdict(self),
            "sizes": list(self.sizes),
            "definition": digest(definition(method)),
            "prompts": digest(prompts(method, form)),
        }


def digest(value: Any) -> str:
    """Of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def definition(method: Method) -> dict[str, Any]:
    """What a method is, but for what is said of it; functions and classes by name."""

    def told(value: Any) -> Any:
        if isinstance(value, type | FunctionType):
            return f"{value.__module__}.{value.__qualname__}"
        return value if isinstance(value, str | int | tuple | None) else repr(value)

    named = [field.name for field in fields(method) if field.name != "what"]
    found = {name: told(getattr(method, name)) for name in named}
    if method.candidates == 1 and method.peer is None and method.steps != 0:
        found["again"] = "drawn at a temperature, as the first reply was at none"
    return found


def prompts(method: Method, form: str | None = None) -> list[Any]:
    """The graphs, the answer's form where it is stated, and the prompts that a method uses as they
    are written about given texts."""
    written: list[Any] = [forward("I", {"one": "1"}, "format")]
    written += [two_hints(True), two_hints(False), analysts()]
    if form is not None:
        written.append(form)
    if method.peer is None and method.steps != 0:
        reply = Form(["one", "other"], nullable=True)
        how = [reply.how(structured) for structured in ("schema", "tagged")]
        rule = method.optimizer.rule if method.rule is None else method.rule
        written += [reply.schema(), how, _backward(rule, how[0]), _rewriting(method, how[0])]
        written += [once_more("reply", "why", None), nn.ExactMatchLoss()("output", "target").data]
    return written


def _backward(rule: Any, how: str) -> list[Any]:
    own = getattr(rule, "func", rule)  # of a partial
    step = {"task": "T", "inputs": {"one": "1", "other": "2"}, "output": "O", "feedback": "F"}
    if own in (rules.semantic, blind_to_siblings, one_by_one):
        return [semantic(**step, asked=["one", "other"], how=how)]
    if own is rules.textgrad:
        return [textgrad(**step, variable=name, how=how) for name in ("one", "instruction")]
    return [NOTHING] if own is no_gradient else []


def _rewriting(method: Method, how: str) -> list[Any]:
    shown = [Feedback("F", inputs={"one": "1"}, output="O")]
    if issubclass(method.optimizer, optim.TextGrad):
        return [rewrite("I", "role", shown, ["past"], ["earlier"], ["a constraint"], how)]
    if issubclass(method.optimizer, optim.OptoPrime):
        calls: list[Call] = [("value-1", "complete", ("one",), ("variable-1",))]
        calls += [("value-2", "made", (), ("value-1", "variable-1"))]
        names = ("variable-1", "value-1", "value-2", "past-1-feedback", "tried-1-variable-1")
        blocks = {name: "T" for name in names}
        return [graph(calls, blocks, ["a constraint"], how), COMPLETE, MADE]
    if issubclass(method.optimizer, optim.COPRO):
        return [propose({name: "I"}, how) for name in ("instruction", "attempt-1")]
    return [(method.prompt or optimize)("I", shown, ["tried"], how)]


def queued(name: str = "small") -> list[Setting]:
    """The runs of a queue, a file beside this one.

    It is {"common": settings, "blocks": [settings, with lists of "task", "method" and "seed"]}.
    Runs go block by block; in each seed by seed, then task by task, then method by method. One that
    is named twice is one.
    """
    queue = json.loads((Path(__file__).parent / f"{name}.json").read_text("utf-8"))
    found = []
    for block in queue["blocks"]:
        given = {**queue["common"], **block}
        lists = (given.pop("seed"), given.pop("task"), given.pop("method"))
        given["sizes"] = tuple(given["sizes"])
        for seed, task, method in itertools.product(*lists):
            found.append(Setting(task, method, seed=seed, **given))
    return list(dict.fromkeys(found))
