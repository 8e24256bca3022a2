"""Tables and plots of what `benchmarks.paper` found.

python -m benchmarks.report [--results FILE]     prints them
python -m benchmarks.report --write              puts them into benchmarks/README.md and paper.svg
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from benchmarks.paper import lines
from benchmarks.paper.chart import chart
from benchmarks.paper.lines import Line
from benchmarks.paper.methods import METHODS
from benchmarks.paper.settings import Setting, queued
from benchmarks.paper.statistics import Interval, interval
from textautograd.checking import misfit
from textautograd.errors import UsageError

HERE = Path(__file__).parent
BEGIN, END = "<!-- paper: begin -->\n", "<!-- paper: end -->\n"
KEY = {"task": str, "method": str, "seed": int, "sizes": (int, int, int), "steps": int}
KEY |= {"batch_size": int, "model": str, "optimizer_model": str, "tokens": int | None}
STAGE = {"exact": [int], "lenient": [int]}
COST = {str: {str: (int, int, int)}}  # by stage and purpose: calls, tokens in and out
SHAPE = {"key": KEY, "before": STAGE, "after": STAGE, "steps": [dict], "cost": COST}
SHAPE |= {"most_frequent": int, "instructions": {str: str}, "error": dict | None}
STATE = ("definition", "prompts")  # of a method
SETTINGS = [f.name for f in fields(Setting) if f.name not in ("task", "method", "seed")]

NOTE = """\
Means over seeds, with 95 % intervals (bootstrap over seeds and questions; with one seed over
questions alone, which is too narrow). Differences are paired, in points. Bold: the interval at
5 % ÷ {comparisons} (Bonferroni, over the methods and tasks compared) excludes 0. A failed sample
counts as wrong. Beside a peer's tokens is how much that is of those it was allowed, which `sgd` had
spent on training in the same setting."""


@dataclass
class Row:
    """Runs that differ in their seed alone."""

    method: str
    name: str
    runs: list[Line]

    def went_through(self) -> list[Line]:
        return [line for line in self.runs if line["error"] is None]


def grouped(found: list[Line]) -> dict[str, Group]:
    """Tables by name: runs that differ in seed and method alone, a row for each method; where a
    method or its prompts were changed between runs, a row for each state of them."""
    known = [line for line in reversed(found) if line["key"]["method"] in METHODS]
    unique = {json.dumps(line["key"], sort_keys=True): line for line in known}
    ordered = sorted(reversed(unique.values()), key=lambda line: int(line["key"]["seed"]))
    groups = {}
    for task in dict.fromkeys(line["key"]["task"] for line in ordered):
        tables = split([line for line in ordered if line["key"]["task"] == task], SETTINGS)
        for told, table in tables:
            groups[", ".join([task, *told])] = [
                Row(method, ", ".join([METHODS[method].what, *state]), runs)
                for method in METHODS
                for state, runs in split(
                    [line for line in table if line["key"]["method"] == method], STATE
                )
            ]
    return groups


def split(some: list[Line], names: Sequence[str]) -> list[tuple[list[str], list[Line]]]:
    """Lines by these parts of their keys, each group with those in which groups differ."""
    groups: dict[str, list[Line]] = {}
    for line in some:
        same = json.dumps([line["key"].get(name) for name in names])
        groups.setdefault(same, []).append(line)
    keys = [runs[0]["key"] for runs in groups.values()]
    differ = [n for n in names if any(key.get(n) != keys[0].get(n) for key in keys)]
    return [
        ([f"{n.replace('_', ' ')} {runs[0]['key'].get(n)}" for n in differ], runs)
        for runs in groups.values()
    ]


def plain(text: str) -> str:
    """A text as it can stand in a cell, whatever it holds."""
    short = " ".join(text.encode(errors="replace").decode().split())[:300]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", short)


Group = list[Row]  # of a table


def changes(runs: list[Line], score: str, others: list[Line] | None = None) -> list[list[float]]:
    """Differences by seed and question: after training less before it, or less `others`' after."""
    found = []
    for run in runs:
        other = run["before"]
        if others is not None:
            same = [o for o in others if o["key"]["seed"] == run["key"]["seed"]]
            if not same:
                continue
            other = same[0]["after"]
        found.append([a - b for a, b in zip(run["after"][score], other[score], strict=True)])
    return found


