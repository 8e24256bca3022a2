"""Tables and plots of what `benchmarks.paper` found.

python -m benchmarks.report [--results FILE]     prints them
python -m benchmarks.report --write              puts them into benchmarks/README.md and paper.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.paper import lines
from benchmarks.paper.chart import chart
from benchmarks.paper.lines import Line
from benchmarks.paper.methods import METHODS
from benchmarks.paper.settings import Setting, queued
from benchmarks.paper.statistics import Interval, interval

HERE = Path(__file__).parent
BEGIN, END = "<!-- paper: begin -->\n", "<!-- paper: end -->\n"
Group = dict[str, list[Line]]  # a task's lines by method


NOTE = """\
Means over seeds, with 95 % intervals (bootstrap over seeds and questions; with one seed over
questions alone, which is too narrow). Differences are paired, in points. Bold: the interval at
5 % ÷ {comparisons} (Bonferroni, over the methods and tasks compared) excludes 0. A failed sample
counts as wrong."""


def grouped(found: list[Line]) -> dict[str, Group]:
    """Lines by task and method, each method's by seed; of runs that went through or failed."""
    groups: dict[str, Group] = {}
    for line in sorted(found, key=lambda line: int(line["key"]["seed"])):
        key = line["key"]
        tokens = f", {key['tokens']:,} tokens" if key["tokens"] else ""
        name = f"{key['task']}{tokens}"
        groups.setdefault(name, {}).setdefault(key["method"], []).append(line)
    return groups


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
    for method in METHODS:
        runs = [line for line in group.get(method, []) if line["error"] is None]
        for line in group.get(method, []):
            if line["error"] is not None:
                rows.append(
                    f"| {METHODS[method].what} | failed, seed {line['key']['seed']}: "
                    f"{line['error']['type']}: {line['error']['message']} |" + " |" * 9
                )
        if not runs:
            continue
        steps = [step for run in runs for step in run["steps"]]
        versus = changes(runs, "exact", group.get("sgd")) if method != "sgd" else []
        cells = [
            METHODS[method].what,
            str(len(runs)),
            level(runs, "exact"),
            level(runs, "lenient"),
            *(points(changes(runs, score), comparisons) for score in ("exact", "lenient")),
            points(versus, comparisons),
            f"{sum(bool(s.get('accepted')) for s in steps)} of {len(steps)}" if steps else "",
            f"{mean(words, runs):.0f}",
            f"{mean(lambda run: training(run, 0), runs):,.0f}",
            f"{mean(lambda run: training(run, 1) + training(run, 2), runs):,.0f}",
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


def mean(of: Callable[[Line], float], runs: list[Line]) -> float:
    return sum(map(of, runs)) / len(runs)


def recalls(group: Group) -> str:
    """Where held-out answers are one of two labels: how many of each are found."""
    rows = ["| method | label | right, % | of |", "|---|---|---|---|"]
    for method in METHODS:
        runs = [line for line in group.get(method, []) if "labels" in line and not line["error"]]
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
            rows.append(f"| {METHODS[method].what} | {label} | {share} | {len(right[0])} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def bars(groups: dict[str, Group]) -> list[tuple[str, str, Interval]]:
    """What is drawn: task, method, gain in exact match."""
    return [
        (task, METHODS[method].what, interval(changes(runs, "exact")))
        for task, group in groups.items()
        for method in METHODS
        if (runs := [line for line in group.get(method, []) if line["error"] is None])
        and method != "start"
    ]


def missing(found: list[Line]) -> list[Setting]:
    """Runs of the queue that have no line."""
    return [setting for setting in queued() if not lines.is_there(found, setting.key())]


def report(found: list[Line]) -> str:
    """Everything, as Markdown."""
    groups = grouped(found)
    comparisons = max(1, len(bars(groups)))
    parts = []
    for task, group in groups.items():
        some = next(iter(group.values()))[0]
        held_out = len(some["after"]["exact"])
        key = some["key"]
        parts += [
            f"### {task}",
            f"{held_out} held-out questions, {key['sizes'][0]} to train on, {key['sizes'][1]} for "
            f"the gate, {key['steps']} steps of {key['batch_size']}; {key['model']} for the agent, "
            f"{key['optimizer_model']} for backward and rewriting.",
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
    found = lines.read(arguments.results)
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
