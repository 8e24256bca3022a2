"""Keeps the mutation check, `python -m tests.mutations`, from going stale."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutations import MUTATIONS, ROOT, Mutation, Stale, argument


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_each_still_changes_the_source_it_was_written_for(mutation: Mutation) -> None:
    source = (ROOT / mutation.path).read_text("utf-8")
    assert ast.dump(ast.parse(mutation.applied(source))) != ast.dump(ast.parse(source))
    for test in map(argument, mutation.tests.split()):
        file, *one = test.split("::")
        assert all(f"def {name}(" in (ROOT / file).read_text("utf-8") for name in one)


@pytest.mark.parametrize("source", ["a = 1", "a = 2; b = 2"])
def test_one_that_no_longer_applies_is_an_error(source: str) -> None:
    with pytest.raises(Stale, match="not once"):
        Mutation("m", "f.py", "= 2", "= 3", "tape").applied(source)


def test_the_table_lists_them_all() -> None:
    table = (Path(__file__).parent / "README.md").read_text("utf-8")
    for mutation in MUTATIONS:
        assert f"| {mutation.name} | `{mutation.file}` | `test_" in table
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
