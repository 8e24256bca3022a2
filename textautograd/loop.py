"""The background event loop that calls run on: one for each process, made on first use."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from textautograd.errors import EngineError
from textautograd.pending import Pending

if TYPE_CHECKING:
    import asyncio


class Loop:
    """An event loop in a thread of its own, fed through a queue that it drains on one wake-up."""

    def __init__(self) -> None:
        import asyncio
        import atexit

        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.inbox: deque[tuple[Coroutine[Any, Any, Any], contextvars.Context, Pending]] = deque()
        self.is_awake = False
        self.is_stopping = False
        self.running: set[asyncio.Task[Any]] = set()
        self.thread = threading.Thread(target=self._run, name="textautograd-loop", daemon=True)
        self.thread.start()
        atexit.register(self.stop)

    def submit(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, pending: Pending
    ) -> None:
        if on_the_loop():
            self._begin(coroutine, context, pending)
            return
        self.inbox.append((coroutine, context, pending))
        if not self.is_awake:
            self.is_awake = True
            self.loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self.is_awake = False  # before the queue is read: what is put in later wakes us again
        while self.inbox:
            self._begin(*self.inbox.popleft())

    def _begin(
        self, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context, pending: Pending
    ) -> None:
        task = self.loop.create_task(coroutine, context=context)
        self.running.add(task)
        task.add_done_callback(partial(self._finish, pending), context=context)

    def _finish(self, pending: Pending, task: asyncio.Task[Any]) -> None:
        self.running.discard(task)
        error = None if task.cancelled() else task.exception()  # read, or asyncio complains of it
        if self.is_stopping:
            return
        if task.cancelled():
            pending.set_exception(EngineError("the call was cancelled by what it was waiting for"))
        elif error is not None:
            pending.set_exception(error)
        else:
            pending.set_result(task.result())

    def _run(self) -> None:
        import asyncio

        asyncio.set_event_loop(self.loop)
        try:
            while not self.is_stopping:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt):
                    pass  # of one call: raised where its value is read
            self.loop.set_exception_handler(lambda loop, context: None)
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=1))
        finally:
            self.loop.close()

    def stop(self) -> None:
        """At exit: calls in flight are abandoned, and the tasks that own clients close them."""
        if self.process == os.getpid() and self.thread.is_alive():
            self.is_stopping = True
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(timeout=2)


_the_loop: Loop | None = None
_making = threading.Lock()


def _in_child() -> None:
    """What the parent's loop was doing stays as it is: to end it here would reach the sockets that
    parent and child share, and to drop it would be reported as tasks that never ended."""
    global _making
    _making = threading.Lock()
    if _the_loop is not None:
        import asyncio

        for task in asyncio.all_tasks(_the_loop.loop):
            keep_for_good(task)


def keep_for_good(value: object) -> None:
    """No destructor of it runs, also not at exit."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def the_loop() -> Loop:
    """The process's loop; made on first use, and anew in a forked child."""
    global _the_loop
    if _the_loop is None or _the_loop.process != os.getpid():
        with _making:
            if _the_loop is None or _the_loop.process != os.getpid():
                _the_loop = Loop()
    return _the_loop


def on_the_loop() -> bool:
    """Whether this is the background loop's thread, where nothing may block."""
    return _the_loop is not None and threading.current_thread() is _the_loop.thread


def is_busy() -> bool:
    """Whether calls are under way in the background."""
    return _the_loop is not None and bool(_the_loop.running or _the_loop.inbox)


def finish(seconds: float) -> None:
    """Waits until no call is under way in the background, for so long at most."""
    end = time.monotonic() + seconds
    while is_busy() and time.monotonic() < end:
        time.sleep(0.01)
