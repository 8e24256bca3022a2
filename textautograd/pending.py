"""`Pending`: a value that is still being computed."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from typing import Any


class Pending:
    """A value that is still being computed, or that failed to be.

    What a `concurrent.futures.Future` is, without the dozen objects that make up its lock: a graph
    holds many. Who waits may be cancelled, the call is not. A failure that nobody reads, here or in
    a value computed from this one, is one warning when the value is dropped.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_error",
        "_is_done",
        "_value",
        "has_reader",
        "process",
    )

    def __init__(self) -> None:
        self.process = os.getpid()
        self.has_reader = False
        self._is_done = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Pending], object]] = []

    def done(self) -> bool:
        """Whether it is there, or has failed."""
        return self._is_done

    def is_coming(self) -> bool:
        """Whether it is not there yet and will be, in this process."""
        return not self._is_done and self.process == os.getpid()

    def result(self) -> Any:
        """The value, or the failure raised; blocks until one of them is there."""
        if not self._is_done:
            lock = threading.Lock()
            lock.acquire()
            self.add_done_callback(lambda _: lock.release())
            lock.acquire()
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            del self  # the error's traceback holds this frame

    def exception(self) -> BaseException | None:
        """The failure of a value that is done."""
        return self._error

    def set_result(self, value: Any) -> None:
        """Ends the waiting."""
        self._value = value
        self._is_done = True
        self._call_back()

    def set_exception(self, error: BaseException) -> None:
        """Ends the waiting with a failure."""
        self._error = error
        self._is_done = True
        self._call_back()

    def add_done_callback(self, callback: Callable[[Pending], object]) -> None:
        """Calls `callback(self)` when it is done, in the thread that makes it so; now if it is."""
        self._callbacks.append(callback)
        if self._is_done:
            self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:  # another thread has taken it
                return
            callback(self)

    def __del__(self) -> None:
        if self.has_reader or (error := self._error) is None:
            return
        if not getattr(error, "was_read", False):
            error.was_read = True  # type: ignore[attr-defined]
            notes = "; ".join(note.strip() for note in getattr(error, "__notes__", ()))
            warnings.warn(
                f"a call failed and its value was never read: {type(error).__name__}: {error}"
                + (f" ({notes})" if notes else ""),
                RuntimeWarning,
                stacklevel=2,
            )
