"""What tells one function from another, in any process."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from textautograd import rules
from textautograd.data import Example
from textautograd.identity import digest, identity

LIMIT = 8
SEEN: list[str] = []


def shorter(limit: int) -> Callable[[str], bool]:
    return lambda text: len(text) < limit


def helped(text: str) -> bool:
    return helper(text)


def helper(text: str) -> bool:
    return len(text) < LIMIT and text in {"a", "b", "c", "d", "e"}


def noting(text: str) -> str:
    SEEN.append(text)
    return text


def itself(n: int) -> int:
    return 0 if n == 0 else other(n - 1)


def other(n: int) -> int:
    return itself(n)


def keywords(text: str, *, by: int = 3) -> str:
    return text * by


class Scorer:
    scale = 2

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, text: str) -> int:
        return len(text) * self.scale + self.limit

    def method(self, text: str) -> str:
        return text


class Doubled(Scorer):
    def __call__(self, text: str) -> int:
        return super().__call__(text) * 2


def first(*args: Any) -> None:
    return None


def second(*args: Any) -> None:
    raise NotImplementedError


class Judge:
    def __init__(self, limit: int) -> None:
        self.limit = limit

    @property
    def most(self) -> int:
        return self.limit * 2

    def score(self, text: str) -> bool:
        return len(text) < self.most


class Slotted:
    __slots__ = ("__limit", "unset")

    def __init__(self, limit: object) -> None:
        self.__limit = limit

    def __call__(self, text: str) -> bool:
        return bool(text and self.__limit)


@dataclass
class Settings:
    limit: int


def holding(value: Any) -> Scorer:
    return Scorer(value)


DIFFERENT: dict[str, tuple[Any, Any]] = {
    "code": (lambda x: x + "a", lambda x: x + "b"),
    "attribute": (lambda x: x.lower(), lambda x: x.upper()),
    "closure": (shorter(8), shorter(9)),
    "default": (lambda x, n=1: x, lambda x, n=2: x),
    "inner": (lambda x: [y for y in x if y > 1], lambda x: [y for y in x if y > 2]),
    "partial": (functools.partial(keywords, by=1), functools.partial(keywords, by=2)),
    "object": (Scorer(1), Scorer(2)),
    "slot": (Slotted(1), Slotted(2)),
    "dataclass": (holding(Settings(1)), holding(Settings(2))),
    "class": (Scorer(1), Doubled(1)),
    "method of": (Scorer(1).method, Scorer(2).method),
    "method of what cannot be called": (Judge(1).score, Judge(2).score),
    "what this package wraps": (rules.blind(first), rules.blind(second)),
    "builtin": (str.lower, str.upper),
    "pattern": (re.compile("a").search, re.compile("b").search),
    "flags": (re.compile("a").search, re.compile("a", re.I).search),
    "type": (shorter(1), shorter(True)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_does_something_else_is_another(what: str) -> None:
    one, two = map(identity, DIFFERENT[what])
    assert one != two
    assert identity(DIFFERENT[what][0]) == one


@pytest.mark.parametrize("name", ["LIMIT", "helper"])
def test_what_it_finds_in_its_module_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(helped)
    monkeypatch.setitem(globals(), name, 9 if name == "LIMIT" else lambda text: True)
    assert identity(helped) != before


def test_a_constant_of_its_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(Doubled(1))
    monkeypatch.setattr(Scorer, "scale", 3)
    assert identity(Doubled(1)) != before


def test_a_property_of_its_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(Judge(1).score)
    monkeypatch.setattr(Judge, "most", property(lambda self: self.limit * 3))
    assert identity(Judge(1).score) != before


def test_attributes_are_compared_by_value() -> None:
    assert identity(holding((1, "x"))) == identity(holding(tuple([1, "x"])))


class Counting:
    """A loss that counts what it has done and keeps what it saw."""

    def __init__(self) -> None:
        self.limit, self.times, self.seen = 8, 0, [""]

    def __call__(self, output: str, target: str) -> bool:
        self.times += 1
        self.seen.append(output)
        return len(output) < self.limit


def counting() -> Callable[[str, str], int]:
    times = 0

    def loss(output: str, target: str) -> int:
        nonlocal times
        times += 1
        return times

    return loss


@pytest.mark.parametrize("make", [Counting, counting])
def test_counting_and_collecting_make_no_other_of_it(make: Callable[[], Any]) -> None:
    loss = make()
    before = identity(loss)
    loss("out", "target")
    assert identity(loss) == before == identity(make())


def test_what_it_only_reads_counts_beside_what_it_assigns() -> None:
    one, two = Counting(), Counting()
    two.limit = 9
    assert identity(one) != identity(two)


def test_what_it_collects_does_not_count() -> None:
    before = identity(noting)
    noting("x")
    assert identity(noting) == before


def test_names_are_readable() -> None:
    assert re.fullmatch(r"shorter\.<locals>\.<lambda>#[0-9a-f]{10}", identity(shorter(8)))
    assert identity(str.strip) == "str.strip"
    assert identity(itself).startswith("itself#") and identity(itself) != identity(other)


_PRINT = """
import sys
sys.path.insert(0, sys.argv[1])
import test_identity as t
for one, two in t.DIFFERENT.values():
    print(t.identity(one), t.identity(two))
print(t.identity(t.helped), t.identity(t.itself), t.identity(t.noting))
print(t.digest([t.Example("q", "a", options={"x", "y", "z"}, scorer=t.Scorer(1)).extra]))
"""


def test_other_processes_write_it_alike() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", _PRINT, os.path.dirname(__file__)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert identity(helped) in printed.pop()


def test_other_data_has_another_digest() -> None:
    rows = [{"a": [1, "x"]}, {"a": (1, "y")}, {"a": {1, "x"}}, {"a": Example("q", "a")}, {}]
    assert len({digest(row) for row in rows}) == len(rows)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest("a lone \ud800") != digest("a lone \ud801")
