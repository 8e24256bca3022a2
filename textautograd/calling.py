"""Whether a function can be called as it will be, known before it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it makes a coroutine."""
    call = getattr(function, "__call__", None)  # noqa: B004 (the method itself is asked)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def unusable(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> str | None:
    """As `mismatch`, of a function whose result nobody will await."""
    if is_async(function):
        return "it is async, and is called as a plain function: write it with `def`"
    return mismatch(function, *args, **kwargs)


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
