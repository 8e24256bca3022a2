"""What determines a run, and the runs that fit on a small machine, in the order they are made."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.graphs import analysts, two_hints
from benchmarks.paper.methods import uninformed
from textautograd.gradient import Feedback
from textautograd.prompts.form import Form
from textautograd.prompts.forward import forward
from textautograd.prompts.optimize import optimize
from textautograd.prompts.semantic import semantic
from textautograd.prompts.textgrad import textgrad


@dataclass(frozen=True, slots=True)
class Setting:
    """One run. `sizes` are training, gate and held-out questions; 0 of the last: all that are left.

    `tokens` ends training when it has cost so many, of whatever step.
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

    def key(self) -> dict[str, Any]:
        """Everything that determines the run: the settings, and the prompts as they are."""
        return {**asdict(self), "sizes": list(self.sizes), "prompts": prompts_hash()}


def prompts_hash() -> str:
    """A digest of the prompts as they are written about given texts, and of the graphs."""
    form = Form(["one", "other"], nullable=True)
    how = [form.how(structured) for structured in ("schema", "tagged")]
    step = {"task": "T", "inputs": {"one": "1", "other": "2"}, "output": "O", "feedback": "F"}
    shown = [Feedback("F", inputs={"one": "1"}, output="O")]
    written = [
        forward("I", {"one": "1"}, "format"),
        semantic(**step, asked=["one", "other"], how=how[0]),
        textgrad(**step, variable="one", how=how[1]),
        optimize("I", shown, ["tried"], how[0]),
        uninformed("I", shown, ["tried"], how[0]),
        form.schema(),
        [two_hints(True), two_hints(False), analysts()],
    ]
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()[:16]


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
