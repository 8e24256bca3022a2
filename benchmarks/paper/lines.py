"""Results: one JSON object a line, appended when a run has ended, never rewritten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textautograd.errors import UsageError
from textautograd.locking import taken

Line = dict[str, Any]


def read(path: Path, holds: Mapping[str, type] = {"key": dict}) -> list[Line]:
    """Every whole line of a file, which need not be there; one that was cut off is left out.

    Raises:
        UsageError: a line is no object that holds these. OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    found = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        if not text:
            continue
        try:
            line = json.loads(text.decode())
        except ValueError:
            line = None
        if not isinstance(line, dict) or not all(isinstance(line.get(n), holds[n]) for n in holds):
            raise UsageError(f"{path}: line {number} is damaged or no result: mend or delete it")
        found.append(line)
    return found


def check(path: Path, holds: Mapping[str, type] = {"key": dict}) -> None:
    """Finds out whether lines can be added.

    Raises:
        UsageError, OSError: as `read`, or the file cannot be written.
    """
    read(path, holds)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab"):
        pass


def append(path: Path, line: Line) -> None:
    """Adds a line, after what an interrupted write may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        taken(file.fileno(), wait=True)  # another process may be adding one
        file.seek(0)
        there = file.read()
        if there and not there.endswith(b"\n"):
            file.truncate(there.rfind(b"\n") + 1)
        file.write((json.dumps(line) + "\n").encode())  # escaped, as UTF-8 has no lone surrogates


def is_there(lines: list[Line], key: dict[str, Any]) -> bool:
    """Whether a run with this key has ended."""
    return any(line["key"] == key for line in lines)
