"""Which line of user code is being run. Errors name it."""

from __future__ import annotations

import contextvars
import os
import sys
import threading

from textautograd.tape import Site

_working_for: contextvars.ContextVar[Site | None]
_working_for = contextvars.ContextVar("textautograd_working_for", default=None)
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def call_site() -> Site | None:
    """The user's line that is being run: the innermost frame outside this package, or the one that
    a thread of the package works for."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            if code.co_filename == threading.__file__:
                break
            return code.co_filename, frame.f_lineno, code.co_qualname
        frame = frame.f_back  # type: ignore[assignment]
    return _working_for.get()


def thread_context() -> contextvars.Context:
    """A copy of the caller's context for a thread that works for the caller's line."""
    context = contextvars.copy_context()
    context.run(_working_for.set, call_site())
    return context
