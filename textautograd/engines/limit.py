"""At most so many calls at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textautograd.checking import whole
from textautograd.engines._per_loop import PerLoop
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request
from textautograd.engines.budget import metered

if TYPE_CHECKING:
    from asyncio import Semaphore


class Limited(Wrapper):
    """Sends at most `n` requests at once; the others wait in the order in which they came."""

    def __init__(self, inner: Engine, n: int) -> None:
        super().__init__(metered(inner))
        self.n = whole("n, the calls at once,", n)
        self._slots = PerLoop(self._semaphore)

    @property
    def max_concurrency(self) -> int:
        return min(self.n, super().max_concurrency)

    def _semaphore(self) -> Semaphore:
        import asyncio

        return asyncio.Semaphore(self.n)

    async def complete(self, request: Request) -> Reply:
        async with self._slots.here():
            return await self.inner.complete(request)
