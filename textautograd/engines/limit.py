"""At most so many calls at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from textautograd.cancelling import check_cancelled
from textautograd.checking import whole
from textautograd.engines._per_loop import PerLoop
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request

if TYPE_CHECKING:
    from asyncio import Semaphore


class Limited(Wrapper):
    """Sends at most `n` requests at once; the others wait in the order in which they came."""

    def __init__(self, inner: Engine, n: int) -> None:
        super().__init__(inner)
        self.n = whole("n, the calls at once,", n)
        self._slots = PerLoop(self._semaphore)

    @property
    def max_concurrency(self) -> int:
        return min(self.n, super().max_concurrency)

    @property
    def answer_now(self) -> Any:  # none, if `inner` has none: budgets ask
        return getattr(self.inner, "answer_now", None)

    def _semaphore(self) -> Semaphore:
        import asyncio

        return asyncio.Semaphore(self.n)

    async def complete(self, request: Request) -> Reply:
        async with self._slots.here():
            check_cancelled()  # while it waited
            return await self.inner.complete(request)
