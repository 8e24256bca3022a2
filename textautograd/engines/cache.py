"""Replies that were paid for are kept: a call cache on SQLite, and one flight for twin requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from textautograd.cancelling import Cancelled
from textautograd.engines._checks import AT_LIMIT, a_usage, finished
from textautograd.engines._hold import is_within_a_call
from textautograd.engines._per_loop import PerLoop
from textautograd.engines._store import Store
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.engines.budget import Budget, limits, metered
from textautograd.errors import (
    EngineError,
    IncompleteReplyError,
    UsageError,
)
from textautograd.identity import digest

if TYPE_CHECKING:
    from asyncio import Task

VERSION = 1  # of the key: entries written under another are not found

_run_cache: ContextVar[Store | None] = ContextVar("run_cache", default=None)


class Cached(Wrapper):
    """Answers from `path` what was answered before, and writes there what is answered now.

    A reply is written before it is returned, and only if it is whole or was cut off at
    `max_tokens`, which is the same failure each time and costs nothing again. One that comes from
    the cache has `cached` set and an empty usage, for nothing was paid now. Of several replies to
    one request the first that was written counts for all; those that a sample draws at a
    temperature are requests of their own (`draws`). Processes may share a file.
    """

    def __init__(self, inner: Engine, path: str | PathLike[str] | Store) -> None:
        super().__init__(metered(inner))
        self.store = path if isinstance(path, Store) else Store(path)

    async def complete(self, request: Request) -> Reply:
        key = key_of(self.identity, request)
        if (reply := self._found(key, request)) is not None:
            return reply
        with self._keeping_what_is_cut_off(key, request):
            return self._kept(key, request, await self.inner.complete(request))

    def answer_now(self, request: Request) -> Reply | None:
        key = key_of(self.identity, request)
        if (reply := self._found(key, request)) is not None:
            return reply
        with self._keeping_what_is_cut_off(key, request):
            reply = super().answer_now(request)
            return reply and self._kept(key, request, reply)

    async def close(self) -> None:
        self.store.close()
        await super().close()

    def _found(self, key: str, request: Request) -> Reply | None:
        reply = self._stored(key, request)
        return reply and finished(replace(reply, usage=Usage(), cached=True), request)

    def _kept(self, key: str, request: Request, reply: Reply) -> Reply:
        finished(reply, request)
        first = self._first(key, request, reply)
        reply = replace(reply, text=first.text, finish_reason=first.finish_reason)
        return finished(reply, request)

    @contextmanager
    def _keeping_what_is_cut_off(self, key: str, request: Request) -> Iterator[None]:
        try:
            yield
        except IncompleteReplyError as error:
            if error.finish_reason in AT_LIMIT:
                usage = error.usage or Usage()
                self._first(key, request, Reply(error.text, error.finish_reason, usage))
            raise

    def _first(self, key: str, request: Request, reply: Reply) -> Reply:
        """The reply that the file holds: the one that is there, else this one."""
        value = json.dumps(
            {
                "text": reply.text,
                "finish_reason": reply.finish_reason,
                "tokens": [reply.usage.input_tokens, reply.usage.output_tokens],
                "digest": _digest(key, reply.text, reply.finish_reason),
            }
        )
        if self.store.add(key, value):
            return reply
        first = self._stored(key, request)
        if first is None:
            self.store.replace(key, value)
        return first or reply

    def _stored(self, key: str, request: Request) -> Reply | None:
        return _read(key, self.store.get(key), request)


_Key = tuple[str, tuple[Budget, ...]]


class Coalesced(Wrapper):
    """Sends identical requests at temperature 0 that are in flight at the same time once.

    The others get that call's reply, `cached` and without usage, or its failure. A caller that is
    cancelled takes nobody along.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(metered(inner))
        self._flights: PerLoop[dict[_Key, _Flight]] = PerLoop(dict)

    async def complete(self, request: Request) -> Reply:
        if request.temperature != 0 or is_within_a_call():  # for which the other may be waiting
            return await self.inner.complete(request)
        flights = self._flights.here()
        # All go to one engine, and each waits for room in its own budgets.
        key = key_of("", request), limits()
        while (flight := flights.get(key)) is not None:
            try:
                return replace(await flight.landing(), usage=Usage(), cached=True)
            except Cancelled:
                pass  # the other caller's end, not ours
        flight = flights[key] = _Flight(self, request, flights, key)
        return await flight.landing()


class _Flight:
    """One call, and how many wait for it.

    It is under way until the first of them has gone on with its reply, and so has it in its cache:
    who comes between would find neither.
    """

    def __init__(
        self, engine: Coalesced, request: Request, flights: dict[_Key, _Flight], key: _Key
    ) -> None:
        import asyncio

        self.waiting = 0
        self.flights = flights
        self.key = key
        self.task: Task[Reply] = asyncio.create_task(engine.inner.complete(request))

    async def landing(self) -> Reply:
        import asyncio

        while self.task.done() and self._is_known():
            await asyncio.sleep(0)  # those who waited are woken first
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if (self.task.done() or not self.waiting) and self._is_known():
                del self.flights[self.key]
            if not self.waiting:
                self.task.cancel()

    def _is_known(self) -> bool:
        return self.flights.get(self.key) is self


@contextmanager
def caching(path: str | PathLike[str]) -> Iterator[None]:
    """Calls made in this context, of whatever engine, are answered from and written to `path`.

    Engines without an `identity` are told apart as `Engine` says. As a `Budget`, it is not sent to
    an executor: calls made there do not see it.
    """
    store = Store(path)
    token = _run_cache.set(store)
    try:
        yield
    finally:
        _run_cache.reset(token)
        store.close()


def run_cache() -> Store | None:
    """The store that `caching` names in this context."""
    return _run_cache.get()


def key_of(identity: str, request: Request) -> str:
    """What a reply is kept under: everything that it depends on, which `purpose` is not."""
    import hashlib

    content = {
        "version": VERSION,
        "engine": identity,
        "messages": request.messages,
        "temperature": _number(request.temperature),
        "max_tokens": request.max_tokens,
        "top_p": _number(request.top_p),
        "stop": [request.stop] if isinstance(request.stop, str) else request.stop,
        "seed": request.seed,
        "schema": request.schema,
        "sample": request.sample,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)  # 0 and 0.0 are one temperature


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else list(value)


def _digest(key: str, text: str, finish_reason: str) -> str:
    """What a damaged file does not hold for a damaged reply, nor for that of another request."""
    return digest((key, text, finish_reason))[:16]


def _read(key: str, value: str | None, request: Request) -> Reply | None:
    """A stored value, or `None` for one that was not to be kept: then it is asked for anew."""
    try:
        entry = json.loads(value or "null")
        text, finish_reason = entry["text"], entry["finish_reason"]
        input_tokens, output_tokens = entry["tokens"]
        a_usage(Usage(input_tokens, output_tokens), "cache", "holds an entry")
        is_old = entry.keys() == {"text", "finish_reason", "tokens"}
    except (ValueError, TypeError, KeyError, RecursionError, UsageError):
        return None
    if not isinstance(text, str) or not isinstance(finish_reason, str):
        return None
    if not is_old and entry.get("digest") != _digest(key, text, finish_reason):
        return None
    reply = Reply(text, finish_reason)
    if finish_reason in AT_LIMIT:
        return reply
    try:
        return finished(reply, request)
    except EngineError:
        return None
