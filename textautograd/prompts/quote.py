"""Quoting: text that may hold anything goes into a prompt as data that it cannot end."""

from collections.abc import Mapping


def quote(blocks: Mapping[str, str]) -> str:
    """Each text between tags of its name: `<hint>`, the text verbatim, `</hint>`.

    Where a text contains one of the tags used, all tags of this prompt get a number that no text
    contains (`<hint-2>`), so no text can close its own block or open a neighbour's.
    """
    tags = {name: tag(name) for name in blocks}
    everything = "\n".join(blocks.values()).lower()
    number, suffix = 1, ""
    while any(f"{mark}{t}{suffix}".lower() in everything for t in tags.values() for mark in _MARKS):
        number += 1
        suffix = f"-{number}"
    return "\n\n".join(
        f"<{tags[name]}{suffix}>\n{text}\n</{tags[name]}{suffix}>" for name, text in blocks.items()
    )


_MARKS = ("<", "</")


def tag(name: str) -> str:
    """A name as it can stand in a tag: `question.1` → `question-1`."""
    return "".join(c if c.isalnum() or c in "_-" else "-" for c in name) or "text"
