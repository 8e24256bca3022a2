"""The tables of what a file has."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.blame.cases import SEED, Case, case_at
from benchmarks.blame.gradients import RULES
from benchmarks.blame.measures import MEASURES, scores
from benchmarks.blame.results import read
from benchmarks.paper.statistics import interval, wilson


def report(out: Path) -> str:
    """Markdown: by rule, the differences between rules, by shape, by kind. Only cases that every
    rule in the file has are compared."""
    done = read(out)
    by_case = {(line["case"], line["rule"]): line for line in done}
    names = [name for name in RULES if any(name == rule for _, rule in by_case)]
    numbers = sorted({number for number, _ in by_case})
    shared = [case_at(i, SEED) for i in numbers if all((i, n) in by_case for n in names)]
    if not shared:
        return "No case is there for every rule."
    score = {
        (c.number, n): scores(c, by_case[c.number, n]["gradients"], by_case[c.number, n]["failed"])
        for c in shared
        for n in names
    }

    def share(some: Sequence[Case], name: str, measure: str = "blame") -> str:
        mean = sum(score[c.number, name][measure] for c in some) / len(some)
        low, high = wilson(mean, len(some))
        return f"{mean:.0%} ({low:.0%} to {high:.0%})"

    def chance(some: Sequence[Case]) -> str:
        return f"{sum(1 / len(c.graph) for c in some) / len(some):.0%}"

    def last(some: Sequence[Case]) -> str:
        return f"{sum(c.node == list(c.graph)[-1] for c in some) / len(some):.0%}"

    def less(some: Sequence[Case], one: str, other: str | None) -> str:
        """A paired difference in blame, to another rule or to a random node."""
        mine = [score[c.number, one]["blame"] for c in some]
        its = [score[c.number, other]["blame"] if other else 1 / len(c.graph) for c in some]
        found = interval([[a - b for a, b in zip(mine, its, strict=True)]])
        bounds = f"{found.low:+.1%} to {found.high:+.1%}"
        return f"{one} minus {other or 'a random node'}: {found.mean:+.1%} ({bounds})"

    def differences(some: Sequence[Case]) -> list[str]:
        pairs = [*itertools.combinations(names, 2), *((name, None) for name in names)]
        return [part for pair in pairs for part in ("", less(some, *pair))]

    text = [f"{len(shared)} cases, {', '.join(sorted({line['model'] for line in done}))}", ""]
    text += ["| rule | blame | largest | exact | unusable | calls | tokens in | out | seconds |"]
    text += ["|---" * 9 + "|"]
    for n in names:
        of = [by_case[c.number, n] for c in shared]
        text.append(
            f"| {n} | {' | '.join(share(shared, n, m) for m in MEASURES)} "
            f"| {sum(x['failed'] > 0 for x in of)} | {sum(x['calls'] for x in of)} "
            f"| {sum(x['tokens'][0] for x in of)} | {sum(x['tokens'][1] for x in of)} "
            f"| {sum(x['seconds'] for x in of):.0f} |"
        )
    text += [f"| a random node | {chance(shared)} | | | | | | | |"]
    text += [f"| always the last | {last(shared)} | | | | | | | |"]
    text += differences(shared)
    groups: dict[str, Callable[[Case], str]] = {
        "shape": lambda c: c.shape,
        "kind": lambda c: c.kind,
    }
    groups["defect in"] = lambda c: "the last node" if c.node == "result" else "a node before it"
    for title, key in groups.items():
        text += ["", f"| {title} | cases | {' | '.join(names)} | random | last |"]
        text += ["|---" * (len(names) + 4) + "|"]
        for value in dict.fromkeys(map(key, shared)):
            some = [c for c in shared if key(c) == value]
            cells = [share(some, n) for n in names]
            text.append(
                f"| {value} | {len(some)} | {' | '.join([*cells, chance(some), last(some)])} |"
            )
    for value in dict.fromkeys(map(groups["defect in"], shared)):
        text += ["", f"Where the defect is in {value}:"]
        text += differences([c for c in shared if groups["defect in"](c) == value])
    return "\n".join(text)
