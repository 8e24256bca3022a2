"""What lines are about: tables of rows of runs, and what a run tells."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from benchmarks.paper.lines import Line
from benchmarks.paper.methods import METHODS
from benchmarks.paper.settings import Setting

STATE = ("definition", "prompts")  # of a method
OF_PEERS = ("tokens", "steps", "optimizer_max_tokens")  # what peers are given for themselves
SETTINGS = [f.name for f in fields(Setting) if f.name not in ("task", "method", "seed")]


@dataclass
class Row:
    """Runs that differ in their seed alone."""

    method: str
    name: str
    runs: list[Line]

    def went_through(self) -> list[Line]:
        return [line for line in self.runs if line["error"] is None]


Group = list[Row]  # of a table


def unknown(found: list[Line]) -> list[str]:
    """The methods of lines that cannot be in a table, as there is no such method any more."""
    names = (line["key"]["method"] for line in found)
    return sorted({name for name in names if name not in METHODS})


def untrained(group: Group) -> Counter[int]:
    """How many held-out questions the agent as written had right in each run of ours."""
    found: dict[str, Counter[int]] = {}
    for row in group:
        for run in row.runs:
            if not _is_peer(run):
                about = json.dumps([run["initial"], run["indices"]["test"]])
                found.setdefault(about, Counter())[sum(run["before"]["exact"])] += 1
    return max(found.values(), key=len, default=Counter())


def grouped(found: list[Line]) -> dict[str, Group]:
    """Tables by name: runs that differ in seed and method alone, a row for each method; where a
    method or its prompts were changed between runs, a row for each state of them. A peer is in the
    table of what it is compared with, whatever it was allowed itself."""
    known = [line for line in reversed(found) if line["key"]["method"] in METHODS]
    unique = {json.dumps(line["key"], sort_keys=True): line for line in known}
    ordered = sorted(reversed(unique.values()), key=lambda line: int(line["key"]["seed"]))
    groups = {}
    for task in dict.fromkeys(line["key"]["task"] for line in ordered):
        of_task = [line for line in ordered if line["key"]["task"] == task]
        ours = [line["key"] for line in of_task if not _is_peer(line)]
        for told, table in _split(of_task, SETTINGS, partial(_compared, ours)):
            rows = groups[", ".join([task, *told])] = list[Row]()
            for method in METHODS:
                its = [line for line in table if line["key"]["method"] == method]
                for _, allowed in _split(its, OF_PEERS, _key):
                    for state, runs in _split(allowed, STATE, _key):
                        rows.append(Row(method, ", ".join([named(runs[0]), *state]), runs))
    return groups


def settings_of(group: Group) -> dict[str, Any]:
    """What the runs of a table have in common; a peer's are those of what it is compared with."""
    runs = [run for row in group for run in row.runs]
    key = _key(next((run for run in runs if not _is_peer(run)), runs[0]))
    return {name: key.get(name) for name in SETTINGS}


def named(line: Line) -> str:
    """The method, and what a peer was allowed if that was said."""
    tokens = line["key"]["tokens"]
    allowed = f", {tokens:,} tokens" if tokens and _is_peer(line) else ""
    return METHODS[line["key"]["method"]].what + allowed


def _is_peer(line: Line) -> bool:
    return METHODS[line["key"]["method"]].peer is not None


def _key(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = line["key"]
    return found


def _compared(ours: list[dict[str, Any]], line: Line) -> dict[str, Any]:
    """Its key; a peer's with the settings of ours, where it has its own."""
    key = _key(line)
    rest = [name for name in SETTINGS if name not in OF_PEERS]
    same = [o for o in ours if all(o.get(name) == key.get(name) for name in rest)]
    if not (same and _is_peer(line)):
        return key
    first = min(same, key=lambda o: o["tokens"] or 0)
    return key | {name: first.get(name) for name in OF_PEERS}


def _split(
    some: list[Line], names: Sequence[str], read: Callable[[Line], dict[str, Any]]
) -> list[tuple[list[str], list[Line]]]:
    """Lines by these parts of what is read of them, each group with those in which they differ."""
    groups: dict[str, list[Line]] = {}
    for line in some:
        same = json.dumps([read(line).get(name) for name in names])
        groups.setdefault(same, []).append(line)
    keys = [read(runs[0]) for runs in groups.values()]
    differ = [n for n in names if any(key.get(n) != keys[0].get(n) for key in keys)]
    return [
        ([f"{n.replace('_', ' ')} {key.get(n)}" for n in differ], runs)
        for key, runs in zip(keys, groups.values(), strict=True)
    ]


def changes(runs: list[Line], score: str, others: list[Line] | None = None) -> list[list[float]]:
    """Differences by seed and question: after training less before it, or less `others`' after."""
    found, paired = [], []
    for run in runs:
        other = run["before"]
        if others is not None:
            same = [o for o in others if o["key"]["seed"] == run["key"]["seed"]]
            if not same:
                continue
            other = same[0]["after"]
        found.append([a - b for a, b in zip(run["after"][score], other[score], strict=True)])
        paired.append(run)
    return by_question(paired, found)


def by_question(runs: list[Line], values: list[list[float]]) -> list[list[float]]:
    """What each run has for its held-out questions, at a place for each question that one was
    asked; not a number where it was not asked it."""
    asked = dict.fromkeys(index for run in runs for index in run["indices"]["test"])
    found = []
    for run, own in zip(runs, values, strict=True):
        of_index = dict(zip(run["indices"]["test"], own, strict=True))
        found.append([of_index.get(index, math.nan) for index in asked])
    return found


def most_frequent(group: Group) -> str:
    """How many of each seed's held-out questions the most frequent answer alone would be right
    in: a number where that is one."""
    by_seed = {run["key"]["seed"]: str(run["most_frequent"]) for row in group for run in row.runs}
    found = [by_seed[seed] for seed in sorted(by_seed)]
    return ", ".join(found[:1] if len(set(found)) == 1 else found)


def has_changed(run: Line) -> bool:
    """Whether its instructions are others than at the beginning."""
    return bool(run["instructions"] != run["initial"])


def tried(run: Line) -> int:
    """In how many steps a rewrite was scored, or taken as it was."""
    count, current = 0, run["initial"]
    for step in run["steps"]:
        proposed = step.get("proposed", current)
        count += (
            proposed != current
            or bool(step.get("changes"))
            or str(step.get("why")).startswith("not better")
        )
        current = proposed if step.get("accepted", True) else current  # Trace has no gate
    return count


def words(run: Line) -> int:
    """Of all instructions together."""
    return sum(len(text.split()) for text in run["instructions"].values())


def training(run: Line, which: int) -> int:
    """Calls (0), input (1) or output tokens (2) of training."""
    return sum(counts[which] for counts in run["cost"].get("training", {}).values())


def tokens(run: Line) -> int:
    """Of training, sent and received."""
    return training(run, 1) + training(run, 2)
