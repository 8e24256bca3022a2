"""Dispatch: calls run on one background event loop while user code goes on, as kernels do on a GPU.

`start(coroutine)` runs a coroutine right here until it first has to wait (`await on_loop()`); the
rest runs on the loop and the result is a `Pending` value, which `wait` reads. What never has to
wait never leaves the caller's thread. `drive` walks a graph backward with rules that do wait.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any

from textautograd.cancelling import Cancelled, is_cancelled
from textautograd.errors import EngineError, Error, UsageError
from textautograd.loop import on_the_loop, the_loop
from textautograd.pending import Pending
from textautograd.tape import Gradient, Node, Vertex, Walk


def wait(value: Any) -> Any:
    """The value itself; blocks while it is pending, as `.item()` waits for the GPU.

    Raises:
        UsageError: on the background loop, where waiting would wait forever, and in a forked
            child for a value that the parent was computing.
    """
    if not isinstance(value, Pending):
        return value
    value.has_reader = True
    if not value.done():
        if value.process != os.getpid():
            raise UsageError(
                "this value was being computed when the process forked, and is computed in the "
                "parent only: read it before forking, or make the call again in the child"
            )
        if on_the_loop():
            raise UsageError(
                "reading a pending value on the background loop would wait forever: await it"
            )
    try:
        return _result(value)
    except Exception as error:
        error.was_read = True  # type: ignore[attr-defined]
        if isinstance(error, Error):  # its notes name the user's line; our own frames say nothing
            error.__traceback__ = None
        raise


def is_ready(value: Any) -> bool:
    """Whether `wait` would return, or raise, at once."""
    return not isinstance(value, Pending) or value.done()


async def arrived(values: Sequence[Any]) -> list[Any]:
    """Every value, waited for on the loop; raises the first failure, in slot order."""
    pending = [value for value in values if isinstance(value, Pending)]
    if not pending:
        return list(values)
    for value in pending:
        value.has_reader = True
    if not all([value.done() for value in pending]):
        await on_loop(pending)
    return [await _settled(value) for value in values]


async def awaited(value: Any) -> Any:
    """`wait` for coroutines, on any running loop."""
    try:
        return await _settled(value)
    except Exception as error:
        error.was_read = True  # type: ignore[attr-defined]
        raise


async def _settled(value: Any) -> Any:
    """`awaited`, where nobody has read a failure yet: it goes into the value computed from it."""
    if not isinstance(value, Pending):
        return value
    value.has_reader = True
    if value.done():
        return _result(value)
    if not value.is_coming():
        return wait(value)
    import asyncio

    is_set: Any
    if on_the_loop():  # where it will be set, too
        is_set = asyncio.get_running_loop().create_future()
        value.add_done_callback(lambda _: is_set.done() or is_set.set_result(None))
        await is_set
    else:
        is_set = Future()
        is_set.set_running_or_notify_cancel()
        value.add_done_callback(lambda _: is_set.set_result(None))
        await asyncio.wrap_future(is_set)
    return _result(value)


def _result(value: Pending) -> Any:
    """The value. Who reads it where no work has ended learns from an error why it never came."""
    try:
        return value.result()
    except Cancelled as end:
        if is_cancelled():
            raise
        error = EngineError(
            "the call was not made: what it was a part of, as map, evaluate, backward or a step, "
            "had ended with an error before its turn came; make it again"
        )
        error.__notes__ = list(getattr(end, "__notes__", ()))
        raise error from None


def start(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine here until it asks for the loop; returns its result or a `Pending` one.

    A failure does not surface here but where the value is read.
    """
    awaits: Iterable[Pending] = ()
    if not on_the_loop():
        try:
            awaits = coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        except Exception as error:
            # without this frame, whose callers hold the value: it would be in a cycle
            return failed(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
    pending = Pending()
    submit = partial(the_loop().submit, coroutine, contextvars.copy_context(), pending)
    _once_there(iter(awaits), submit)
    return pending


def _once_there(values: Iterator[Pending], go_on: Callable[[], None]) -> None:
    """Goes on when all the values are done: no task waits for them in the meantime."""
    for value in values:
        if value.is_coming():
            value.add_done_callback(lambda _: _once_there(values, go_on))
            return
    go_on()


def failed(error: BaseException) -> Pending:
    """A value that raises when it is read."""
    pending = Pending()
    pending.set_exception(error)
    return pending


class on_loop:
    """`await on_loop()`: from here on the coroutine runs on an event loop.

    Where it has to move there, it goes on when `awaits` are done.
    """

    def __init__(self, awaits: Sequence[Pending] = ()) -> None:
        self.awaits = awaits

    def __await__(self) -> Generator[Sequence[Pending], None, None]:
        if not on_the_loop():
            yield self.awaits


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Runs user code: here if this is a user's thread, else in a thread of its own with the same
    context, so that it may read pending values freely and never holds up the loop."""
    if not on_the_loop():
        return function(*args)
    import asyncio

    result: Future[Any] = Future()
    result.set_running_or_notify_cancel()  # it cannot be stopped, whoever stops waiting for it
    context = contextvars.copy_context()

    def work() -> None:
        try:
            value = context.run(function, *args)
        except StopIteration as error:  # no future can hold one
            failure = RuntimeError(f"user code raised {error!r}")
            failure.__cause__ = error
            result.set_exception(failure)
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(value)

    threading.Thread(target=work, name="textautograd-user-code", daemon=True).start()
    return await asyncio.wrap_future(result)


def is_blocking() -> bool:
    """Whether TEXTAUTOGRAD_BLOCKING=1 asks for each call to run where it is written."""
    return os.environ.get("TEXTAUTOGRAD_BLOCKING", "") not in ("", "0")


def drive(
    walk: Walk,
    pull: Callable[[Node, Gradient], Any],
    arrive: Callable[[Vertex, Gradient], Gradient],
) -> None:
    """The asynchronous driver: a node's rule starts as soon as its successors are done.

    `pull` returns the gradients, or a `Pending` for them. It is called in the caller's thread, as
    are hooks; only what waits for a model is on the loop.
    """
    finished: SimpleQueue[Pending] = SimpleQueue()
    put = finished.put
    flying: dict[Pending, Vertex] = {}
    try:
        while walk.is_active():
            for variable, gradient in walk.ready():
                gradient = arrive(variable, gradient)
                node = walk.node(variable)
                pulled = pull(node, gradient) if node else ()
                if isinstance(pulled, Pending) and not pulled.done():
                    flying[pulled] = variable
                    pulled.add_done_callback(put)
                else:
                    walk.done(variable, wait(pulled))
            if walk.is_waiting():
                pending = finished.get()
                walk.done(flying.pop(pending), wait(pending))
    finally:
        for pending in flying:
            pending.has_reader = True
