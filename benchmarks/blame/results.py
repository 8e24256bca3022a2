"""The lines of a file: one for each case and rule that has been measured."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import textautograd as ta
from benchmarks.blame.cases import CASES, SEED, Case, case_at, cases
from benchmarks.blame.gradients import RULES, gradients
from benchmarks.paper import lines
from textautograd.checking import misfit
from textautograd.engines import Engine
from textautograd.errors import UsageError

IN_FLIGHT = 8
HOLDS = {"case": int, "rule": str, "model": str}  # of a line; then its whole shape
SHAPE = HOLDS | {"gradients": {str: str | None}, "failed": int, "calls": int, "tokens": (int, int)}
SHAPE |= {"seconds": int | float}


def read(out: Path) -> list[dict[str, Any]]:
    """The lines of a file; the last, if a crash cut it, is left out.

    Raises:
        UsageError: a line is damaged. OSError: the file cannot be read.
    """
    found = lines.read(out, HOLDS)
    for number, line in enumerate(found, 1):
        why = misfit(line, SHAPE)
        if not why and line["rule"] not in RULES:
            why = f"there is no rule {line['rule']}"
        if not why and line["gradients"].keys() != case_at(line["case"], SEED).graph.keys():
            why = f"its nodes are not those of case {line['case']}"
        if why:
            raise UsageError(f"{out}: result {number} is damaged: {why}: mend or delete its line")
    return found


def run(out: Path, engine: Engine, model: str, names: Sequence[str], number: int = CASES) -> None:
    """Every case and rule that the file does not have yet, in the order of the cases.

    Raises:
        UsageError: the file has lines of another model, or damaged ones. EngineError: a call
            failed; what is there stays, and the same run goes on from it.
    """
    done = read(out)
    if others := {line["model"] for line in done} - {model}:
        raise UsageError(f"{out} was measured with {', '.join(others)}: name another file")
    there = {(line["case"], line["rule"]) for line in done}
    todo = [(c, n) for c in cases(number) for n in names if (c.number, n) not in there]
    lines.check(out, HOLDS)
    lock = threading.Lock()

    def one(item: tuple[Case, str]) -> None:
        case, name = item
        found = gradients(case, RULES[name], engine)
        about = {"case": case.number, "rule": name, "model": model}
        with lock:
            lines.append(out, about | found)

    ta.map(one, todo, max_workers=IN_FLIGHT)
