"""Which engine is meant: by name, or where none is named."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from textautograd.engines._checks import is_engine
from textautograd.engines.base import Engine
from textautograd.engines.factory import engine
from textautograd.errors import UsageError

_default: ContextVar[Engine | None] = ContextVar("default_engine", default=None)


def as_engine(value: str | Engine) -> Engine:
    """The engine itself, or the one of that name, of which a process has one.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, str):
        return _by_name(value)
    if not is_engine(value):
        raise UsageError(
            f"an engine is a name such as 'openai/gpt-4o-mini' or an object with "
            f"`async def complete(request)`, not {value!r}"
        )
    return value


@functools.cache
def _by_name(name: str) -> Engine:
    return engine(name)


def set_default_engine(value: str | Engine | None) -> None:
    """From here on, in this context, what names no engine uses this one; `None` undoes it."""
    _default.set(None if value is None else as_engine(value))


@contextmanager
def use_engine(value: str | Engine) -> Iterator[Engine]:
    """Inside the `with`, what names no engine uses this one.

    So do the threads of `ta.map`, `evaluate`, `fit` and `asyncio.to_thread`. Threads of your own
    (`threading.Thread`, a `ThreadPoolExecutor`) begin with an empty context and do not: there, give
    the agent its engine by `.to(engine)`, or use `ta.map`.
    """
    token = _default.set(as_engine(value))
    try:
        yield as_engine(value)
    finally:
        _default.reset(token)


def chosen_engine() -> Engine | None:
    """The context's engine, if one was chosen."""
    return _default.get()


def default_engine() -> Engine:
    """The context's engine, else the one that TEXTAUTOGRAD_MODEL names, else "local".

    The last with a `UserWarning`: an agent on a large model does not mean to have its tools'
    gradients, or its rewrites, written by a small one.
    """
    chosen = chosen_engine()
    if chosen is not None:
        return chosen
    name = os.environ.get("TEXTAUTOGRAD_MODEL", "").strip()
    if not name:
        warnings.warn(
            "no engine was named for a call, a gradient or a rewrite, so 'local' answers, a small "
            "model in this process: name one by .to(…), engine=…, ta.use_engine(…) or the variable "
            "TEXTAUTOGRAD_MODEL, if only 'local'",
            stacklevel=1,
        )
    try:
        return as_engine(name or "local")
    except UsageError as error:
        if not name:
            raise
        raise UsageError(f"TEXTAUTOGRAD_MODEL in the environment: {error}") from None