def table(group: Group, comparisons: int) -> str:
    """A task's methods, one a row."""
    rows = [
        "| method | seeds | exact, % | lenient, % | exact less start | lenient less start "
        "| exact less sgd | steps accepted | words | training: calls | tokens |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    (of_sgd, *other_states) = [row.went_through() for row in group if row.method == "sgd"] or [[]]
    for row in group:
        runs = row.went_through()
        for line in row.runs:
            if line["error"] is not None:
                said = plain(f"{line['error']['type']}: {line['error']['message']}")
                failed = f"failed, seed {line['key']['seed']}: {said}"
                rows.append(f"| {row.name} | {failed} |" + " |" * 9)
        if not runs:
            continue
        steps = [step for run in runs for step in run["steps"]]
        is_compared = row.method != "sgd" and not other_states
        versus = changes(runs, "exact", of_sgd) if is_compared else []
        cells = [
            row.name,
            str(len(runs)),
            level(runs, "exact"),
            level(runs, "lenient"),
            *(points(changes(runs, score), comparisons) for score in ("exact", "lenient")),
            points(versus, comparisons),
            f"{sum(bool(s.get('accepted')) for s in steps)} of {len(steps)}" if steps else "",
            f"{mean(words, runs):.0f}",
            f"{mean(lambda run: training(run, 0), runs):,.0f}",
            f"{mean(tokens, runs):,.0f}{of_allowed(runs)}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def level(runs: list[Line], score: str) -> str:
    """How many are right after training, with the interval."""
    found = interval([run["after"][score] for run in runs])
    return f"{100 * found.mean:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def points(values: list[list[float]], comparisons: int) -> str:
    """A difference in percentage points; bold where it holds among so many comparisons."""
    if not values:
        return ""
    found = interval(values)
    text = f"{100 * found.mean:+.0f} ({100 * found.low:+.0f} to {100 * found.high:+.0f})"
    return f"**{text}**" if interval(values, 0.05 / comparisons).excludes_zero() else text


def words(run: Line) -> int:
    """Of all instructions together."""
    return sum(len(text.split()) for text in run["instructions"].values())


def training(run: Line, which: int) -> int:
    """Calls (0), input (1) or output tokens (2) of training."""
    return sum(counts[which] for counts in run["cost"].get("training", {}).values())


def tokens(run: Line) -> int:
    """Of training, sent and received."""
    return training(run, 1) + training(run, 2)


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
            right = [
                [
                    hit
                    for hit, own in zip(run["after"]["exact"], run["labels"], strict=True)
                    if own == label
                ]
                for run in runs
            ]
            found = interval(right)
            share = f"{100 * found.mean:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"
            rows.append(f"| {row.name} | {label} | {share} | {len(right[0])} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def bars(groups: dict[str, Group]) -> list[tuple[str, str, Interval]]:
    """What is drawn: task, method, gain in exact match."""
    return [
        (task, row.name, interval(changes(runs, "exact")))
        for task, group in groups.items()
        for row in group
        if (runs := row.went_through()) and row.method != "start"
    ]


def check(found: list[Line]) -> None:
    """Finds out whether each line can be reported.

    Raises:
        UsageError: one cannot.
    """
    first: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(found, 1):
        why = misfit(line, SHAPE) or _unfit(line)
        if not why:
            asked = json.dumps([line["key"]["task"], line["key"]["sizes"]])
            held_out = len(line["after"]["exact"])
            other, there = first.setdefault(asked, (number, held_out))
            if held_out != there:
                why = f"it has {held_out} held-out questions of the same kind as {there} in result "
                why += str(other)
        if why:
            raise UsageError(f"result {number} cannot be reported: {why}: mend or delete its line")


def _unfit(line: Line) -> str | None:
    """What is wrong with a line that has all its parts."""
    if line["error"] is not None and (
        why := misfit(line["error"], {"type": str, "message": str}, "its error")
    ):
        return why
    lists = {f"{s}.{n}": line[s][n] for s in ("before", "after") for n in STAGE}
    if any(hit not in (0, 1) for hits in lists.values() for hit in hits):
        return "what is right or wrong is neither 0 nor 1"
    if "labels" in line:
        if why := misfit(line["labels"], [str], "labels"):
            return why
        lists["labels"] = line["labels"]
    (_, one), *others = lists.items()
    for name, other in others:
        if len(other) != len(one):
            return f"{name} is of {len(other)} questions, and before.exact of {len(one)}"
    return None if one else "there are no questions"


def missing(found: list[Line]) -> list[Setting]:
    """Runs of the queue that have no line."""
    return [setting for setting in queued() if not lines.is_there(found, setting.key())]


def report(found: list[Line]) -> str:
    """Everything, as Markdown."""
    groups = grouped(found)
    comparisons = max(1, len(bars(groups)))
    parts = []
    for task, group in groups.items():
        some = group[0].runs[0]
        held_out = len(some["after"]["exact"])
        key = some["key"]
        parts += [
            f"### {task}",
            f"{held_out} held-out questions, {key['sizes'][0]} to train on, {key['sizes'][1]} for "
            f"the gate, {key['steps']} steps of {key['batch_size']}; {key['model']} for the agent, "
            f"{key['optimizer_model']} for backward and rewriting"
            + (f"; training ends at {key['tokens']:,} tokens." if key["tokens"] else ".")
            + f" The most frequent answer alone would be right in {some['most_frequent']} of them.",
            table(group, comparisons),
        ]
        if labels := recalls(group):
            parts.append(labels)
    parts.append(NOTE.format(comparisons=comparisons))
    left, all_ = len(missing(found)), len(queued())
    parts.append(f"{all_ - left} of the queue's {all_} runs are there.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "paper.jsonl")
    parser.add_argument("--write", action="store_true", help="into benchmarks/README.md")
    arguments = parser.parse_args()
    try:
        found = lines.read(arguments.results)
        check(found)
        if not found:
            raise UsageError(f"there are no results in {arguments.results}")
    except (UsageError, OSError) as error:
        sys.exit(str(error))
    text = report(found)
    if not arguments.write:
        print(text)
        return
    readme = HERE / "README.md"
    before, rest = readme.read_text("utf-8").split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")
    (HERE / "paper.svg").write_text(chart(bars(grouped(found))), "utf-8")


if __name__ == "__main__":
    main()
