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
    """Every line of a file, which need not be there; a last one that was cut off is left out.

    Raises:
        UsageError: a line is no object that holds these. OSError: the file cannot be read.
    """
    if not path.exists():
        return []
    found = []
    *texts, last = path.read_bytes().split(b"\n")
    for number, text in enumerate(texts if _is_cut_off(last) else [*texts, last], 1):
        if not text:
            continue
        line = _value(text)
        if not isinstance(line, dict) or not all(isinstance(line.get(n), holds[n]) for n in holds):
            raise UsageError(f"{path}: line {number} is damaged or no result: mend or delete it")
        found.append(line)
    return found


def _value(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError):
        return None


def _is_cut_off(last: bytes) -> bool:
    """Whether a file's last line is what an interrupted write leaves: an object's beginning."""
    return last.startswith(b"{") and _value(last) is None


def check(path: Path, holds: Mapping[str, type] = {"key": dict}) -> None:
    """Finds out whether lines can be added.

    Raises:
        UsageError, OSError: as `read`, or the file cannot be written.
    """
    read(path, holds)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        if _is_cut_off(file.read().rpartition(b"\n")[2]):
            _aside(path).open("ab").close()


def _aside(path: Path) -> Path:
    """Where a last line that was cut off goes."""
    return path.with_name(f"{path.name}.cut-off")


def append(path: Path, line: Line) -> None:
    """Adds a line, in the place of what an interrupted write may have left, which goes to a file
    beside it: it may be somebody's whole line with a mistake in it."""
    try:
        _append(path, (json.dumps(line) + "\n").encode())  # escaped: UTF-8 has no lone surrogates
    except OSError as error:
        raise OSError(
            f"{path} cannot be written ({error}): when that is mended, the same command writes the "
            "line, and pays for nothing again"
        ) from error


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        taken(file.fileno(), wait=True)  # another process may be adding one
        file.seek(0)
        there = file.read()
        last = there[there.rfind(b"\n") + 1 :]
        if _is_cut_off(last):
            with _aside(path).open("ab") as aside:
                aside.write(last + b"\n")
            file.truncate(len(there) - len(last))
        elif last:  # whole, but for its end
            file.write(b"\n")
        file.write(line)


def found(lines: list[Line], key: dict[str, Any]) -> Line | None:
    """The line of a run with this key, if it has ended."""
    return next((line for line in lines if line["key"] == key), None)


def is_there(lines: list[Line], key: dict[str, Any]) -> bool:
    """Whether a run with this key has ended."""
    return found(lines, key) is not None
