"""Tables and plots of what `benchmarks.paper` found.

python -m benchmarks.report [--results FILE]     prints them
python -m benchmarks.report --write              puts them into benchmarks/README.md and paper.svg
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from benchmarks.paper import lines
from benchmarks.paper.chart import Bar, chart
from benchmarks.paper.checked import check
from benchmarks.paper.groups import (
    Group,
    changes,
    grouped,
    has_changed,
    most_frequent,
    unknown,
    untrained,
)
from benchmarks.paper.lines import Line
from benchmarks.paper.means import means
from benchmarks.paper.settings import Setting, queued
from benchmarks.paper.statistics import holm, interval, sign_test
from benchmarks.paper.tables import compared, holds_up, recalls, summary, table
from textautograd.errors import UsageError
from textautograd.files import write_whole
from textautograd.terminal import spelled, tell, write_anything

HERE = Path(__file__).resolve().parent
PUBLISHED = HERE / "results" / "paper.jsonl"
BEGIN, END = "<!-- paper: begin -->\n", "<!-- paper: end -->\n"

HOW_TO_READ = """\
For each seed: held-out questions answered right to the letter, before → after training. `=`:
rewrites were tried, and none was kept. `-`: no rewrite was ever tried, as none was proposed, no
reply could be used, or the tokens were spent before."""

NOTE = """\
Means over seeds, with 95 % intervals: Wilson's for one seed and where all are the same, else by the
bootstrap over seeds and questions. Differences are paired, in points. Two or three seeds say little
of what another would bring, so this describes these runs, not the methods. *less sgd*: arms with
five candidates are compared with SGD with five. Bold: of three seeds or more the interval excludes
0, and an exact sign test over questions holds among all {comparisons} differences of these tables
(Holm, 5 %). Steps are SGD's and its arms'; COPRO has as many rounds as it says, a peer what its
lines' settings say. *tried*: steps in which a rewrite was scored, or taken as it was; *changed*:
runs that ended with other instructions. A failed sample counts as wrong. Beside a peer's tokens is
how much that is of what it was allowed: what stands beside its name, else what `sgd` had spent on
training in the first form of its runs."""


def missing(found: list[Line]) -> list[Setting]:
    """Runs of the queue that have no line."""
    return [setting for setting in queued() if not lines.is_there(found, setting.key())]


def differences(groups: dict[str, Group]) -> list[float]:
    """The p of every difference in the tables."""
    return [
        sign_test(values)
        for group in groups.values()
        for row in group
        for values in compared(row, group)
        if values
    ]


def bars(groups: dict[str, Group]) -> list[Bar]:
    """What is drawn: the gain in exact match of each row, beside that of the form stated."""
    holds = holm(differences(groups))
    found = []
    for task, group in groups.items():
        stated = [changes(r.went_through(), "exact") for r in group if r.method == "format"]
        mark = interval(stated[0]).mean if stated and stated[0] else None
        for row in group:
            runs = row.went_through()
            if row.method in ("start", "format") or not runs:
                continue
            values = changes(runs, "exact")
            changed, gain = any(map(has_changed, runs)), interval(values)
            is_sure = holds_up(values, holds)
            found.append(Bar(task, row.name, gain, mark, changed, is_sure))
    return found


def made_with(groups: dict[str, Group]) -> str:
    """What the runs were made with, where that was not the same in all."""
    found = [line for group in groups.values() for row in group for line in row.runs]
    weights: dict[str, set[str]] = {}
    for line in found:
        for model, told in line.get("served", {}).items():
            weights.setdefault(model, set()).add(json.dumps(told, sort_keys=True))
    unlike = [model for model, tellings in weights.items() if len(tellings) > 1]
    said = f" Not all were made with the same weights of {', '.join(unlike)}." if unlike else ""
    trees = {line.get("versions", {}).get("tree") for line in found} - {None}
    if len(trees) > 1:
        said += f" They were made by {len(trees)} states of the code."
    return said


def report(found: list[Line], is_published: bool = False) -> str:
    """Everything, as Markdown; of what this repository publishes with the queue's state."""
    groups = grouped(found)
    tested = differences(groups)
    about = made_with(groups)
    if is_published:
        left, all_ = len(missing(found)), len(queued())
        about = f"{all_ - left} of the queue's {all_} runs are there.{about}"
    parts = [about.strip()] if about else []
    parts += [HOW_TO_READ, summary(groups)]
    if is_published:
        parts.append("![Gains in exact match by task and method, with intervals](paper.svg)")
        parts.append("<details><summary>Intervals, differences and costs, task by task</summary>")
    parts += [NOTE.format(comparisons=len(tested)), *means(groups)]
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
            + f" The most frequent answer alone would be right in {most_frequent(group)} of them.",
            table(group, holm(tested)),
        ]
        if len(begun := untrained(group)) > 1:
            counts = ", ".join(f"{right} in {runs} runs" for right, runs in sorted(begun.items()))
            parts.append(f"The untrained agent was not always the same: right are {counts}.")
        if labels := recalls(group):
            parts.append(labels)
    return "\n\n".join([*parts, *(["</details>"] if is_published else [])]) + "\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--results",
        type=Path,
        default=PUBLISHED,
        help="a file of lines; by default those that benchmarks/README.md tells of",
    )
    parser.add_argument(
        "--write", action="store_true", help="put them into benchmarks/README.md and paper.svg"
    )
    arguments = parser.parse_args()
    write_anything()
    try:
        if arguments.results.exists() and not arguments.results.is_file():
            raise UsageError(f"argument --results: {arguments.results} is no file")
        found = lines.read(arguments.results)
        check(found)
        left_out = unknown(found)
        if not found or {line["key"]["method"] for line in found} <= {*left_out}:
            of = f" but of methods that are not known: {', '.join(left_out)}" if left_out else ""
            raise UsageError(f"there are no results in {arguments.results}{of}")
        if left_out:
            tell(f"left out, as there is no such method: {', '.join(left_out)}")
        if arguments.write and arguments.results.resolve() != PUBLISHED:
            raise UsageError(
                "--write publishes the results of this repository: leave out --results"
            )
        text = report(found, arguments.results.resolve() == PUBLISHED)
        if arguments.write:
            publish(text, chart(bars(grouped(found))))
        else:
            print(text, flush=True)
    except (UsageError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit("\n".join(spelled(error)))


def publish(text: str, drawn: str) -> None:
    """Puts both where readers find them."""
    readme = HERE / "README.md"
    whole = readme.read_text("utf-8")
    if not (whole.count(BEGIN) == whole.count(END) == 1):
        raise UsageError(f"{readme} must hold {BEGIN.strip()} and {END.strip()}, once each")
    before, after = whole.split(BEGIN)[0], whole.split(END)[1]
    write_whole(readme, f"{before}{BEGIN}\n{text}\n{END}{after}".encode())
    write_whole(HERE / "paper.svg", drawn.encode())


if __name__ == "__main__":
    main()
