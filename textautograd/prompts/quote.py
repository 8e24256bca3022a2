"""Quoting: text that may hold anything goes into a prompt as data that it cannot end."""

import re
from collections.abc import Iterable, Mapping

_NOT_IN_A_TAG = re.compile(r"[^\w-]")


def quote(blocks: Mapping[str, str]) -> str:
    """Each text between tags of its name: `<hint>`, the text verbatim, `</hint>`.

    Where a text contains one of the tags used, all tags of this prompt get a number that no text
    contains (`<hint-2>`), so no text can close its own block or open a neighbour's.
    """
    named = tags(blocks)
    number, suffix = 1, ""
    if any(["<" in text for text in blocks.values()]):
        everything = "\n".join(blocks.values()).lower()
        marks = [mark + tag for tag in named.values() for mark in ("<", "</")]
        while any(f"{mark}{suffix}".lower() in everything for mark in marks):
            number += 1
            suffix = f"-{number}"
    return "\n\n".join(
        f"<{named[name]}{suffix}>\n{text}\n</{named[name]}{suffix}>"
        for name, text in blocks.items()
    )


def tags(names: Iterable[str]) -> dict[str, str]:
    """Names as they can stand in tags (`question.1` → `question-1`), each different."""
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        plain = _NOT_IN_A_TAG.sub("-", name) or "text"
        tag, number = plain, 1
        while tag.lower() in used:
            number += 1
            tag = f"{plain}-{number}"
        used.add(tag.lower())
        found[name] = tag
    return found
