"""Paths as people give them, and files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from textautograd.errors import UsageError


def as_path(given: object, what: str) -> Path:
    """The path, with a leading `~` expanded.

    Raises:
        UsageError: it is no path, or one that no file can have; names `what`.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise UsageError(f"{what} must be a path, not {type(given).__name__}")
    text = os.fspath(given)
    if not isinstance(text, str) or not text:
        raise UsageError(f"{what} must be a path that is a text, not {text!r}")
    try:
        if b"\0" in os.fsencode(text):
            raise UsageError(f"{what} {text!r} holds a null character, which no path can")
        return Path(text).expanduser()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} {text!r} cannot be a path here: {error}") from error
    except RuntimeError as error:  # ~somebody who has no home here
        raise UsageError(f"{what} {text!r} cannot be found: {error}") from error


def users_cache() -> Path:
    """Where the package keeps what the user's programs share."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "textautograd"


def read_json(file: Path) -> Any:
    """The value that a file holds.

    Raises:
        ValueError: it cannot be read, or holds no JSON.
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file so that nobody sees half of it: under another name first, then renamed.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    part = file.with_name(f".{file.name}.{os.urandom(4).hex()}.part")
    try:
        with part.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
