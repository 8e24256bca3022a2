"""Paths as people give them."""

from __future__ import annotations

import os
from pathlib import Path

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
