"""Quoting: text that may hold anything goes into a prompt as data that it cannot end."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

_NOT_IN_A_TAG = re.compile(r"[^\w-]")
_NUMBER = re.compile(r"-([1-9][0-9]{0,8})")


def quote(blocks: Mapping[str, str]) -> str:
    """Each text between tags of its name: `<hint>`, the text verbatim, `</hint>`.

    Where a text contains one of the tags used, all tags of this prompt get a number that no text
    contains (`<hint-2>`), so no text can close its own block or open a neighbour's; nor does a tag
    with its number stand for another block without one. `printed` tells the tags.
    """
    names, texts = tuple(blocks), tuple(blocks.values())
    return laid_out(names, suffix(names, texts)) % texts


def printed(blocks: Mapping[str, str]) -> dict[str, str]:
    """The tag that `quote` shows each of these blocks under, by its name."""
    number = suffix(tuple(blocks), tuple(blocks.values()))
    return {name: f"{tag}{number}" for name, tag in tags(blocks).items()}


def suffix(names: tuple[str, ...], texts: tuple[str, ...]) -> str:
    """What `quote` adds to the tags of blocks of these names with these texts."""
    if not any(["<" in text for text in texts]):
        return ""
    own = frozenset([tag.lower() for tag in as_tags(names)])
    taken = set(_numbers(own, "\n".join(texts).lower()))
    if not taken:
        return ""
    for number in itertools.count(2):
        added = f"-{number}"
        if number not in taken and own.isdisjoint([f"{tag}{added}" for tag in own]):
            return added
    raise AssertionError


@lru_cache(maxsize=256)  # every call of a program has the same few names
def laid_out(names: tuple[str, ...], suffix: str) -> str:
    """The quoted blocks of these names, with `%s` for each text."""
    return "\n\n".join(f"<{tag}{suffix}>\n%s\n</{tag}{suffix}>" for tag in as_tags(names))


def _numbers(own: frozenset[str], text: str) -> Iterator[int]:
    """The numbers that occurrences of these tags have in a text, 1 for none. A longer number counts
    for all that it begins with: what begins like a tag is taken for it."""
    lengths = {len(tag) for tag in own}
    for found in re.finditer("</?", text):
        for end in [found.end() + length for length in lengths]:
            if text[found.end() : end] in own:
                yield 1
                number = _NUMBER.match(text, end)
                for last in range(1, len(number[1]) + 1 if number else 0):
                    yield int(text[end + 1 : end + 1 + last])


def tags(names: Iterable[str]) -> dict[str, str]:
    """Names as they can stand in tags (`question.1` → `question-1`), each different."""
    names = tuple(names)
    return dict(zip(names, as_tags(names), strict=True))


@lru_cache(maxsize=256)
def as_tags(names: tuple[str, ...]) -> tuple[str, ...]:
    """What `tags` makes of each name, also of one that comes twice."""
    found: list[str] = []
    used: set[str] = set()
    for name in names:
        plain = plainly(name)
        tag, number = plain, 1
        while tag.lower() in used:
            number += 1
            tag = f"{plain}-{number}"
        used.add(tag.lower())
        found.append(tag)
    return tuple(found)


def plainly(name: str) -> str:
    """A name as it can stand in a tag, if it is the only one."""
    return _NOT_IN_A_TAG.sub("-", name) or "text"


@lru_cache(maxsize=256)
def apart(names: tuple[str, ...], others: frozenset[str]) -> tuple[str, ...]:
    """What the blocks of inputs are called beside others': one of the same name is `input-…`."""
    found: list[str] = []
    taken = set(others)
    for name in names:
        block = name
        while block in taken or (block != name and block in names):
            block = f"input-{block}"
        found.append(block)
        taken.add(block)
    return tuple(found)
