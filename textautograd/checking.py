"""What a number must be that is given for an argument, or that a reply tells."""

from __future__ import annotations

import math
from typing import Any

from textautograd.errors import UsageError


def whole(name: str, value: Any, at_least: int | None = 1) -> int:
    """The number, if it is a whole one, and not below `at_least`.

    Raises:
        UsageError: it is not; says so of `name`.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or (at_least is not None and value < at_least):
        limit = "" if at_least is None else f" of at least {at_least}"
        raise UsageError(f"{name} must be a whole number{limit}, not {value!r:.80}")
    return int(value)


def quantity(value: Any) -> float | None:
    """A finite number that is not negative, or `None` for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
