"""An engine whose replies a function writes: for tests, tutorials and anything without a model."""

from __future__ import annotations

import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from textautograd.calling import is_async
from textautograd.engines.base import Reply, Request
from textautograd.errors import UsageError

if TYPE_CHECKING:
    from asyncio import Future

Answer = str | Reply


class Scripted:
    """`fn(request) -> str | Reply`, sync or async, plays the model.

    A str becomes a reply of one call and no tokens. A sync `fn` runs in the caller's thread or in
    one of its own, never on an event loop, so it may block. `calls` lists the requests in the order
    in which they arrived. What `fn` raises is raised to the caller. To a cache and a run_dir all
    of them are one model, so that a run can be resumed with another function; set `identity` where
    they should not be. Rules and optimizers expect replies of different forms, JSON objects:
    `request.schema["properties"]` names the parts; the agent's own calls have no schema.
    """

    identity = "scripted"

    def __init__(self, fn: Callable[[Request], Answer | Awaitable[Answer]]) -> None:
        if not callable(fn):
            raise UsageError(
                f"Scripted needs a function of a request, not {type(fn).__name__}: "
                'Scripted(lambda request: "a reply")'
            )
        self.fn = fn
        self.calls: list[Request] = []
        self._is_async = is_async(fn)

    def answer_now(self, request: Request) -> Reply | None:
        """The reply of a sync `fn`, called here and now; `None` if `fn` is async."""
        if self._is_async:
            return None
        self.calls.append(request)
        return _reply(self.fn(request))

    async def complete(self, request: Request) -> Reply:
        """The reply; a sync `fn` runs in a thread of its own, in the caller's context."""
        self.calls.append(request)
        if self._is_async:
            return _reply(await self.fn(request))  # type: ignore[misc]
        return _reply(await _in_thread(self.fn, request))

    def __deepcopy__(self, memo: dict[int, Any]) -> Scripted:
        return self

    def __repr__(self) -> str:
        name = getattr(self.fn, "__qualname__", None)
        return f"Scripted({repr(self.fn) if name is None else name})"


def _reply(answer: Any) -> Reply:
    if isinstance(answer, str):
        return Reply(answer)
    if isinstance(answer, Reply):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()
        raise UsageError("the scripted function returned a coroutine: write it as `async def`")
    raise UsageError(f"the scripted function returned {type(answer).__name__}, not a str or Reply")


async def _in_thread(fn: Callable[[Request], Any], request: Request) -> Any:
    import asyncio

    loop = asyncio.get_running_loop()
    future: Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return  # whoever asked has been cancelled
        if error is None:
            future.set_result(value)
        elif isinstance(error, (SystemExit, KeyboardInterrupt, StopIteration)):
            future.set_exception(RuntimeError(f"the scripted function raised {error!r}"))
        else:
            future.set_exception(error)

    def run() -> None:
        value, error = None, None
        try:
            value = context.run(fn, request)
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="textautograd-scripted", daemon=True).start()
    return await future
