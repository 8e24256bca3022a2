"""Whether a function can be called as it will be, known before it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def mismatch(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> str | None:
    """Why a call with these arguments would fail at once; `None` if it would not, or if the
    function does not say what it takes."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    bound = function
    if inspect.ismethod(function):  # whose own `self` is a name that an argument may have
        bound, args = function.__func__, (function.__self__, *args)
    try:
        inspect.signature(bound).bind(*args, **kwargs)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return None
