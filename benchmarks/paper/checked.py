"""Whether lines can be reported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from textwrap import shorten
from typing import Any

from benchmarks.paper.lines import Line
from benchmarks.paper.numbers import is_count
from benchmarks.paper.questions import BINARY, Questions
from textautograd.checking import misfit
from textautograd.errors import UsageError

KEY = {"task": str, "method": str, "seed": int, "sizes": (int, int, int), "steps": int}
KEY |= {"batch_size": int, "model": str, "optimizer_model": str, "tokens": int | None}
ERROR = {"type": str, "message": str}
STAGE = {"exact": [int], "lenient": [int]}
COST = {str: {str: (int, int, int)}}  # by stage and purpose: calls, tokens in and out
SHAPE = {"key": KEY, "before": STAGE, "after": STAGE, "steps": [dict], "cost": COST}
SHAPE |= {"most_frequent": int, "initial": {str: str}, "instructions": {str: str}}
SHAPE |= {"error": dict | None, "indices": {"test": [int]}}
OPTIONAL = {"settings": {"tokens": int | None}, "versions": {str: str}, "served": {str: dict}}


def check(found: list[Line]) -> None:
    """Finds out whether each line can be reported.

    Raises:
        UsageError: one cannot.
    """
    first: dict[str, tuple[int, Any]] = {}
    for number, line in enumerate(found, 1):
        why = misfit(line, SHAPE) or _unfit(line)
        for about, what in [] if why else _common(line):
            other, there = first.setdefault(about, (number, what))
            if what != there:
                why = f"{about} is {what} here, and {there} in result {other}"
                break
        if why:
            raise UsageError(
                f"result {number} cannot be reported: {shorten(why, 300)}: mend or delete its line"
            )


def check_one_more(found: list[Line], key: dict[str, Any], questions: Questions) -> None:
    """Finds out whether a run that is to be made could be reported with these lines.

    Raises:
        UsageError: it would be of other questions, or of the same ones with other answers.
    """
    right = [0] * len(questions.test)
    line = {"key": key, "indices": questions.indices, "data": questions.digest}
    line["after"] = {"exact": right}
    if questions.task in BINARY:
        line["labels"] = [example.answer for example in questions.test]
    there = {about: what for each in found for about, what in _common(each)}
    for about, what in _common(line):
        if there.get(about, what) != what:
            raise UsageError(
                f"it would be of other questions than results that are there: {about} is {what} "
                f"now, and {there[about]} there"
            )


def _common(line: Line) -> Iterator[tuple[str, Any]]:
    """What lines must have in common, and what this one has."""
    key, tested = line["key"], line["indices"]["test"]
    same = f"{key['task']} with sizes {key['sizes']}"
    yield f"{same}: the number of held-out questions", len(line["after"]["exact"])
    if "labels" in line:
        digest = hashlib.sha256(json.dumps(tested).encode()).hexdigest()[:8]
        yield f"{same}: the labels of questions {digest}", line["labels"]
    if "data" in line:
        yield f"{same}: the questions of seed {key['seed']}, by their digest,", line["data"]
    digest = hashlib.sha256(json.dumps(line["indices"]).encode()).hexdigest()[:8]
    yield f"{same}: the digest of seed {key['seed']}'s indices", digest


def _unfit(line: Line) -> str | None:
    """What is wrong with a line that has all its parts."""
    if line["error"] is not None and (why := misfit(line["error"], ERROR, "its error")):
        return why
    for part, shape in OPTIONAL.items():
        if part in line and (why := misfit(line[part], shape, f"its {part}")):
            return why
    costs = [n for stage in line["cost"].values() for counts in stage.values() for n in counts]
    if not all(map(is_count, costs)):
        return "its cost is no number of calls or tokens"
    lists = {f"{s}.{n}": line[s][n] for s in ("before", "after") for n in STAGE}
    if any(hit not in (0, 1) for hits in lists.values() for hit in hits):
        return "what is right or wrong is neither 0 nor 1"
    if "labels" in line:
        if why := misfit(line["labels"], [str], "labels"):
            return why
        lists["labels"] = line["labels"]
    lists["indices.test"] = line["indices"]["test"]
    (_, one), *others = lists.items()
    if not one:
        return "there are no questions"
    for name, other in others:
        if len(other) != len(one):
            return f"{name} is of {len(other)} questions, and before.exact of {len(one)}"
    return None
