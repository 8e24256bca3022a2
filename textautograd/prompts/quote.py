"""Quoting: text that may hold anything goes into a prompt as data that it cannot end."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

_NOT_IN_A_TAG = re.compile(r"[^\w-]")


def quote(blocks: Mapping[str, str]) -> str:
    """Each text between tags of its name: `<hint>`, the text verbatim, `</hint>`.

    Where a text contains one of the tags used, all tags of this prompt get a number that no text
    contains (`<hint-2>`), so no text can close its own block or open a neighbour's.
    """
    names, texts = tuple(blocks), tuple(blocks.values())
    number = 1
    if any(["<" in text for text in texts]):
        everything = "\n".join(texts).lower()
        taken = {n for tag in _tags(names) for n in _numbers(tag.lower(), everything)}
        number = next(n for n in itertools.count(1) if n not in taken)
    return _layout(names, f"-{number}" if number > 1 else "") % texts


@lru_cache(maxsize=256)  # every call of a program has the same few names
def _layout(names: tuple[str, ...], suffix: str) -> str:
    """The quoted blocks of these names, with `%s` for each text."""
    return "\n\n".join(f"<{tag}{suffix}>\n%s\n</{tag}{suffix}>" for tag in _tags(names))


def _numbers(tag: str, text: str) -> Iterator[int]:
    """The numbers that occurrences of a tag have in a text, 1 for none. A longer number counts for
    all that it begins with: what begins like a tag is taken for it."""
    for found in re.finditer(rf"</?{re.escape(tag)}(?:-([1-9][0-9]{{0,8}}))?", text):
        yield 1
        for end in range(1, len(found[1] or "") + 1):
            yield int(found[1][:end])


def tags(names: Iterable[str]) -> dict[str, str]:
    """Names as they can stand in tags (`question.1` → `question-1`), each different."""
    names = tuple(names)
    return dict(zip(names, _tags(names), strict=True))


def _tags(names: tuple[str, ...]) -> list[str]:
    found: list[str] = []
    used: set[str] = set()
    for name in names:
        plain = _NOT_IN_A_TAG.sub("-", name) or "text"
        tag, number = plain, 1
        while tag.lower() in used:
            number += 1
            tag = f"{plain}-{number}"
        used.add(tag.lower())
        found.append(tag)
    return found
