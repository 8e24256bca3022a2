"""Lines as Markdown tables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.paper.groups import (
    Group,
    Row,
    by_question,
    changes,
    has_changed,
    most_frequent,
    tokens,
    training,
    tried,
    words,
)
from benchmarks.paper.lines import Line
from benchmarks.paper.methods import METHODS
from benchmarks.paper.statistics import interval, sign_test, wilson

SEEDS = 3


def summary(groups: dict[str, Group]) -> str:
    """Right answers by method and task, a number for each seed; of each task the largest table."""
    largest: dict[str, Group] = {}
    for group in sorted(groups.values(), key=lambda g: -sum(len(row.runs) for row in g)):
        largest.setdefault(group[0].runs[0]["key"]["task"], group)
    tasks = {task: largest[task] for task in dict.fromkeys(_task(g) for g in groups.values())}
    names = list(dict.fromkeys(row.name for group in tasks.values() for row in group))
    asked = {task: len(group[0].runs[0]["after"]["exact"]) for task, group in tasks.items()}
    rows = [
        f"| right of {' / '.join(dict.fromkeys(map(str, asked.values())))} | "
        + " | ".join(task.removeprefix("bbh/") for task in tasks)
        + " |",
        "|---" * (len(tasks) + 1) + "|",
        "| the most frequent answer, whatever is asked | "
        + " | ".join(map(most_frequent, tasks.values()))
        + " |",
    ]
    for name in sorted(names, key=lambda name: _place(tasks, name)):
        cells = [
            ", ".join(_count(run) for row in group if row.name == name for run in row.runs)
            for group in tasks.values()
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _task(group: Group) -> str:
    return str(group[0].runs[0]["key"]["task"])


def _place(tasks: dict[str, Group], name: str) -> int:
    found = (row.method for group in tasks.values() for row in group if row.name == name)
    return min(map(list(METHODS).index, found))


def _count(run: Line) -> str:
    """How many are right before and after training; `=` if nothing was changed by it, `-` if no
    rewrite was ever tried."""
    if run["error"] is not None:
        return "failed"
    before, right = (sum(run[stage]["exact"]) for stage in ("before", "after"))
    if not run["cost"].get("training"):
        return str(right)
    if has_changed(run):
        return f"{before} → {right}"
    return f"{right}{'=' if tried(run) else '-'}"


def table(group: Group, holds: float) -> str:
    """A task's methods, one a row; bold is what has no larger p than `holds`."""
    rows = [
        "| method | seeds | exact, % | lenient, % | exact less start | exact less form stated "
        "| exact less sgd | tried | changed | words | training: calls | tokens |",
        "|---" * 12 + "|",
    ]
    for row in group:
        runs = row.went_through()
        for line in row.runs:
            if line["error"] is not None:
                said = plain(f"{line['error']['type']}: {line['error']['message']}")
                failed = f"failed, seed {line['key']['seed']}: {said}"
                rows.append(f"| {row.name} | {failed} |" + " |" * 10)
        if not runs:
            continue
        cells = [
            row.name,
            str(len(runs)),
            level(by_question(runs, [run["after"]["exact"] for run in runs])),
            level(by_question(runs, [run["after"]["lenient"] for run in runs])),
            *(points(values, holds, len(runs)) for values in compared(row, group)),
            str(sum(map(tried, runs))),
            f"{sum(map(has_changed, runs))} of {len(runs)}",
            f"{mean(words, runs):.0f}",
            f"{mean(lambda run: training(run, 0), runs):,.0f}",
            f"{mean(tokens, runs):,.0f}{of_allowed(runs)}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def compared(row: Row, group: Group) -> list[list[list[float]]]:
    """What a row is compared with: its own start, the form stated, and `sgd` with as many
    candidates (that, with one). Empty where it is not there, is there in several states, or is the
    row itself; and for the rows that others are compared with, as that would be said twice."""
    if row.method == "start":
        return [[], [], []]
    found = [changes(row.went_through(), "exact")]
    is_of_five = METHODS[row.method].candidates == 5 and row.method != "sgd-5"
    for method in ("format", "sgd-5" if is_of_five else "sgd"):
        (others, *more) = [r.went_through() for r in group if r.method == method] or [[]]
        is_compared = row.method not in (method, "format") and others and not more
        found.append(changes(row.went_through(), "exact", others) if is_compared else [])
    return found


def level(values: Sequence[Sequence[float]]) -> str:
    """How many are right, with the interval: Wilson's where the bootstrap has nothing to draw."""
    found = interval(values)
    low, high = found.low, found.high
    if len(values) == 1 or low == high:
        low, high = wilson(found.mean, len(values[0]))
    return f"{100 * found.mean:.0f} ({100 * low:.0f} to {100 * high:.0f})"


def points(values: list[list[float]], holds: float, seeds: int) -> str:
    """A difference in percentage points, bold where it holds; of how many seeds, if not of all."""
    if not values:
        return ""
    of = f", {len(values)} seed{'s' * (len(values) > 1)}" if len(values) < seeds else ""
    if not np.nan_to_num(values).any():
        return f"same{of}"
    found = interval(values)
    text = f"{100 * found.mean:+.0f} ({100 * found.low:+.0f} to {100 * found.high:+.0f})"
    return f"**{text}**{of}" if holds_up(values, holds) else f"{text}{of}"


def holds_up(values: list[list[float]], holds: float) -> bool:
    """Whether a difference holds among all that were tested. Of one seed or two none does: however
    many questions there are, they are of one or two draws of the method."""
    is_sure = interval(values).excludes_zero() and sign_test(values) <= holds
    return is_sure and len(values) >= SEEDS


def of_allowed(runs: list[Line]) -> str:
    """How much of the tokens that a peer was allowed it has used, if it was told how many."""
    allowed = sum((run.get("settings") or {}).get("tokens") or 0 for run in runs)
    return f" ({sum(map(tokens, runs)) / allowed:.0%})" if allowed else ""


def mean(of: Callable[[Line], float], runs: list[Line]) -> float:
    return sum(map(of, runs)) / len(runs)


def recalls(group: Group) -> str:
    """Where held-out answers are one of two labels: how many of each are found."""
    rows = ["| method | label | right, % | of |", "|---|---|---|---|"]
    for row in group:
        runs = [line for line in row.went_through() if "labels" in line]
        for label in sorted({label for run in runs for label in run["labels"]}):
            hits = [
                [
                    hit if own == label else math.nan
                    for hit, own in zip(run["after"]["exact"], run["labels"], strict=True)
                ]
                for run in runs
            ]
            found = np.asarray(by_question(runs, hits))
            right = found[:, ~np.isnan(found).all(axis=0)].tolist()
            rows.append(f"| {row.name} | {label} | {level(right)} | {len(right[0])} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def plain(text: str) -> str:
    """A text as it can stand in a cell, whatever it holds."""
    short = " ".join(text.encode(errors="replace").decode().split())[:300]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", short)
