"""What engines that wrap an engine have in common, and what is made once for each event loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from textautograd.engines._checks import is_engine
from textautograd.engines.base import Engine, Reply, Request
from textautograd.errors import UsageError
from textautograd.identity import attributes, changed_in, digest, identity

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
_SECRET = re.compile(r"key|token(?!s\b|i[sz])|secret|password|authorization", re.IGNORECASE)


def identity_of(engine: Engine) -> str:
    """What tells this engine's replies from another's in a cache; holds no secrets.

    One that does not say is known by its class and a digest of its attributes: texts, numbers,
    paths, functions, engines, and lists, dicts and dataclasses of them, such as a model's name or a
    temperature. Keys are left out, what `complete` changes (counters, logs), and other objects.
    """
    found = getattr(engine, "identity", None)
    if isinstance(found, str) and found:
        return found
    changing = changed_in(type(engine), "complete", "answer_now")
    own = _told({name: each for name, each in attributes(engine) if name not in changing})
    name = type(engine).__qualname__
    return f"{name}#{digest(own)[:10]}" if own else name


def _told(value: Any) -> Any:
    """What of a value tells engines apart, or `None`."""
    if isinstance(value, (str, int, float, bytes)) and not isinstance(value, Enum):
        return value
    if isinstance(value, (PurePath, Enum)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return list(map(_told, value))
    if isinstance(value, (set, frozenset)):
        return sorted(digest(_told(each)) for each in value)
    if isinstance(value, Mapping):
        told = {name: _told(each) for name, each in value.items() if not _SECRET.search(str(name))}
        return {name: each for name, each in told.items() if each is not None}
    if is_dataclass(value) and not isinstance(value, type):
        return _told({field.name: getattr(value, field.name) for field in fields(value)})
    if is_engine(value):
        return identity_of(value)
    return identity(value) if isinstance(value, _FUNCTIONS) else None


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
