"""Cancel scopes: once what started some work has ended with an error, that work sends nothing more.

As trio's, but cooperative: threads and calls in flight end by themselves, and what they bring is
kept; each looks here before it begins anything that costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancelled(BaseException):
    """Raised in what was started inside a scope that is cancelled. It is no `Exception`, so that
    user code there ends as well. Whoever reads such a value elsewhere gets an `EngineError`
    (`dispatch`)."""

    was_read = True  # a value that nobody reads any more is no reason for a warning


class Scope:
    """Work that ends together. `cancel` reaches the scopes that were opened inside it, too."""

    def __init__(self, around: Scope | None) -> None:
        self._around = around
        self._is_cancelled = False

    def cancel(self) -> None:
        """Nothing is begun in here any more."""
        self._is_cancelled = True

    def is_cancelled(self) -> bool:
        """Whether it is, or one around it."""
        scope: Scope | None = self
        while scope is not None and not scope._is_cancelled:
            scope = scope._around
        return scope is not None

    def check(self) -> None:
        """Raises `Cancelled` if this scope is, or one around it."""
        if self.is_cancelled():
            raise Cancelled("what this is a part of has ended")


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


def is_cancelled() -> bool:
    """Whether what the caller works for has ended."""
    scope = _scope.get()
    return scope is not None and scope.is_cancelled()


def check_cancelled() -> None:
    """Raises `Cancelled` if what the caller works for has ended."""
    scope = _scope.get()
    if scope is not None:
        scope.check()
