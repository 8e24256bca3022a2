"""Whether lines can be reported."""

from __future__ import annotations

import json

from benchmarks.paper.lines import Line
from textautograd.checking import misfit
from textautograd.errors import UsageError

KEY = {"task": str, "method": str, "seed": int, "sizes": (int, int, int), "steps": int}
KEY |= {"batch_size": int, "model": str, "optimizer_model": str, "tokens": int | None}
STAGE = {"exact": [int], "lenient": [int]}
COST = {str: {str: (int, int, int)}}  # by stage and purpose: calls, tokens in and out
SHAPE = {"key": KEY, "before": STAGE, "after": STAGE, "steps": [dict], "cost": COST}
SHAPE |= {"most_frequent": int, "initial": {str: str}, "instructions": {str: str}}
SHAPE |= {"error": dict | None}


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
