"""`map`: many samples at once, for agents whose control flow reads values."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from textautograd.call_site import thread_context
from textautograd.calling import is_async
from textautograd.cancelling import Cancelled, cancel_scope
from textautograd.checking import whole
from textautograd.engines.draws import numbering_draws
from textautograd.errors import RunError, UsageError

T = TypeVar("T")
R = TypeVar("R")


def map(fn: Callable[[T], R], items: Iterable[T], *, max_workers: int | None = None) -> list[R]:
    """Calls `fn` on each item, each call in a thread with a copy of the caller's context.

    Args:
        max_workers: threads, 64 by default.

    Returns:
        The results in the order of the items.

    Raises:
        The first failure in that order; items that were not started by then are left out. After a
        `RunError`, or an exception in the caller such as Ctrl-C, those that were send no more; and
        calls that nobody has waited for by the time of the error are made no more.
    """
    if not callable(fn):
        raise UsageError(f"map needs a function, not {type(fn).__name__}")
    if is_async(fn):
        raise UsageError("map calls fn as a plain function, and it is async: write it with `def`")
    if not isinstance(items, Iterable):
        raise UsageError(f"map needs items to go through, not {type(items).__name__}")
    items = list(items)
    if max_workers is not None:
        whole("max_workers", max_workers)
    todo: SimpleQueue[int] = SimpleQueue()
    for index in range(len(items)):
        todo.put(index)
    results: list[Any] = [None] * len(items)
    failures: dict[int, BaseException] = {}
    finished: SimpleQueue[None] = SimpleQueue()

    with cancel_scope() as scope, numbering_draws(anew=False):
        context = thread_context()
        contexts = [context.copy() for _ in items]

        def work() -> None:
            try:
                while not failures:
                    try:
                        index = todo.get_nowait()
                    except Empty:
                        break
                    try:
                        scope.check()
                        results[index] = contexts[index].run(fn, items[index])
                    except BaseException as error:  # the caller raises it
                        failures[index] = error
                        if isinstance(error, RunError) or not isinstance(error, Exception):
                            scope.cancel()
            finally:
                finished.put(None)

        threads = min(len(items), max_workers or 64)
        for _ in range(threads):
            threading.Thread(target=work, daemon=True, name="textautograd-map").start()
        for _ in range(threads):
            finished.get()  # unlike join, it can be interrupted
        if failures:  # who was cancelled was so because of another
            raise failures[min(failures, key=lambda i: (isinstance(failures[i], Cancelled), i))]
    return results


__all__ = ["map"]
