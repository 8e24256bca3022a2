"""Whom gradients blame."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.blame.cases import Case, values

MEASURES = ("blame", "largest", "exact")

_NOTHING = re.compile(
    r"\bno (?:further )?changes?\b|\b(?:is|was|are|were|looks?|seems?) (?:already )?"
    r"(?:correct|right|fine|accurate|good)\b|\b(?:need|require)s? no\b|\bdo(?:es)? not need\b"
    r"|\bshould (?:remain|stay|be kept)\b|\bunchanged\b",
    re.IGNORECASE,
)
_YET = re.compile(
    r"\b(?:but|however|instead|except|although)\b|\bshould (?!remain|stay|be kept|not)|\bmissing\b",
    re.IGNORECASE,
)


def asks(text: str | None, value: str) -> bool:
    """Whether a gradient asks that a value change: it neither is that value, nor only says that
    nothing needs to change."""
    if text is None or text.strip(" .\"'`") == value.strip(" .\"'`"):
        return False
    return not (_NOTHING.search(text) and not _YET.search(text))


def scores(case: Case, said: Mapping[str, str | None], failed: int = 0) -> dict[str, float]:
    """The three measures of one case."""
    if failed:
        return dict.fromkeys(MEASURES, 0.0)
    result = list(case.graph)[-1]
    was = values(case.graph, case.instructions, case.question)
    asked = {n for n in case.graph if n == result or asks(said[n], was[n])}
    ends = [n for n in asked if not asked.intersection(case.graph[n][1])]
    length = {n: len((said[n] or "").split()) for n in ends}
    longest = [n for n in ends if length[n] == max(length.values())]
    return {
        "blame": (case.node in ends) / len(ends),
        "largest": (case.node in longest) / len(longest),
        "exact": float(asked == case.wrong),
    }
