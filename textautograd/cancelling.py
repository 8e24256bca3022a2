"""Cancel scopes: once what started some work has ended with an error, that work sends nothing more.

As trio's, but cooperative: threads and calls in flight end by themselves, and what they bring is
kept; each looks here before it begins anything that costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancelled(BaseException):
    """Raised in what was started inside a scope that is cancelled. Nobody reads it but who waits
    there, and that has an error of its own."""

    was_read = True  # a value that nobody reads any more is no reason for a warning


class Scope:
    """Work that ends together. `cancel` reaches the scopes that were opened inside it, too."""

    def __init__(self, around: Scope | None) -> None:
        self._around = around
        self._is_cancelled = False

    def cancel(self) -> None:
        """Nothing is begun in here any more."""
        self._is_cancelled = True

    def check(self) -> None:
        """Raises `Cancelled` if this scope is, or one around it."""
        scope: Scope | None = self
        while scope is not None:
            if scope._is_cancelled:
                raise Cancelled("what this is a part of has ended")
            scope = scope._around


_scope: ContextVar[Scope | None] = ContextVar("textautograd_scope", default=None)


@contextmanager
def cancel_scope() -> Iterator[Scope]:
    """A scope for all that is started in this context; an exception that leaves it cancels it."""
    scope = Scope(_scope.get())
    token = _scope.set(scope)
    try:
        yield scope
    except BaseException:
        scope.cancel()
        raise
    finally:
        _scope.reset(token)


def check_cancelled() -> None:
    """Raises `Cancelled` if what the caller works for has ended."""
    scope = _scope.get()
    if scope is not None:
        scope.check()
