"""What numbers and stored values must be, whoever gives them."""

from __future__ import annotations

import math
from types import UnionType
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


def is_seen(text: str) -> bool:
    """Whether a text has a sign that one can see."""
    return any(sign.isprintable() and not sign.isspace() for sign in text)


def misfit(value: Any, shape: Any, where: str = "it") -> str | None:
    """Where a JSON value does not have a shape, or `None`.

    A shape is a type or a union of them; `[shape]` is a list of such items, `(shape, shape)` one of
    this length, `{str: shape}` an object of such values, `{"name": shape}` one with these keys.
    """
    if isinstance(shape, type | UnionType):
        is_one = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        return None if is_one and value == value else f"{where} is {type(value).__name__}"
    if isinstance(shape, tuple):
        if not isinstance(value, list) or len(value) != len(shape):
            return f"{where} is no list of {len(shape)}"
        parts = [(f"{where}[{i}]", item, shape[i]) for i, item in enumerate(value)]
    elif not isinstance(value, type(shape)):
        return f"{where} is {type(value).__name__}"
    elif isinstance(shape, list):
        parts = [(f"{where}[{i}]", item, shape[0]) for i, item in enumerate(value)]
    elif str in shape:
        parts = [(f"a value of {where}", item, shape[str]) for item in value.values()]
    else:
        if lacking := [key for key in shape if key not in value]:
            return f"{where} lacks {', '.join(lacking)}"
        parts = [(f"{where}.{key}", value[key], inner) for key, inner in shape.items()]
    return next((found for w, v, s in parts if (found := misfit(v, s, w)) is not None), None)
