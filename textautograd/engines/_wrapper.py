"""What engines that wrap an engine have in common."""

from __future__ import annotations

from typing import Any

from textautograd.engines._checks import is_engine
from textautograd.engines._identity import identity_of
from textautograd.engines.base import Engine, Reply, Request
from textautograd.errors import UsageError


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
        answer = getattr(self.inner, "answer_now", None)
        reply: Reply | None = answer and answer(request)
        return reply

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
