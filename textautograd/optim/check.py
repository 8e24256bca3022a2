"""What a rewritten instruction must satisfy before it is tried."""

import re
from collections.abc import Iterable

_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
SHINGLE = 8


def objection(new: str, old: str, tried: Iterable[str], data: Iterable[str]) -> str | None:
    """Why a rewrite cannot be used, or `None`.

    It must differ from the old text and from those that were tried without success, keep the
    placeholders of the old one, and not copy the data it was written from: a whole text of three
    words or more, or eight words in a row.
    """
    if _plain(new) == _plain(old):
        return "it is the same as the current instruction"
    if _plain(new) in {_plain(text) for text in tried}:
        return "it was tried and did not help"
    lost = [name for name in dict.fromkeys(_PLACEHOLDER.findall(old)) if name not in new]
    if lost:
        return f"it must keep the placeholders {', '.join(lost)}"
    inside = f" {_plain(new)} "
    for text in data:
        words = _plain(text).split()
        size = min(len(words), SHINGLE)
        if size < 3:
            continue
        for i in range(len(words) - size + 1):
            copied = " ".join(words[i : i + size])
            if f" {copied} " in inside and copied not in _plain(old):
                return f"it copies the example text {copied!r}: say it in general"
    return None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
