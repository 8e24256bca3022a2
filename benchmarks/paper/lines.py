"""Results: one JSON object a line, appended when a run has ended, never rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read(path: Path) -> list[Line]:
    """Every whole line of a file, which need not be there; one that was cut off is left out."""
    if not path.exists():
        return []
    whole = path.read_text("utf-8").split("\n")[:-1]
    return [json.loads(text) for text in whole if text]


def append(path: Path, line: Line) -> None:
    """Adds a line, after what an interrupted write may have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        there = file.read()
        if there and not there.endswith(b"\n"):
            file.truncate(there.rfind(b"\n") + 1)
        file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())


def is_there(lines: list[Line], key: dict[str, Any]) -> bool:
    """Whether a run with this key has ended."""
    return any(line["key"] == key for line in lines)
