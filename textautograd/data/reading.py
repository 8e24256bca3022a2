"""Turns the bytes of a data file into lines and JSON, or says which line is wrong and why.

`where` names the file, or the address that it came from, in messages.
"""

import json
from collections.abc import Iterator
from typing import Any

from textautograd.errors import DataError


def malformed(where: str, place: int | str, expected: str) -> DataError:
    """`place` is a line number from 1, or says it in words."""
    at = f"line {place}" if isinstance(place, int) else place
    return DataError(f"{where}, {at}: expected {expected}")


def decode(raw: bytes, where: str) -> str:
    """The text of a file. Raises `DataError` where it is empty, has a BOM or is not UTF-8."""
    if not raw.strip():
        raise malformed(where, 1, "rows, but the file is empty")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise malformed(where, 1, "UTF-8 without a byte order mark; save the file without one")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise malformed(where, line, f"UTF-8, found byte 0x{raw[error.start]:02x}") from error


def rows(raw: bytes, where: str) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of each line that is not blank, with the CR of a CRLF.

    `str.splitlines` would also split at the separators that texts hold, such as U+2028.
    """
    for number, line in enumerate(decode(raw, where).split("\n"), start=1):
        if line.strip():
            yield number, line


def parse_json(text: str, where: str, expected: str, *, line: int = 1) -> Any:
    """The value of a JSON text that starts on `line`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise malformed(where, at, f"{expected}; {error.msg} in column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise malformed(where, line, f"{expected}; {error}") from error


def text_field(row: object, key: str, where: str, place: int | str) -> str:
    """The non-empty string that the JSON object `row` holds under `key`."""
    expected = f'a JSON object with a non-empty string "{key}"'
    if not isinstance(row, dict):
        raise malformed(where, place, f"{expected}, found {_shown(row)}")
    if key not in row:
        found = ", ".join(map(repr, row)) or "none"
        raise malformed(where, place, f"{expected}, found the keys {found}")
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise malformed(where, place, f"{expected}, found {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
