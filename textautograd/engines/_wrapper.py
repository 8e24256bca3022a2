"""What engines that wrap an engine have in common, and what is made once for each event loop."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from textautograd.engines._checks import is_engine
from textautograd.engines.base import Engine, Reply, Request
from textautograd.errors import UsageError
from textautograd.identity import assigned_by, digest

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")

_SECRET = re.compile("key|token|secret|password", re.IGNORECASE)


def identity_of(engine: Engine) -> str:
    """What tells this engine's replies from another's in a cache; holds no secrets.

    One that does not say is known by its class and a digest of the texts and numbers among its
    attributes, such as a model's name or a temperature, but for keys, and for numbers that its own
    methods assign: what it counts.
    """
    found = getattr(engine, "identity", None)
    if isinstance(found, str) and found:
        return found
    changing = assigned_by(type(engine))
    own = {
        name: value
        for name, value in getattr(engine, "__dict__", {}).items()
        if isinstance(value, str) or (isinstance(value, (int, float)) and name not in changing)
        if not _SECRET.search(name)
    }
    name = type(engine).__qualname__
    return f"{name}#{digest(own)[:10]}" if own else name


class Wrapper:
    """Passes everything through to `inner`."""

    def __init__(self, inner: Engine) -> None:
        if not is_engine(inner):
            raise UsageError(
                "an engine is an object with `async def complete(request)`, not "
                f"{inner!r:.80}: textautograd.engine(name) makes one"
            )
        self.inner = inner

    async def complete(self, request: Request) -> Reply:
        return await self.inner.complete(request)

    def answer_now(self, request: Request) -> Reply | None:
        answer: Callable[[Request], Reply | None] | None = getattr(self.inner, "answer_now", None)
        return answer(request) if answer else None

    @property
    def identity(self) -> str:
        return identity_of(self.inner)

    @property
    def structured(self) -> str:
        return getattr(self.inner, "structured", "schema")

    @property
    def metered(self) -> bool:
        return getattr(self.inner, "metered", False)

    @property
    def max_concurrency(self) -> int:
        """The most calls that are computed at once; more would only wait."""
        return getattr(self.inner, "max_concurrency", 64)

    @property
    def max_input_tokens(self) -> int | None:
        """The most tokens of a prompt that the framework writes; `None`: no limit is stated."""
        return getattr(self.inner, "max_input_tokens", None)

    async def close(self) -> None:
        close = getattr(self.inner, "close", None)
        if close is not None:
            await close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Wrapper:
        return self  # a handle, as a device is: copies of a module share it

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r})"


class PerLoop(Generic[T]):
    """A value for each event loop, made on first use there. What is sent to another process has
    none yet."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[AbstractEventLoop, T] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PerLoop, (self._make,)

    def here(self) -> T:
        """The running loop's value."""
        import asyncio

        loop = asyncio.get_running_loop()
        value = self._values.get(loop)
        if value is None:
            for past in [known for known in list(self._values) if known.is_closed()]:
                self._values.pop(past, None)
            value = self._values[loop] = self._make()
        return value

    def pop(self) -> T | None:
        """Forgets and returns the running loop's value."""
        import asyncio

        return self._values.pop(asyncio.get_running_loop(), None)
