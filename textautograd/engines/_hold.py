"""What a call in flight holds of the budgets that are active, and how it waits for room in them."""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from textautograd.cancelling import check_cancelled
from textautograd.engines._checks import a_usage
from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.errors import EngineError, TimeoutExpired, UsageError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

    from textautograd.engines.budget import Budget

# Of all budgets: a call gets room in all that are active, or in none. A coroutine that is thrown
# away gives back what it held wherever that happens, so also where the lock is held.
_lock = threading.RLock()
_tickets = itertools.count()
PATIENCE = 1.0  # seconds
_within: ContextVar[Hold | None] = ContextVar("call_around", default=None)


@dataclass(slots=True)
class Known:
    """What the calls of an engine for one purpose have told a budget."""

    engine: Engine  # held, so that its `id` stays its own
    longest: int = 0
    """Tokens of a reply."""
    dearest: float = 0.0
    has_length: bool = False
    has_price: bool = False
    timeouts: int = 0
    """Calls that brought nothing, and may have gone on without us."""

    def learn(self, usage: Usage | None, reply: int, has_timed_out: bool) -> None:
        """From what a call has used, and the tokens of its reply."""
        self.timeouts += has_timed_out
        self.longest = max(self.longest, reply)
        self.has_length |= reply > 0
        if usage is not None and usage.cost is not None:
            self.has_price = True
            self.dearest = max(self.dearest, usage.cost)


class Share(NamedTuple):
    """What a call holds of a budget; `more` is what it holds as long as nothing is known of it."""

    tokens: int = 0
    dollars: float = 0.0
    more_tokens: int = 0
    more_dollars: float = 0.0


class Hold:
    """One call's share of every budget, from before it is sent until it has come back.

    A call waits while there may be room for it once others have come back. One that is made within
    another never waits, so that whoever is waited for comes back.
    """

    __slots__ = (
        "_loop",
        "_stopped",
        "_token",
        "_turn",
        "around",
        "budgets",
        "engine",
        "input_tokens",
        "is_over",
        "max_tokens",
        "purpose",
        "queued",
        "ticket",
    )

    def __init__(self, request: Request, engine: Engine, budgets: tuple[Budget, ...]) -> None:
        self.budgets = budgets
        self.engine = engine
        self.purpose = request.purpose
        self.max_tokens = request.max_tokens
        self.input_tokens = 0
        if budgets:
            self.input_tokens = tokens_of("".join(str(m["content"]) for m in request.messages))
        self.around = _living(_within.get())
        self.is_over = False
        self.ticket = math.inf
        """Its place among those that wait, which it keeps wherever it waits."""
        self.queued: Budget | None = None
        self._stopped: float | None = None
        self._token: Token[Hold | None]
        self._loop: AbstractEventLoop | None = None
        self._turn: Future[None] | None = None

    def take_now(self) -> bool:
        """Whether there is room in all budgets, which is taken.

        Raises:
            BudgetExceeded: there never will be.
            SetupError: a budget in dollars and no price.
        """
        check_cancelled()
        with _lock:
            return self._take() is None

    async def take(self) -> None:
        """Takes room in all budgets as soon as there is some; raises as `take_now` does."""
        import asyncio

        self._loop = asyncio.get_running_loop()
        try:
            while True:
                check_cancelled()
                with _lock:
                    full = self._take()
                    if full is None:
                        return
                    self._turn = self._loop.create_future()
                    self._wait_in(full)
                await asyncio.wait([self._turn], timeout=PATIENCE)  # a loop that stops tells nobody
        finally:
            with _lock:
                self._wait_in(None)

    def _wait_in(self, budget: Budget | None) -> None:
        before, self.queued = self.queued, budget
        if budget is not None and self.ticket == math.inf:
            self.ticket = next(_tickets)
        if budget is not None and budget is not before:
            budget.queue(self)
        if before is not None and before is not budget:
            before.wake()

    def _take(self) -> Budget | None:
        """The budget that has no room yet; `None` if there is room in all, which is taken."""
        shares = []
        for budget in self.budgets:
            share = budget.room(self)
            if share is None:
                return budget
            shares.append(share)
        for budget, share in zip(self.budgets, shares, strict=True):
            budget.hold(self, share)
        return None

    def wake(self) -> None:
        """Lets it try again, as soon as its event loop runs."""
        if self._loop is not None and self._turn is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(_settle, self._turn)

    def runs(self) -> bool:
        """Whether its event loop does."""
        return self._loop is None or self._loop.is_running()

    def is_stopped(self) -> bool:
        """Whether it may never come back, as its event loop has not run since this was asked some
        time ago."""
        if self.runs():
            self._stopped = None
            return False
        now = time.monotonic()
        self._stopped = now if self._stopped is None else self._stopped
        return now - self._stopped >= PATIENCE

    def __enter__(self) -> None:
        """What is called from here on is made within this call."""
        self._token = _within.set(self)

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):  # a coroutine that was thrown away ends in another context
            _within.reset(self._token)

    def charge(self, reply: Reply | None) -> None:
        if reply is None or reply.cached:
            self._settle(None)
        else:
            self._settle(reply.usage, reply.text)

    def release(self, error: BaseException) -> None:
        """A call that failed costs what its error says, as a reply that was cut off does."""
        usage = error.usage if isinstance(error, EngineError) else None
        try:
            if usage is not None:
                a_usage(usage, self.engine, f"raised {type(error).__name__}")
        except UsageError:
            self._settle(None)
            raise
        self._settle(usage, error=error)

    def _settle(
        self, usage: Usage | None, text: str = "", error: BaseException | None = None
    ) -> None:
        self.is_over = True
        self.around = _living(self.around)  # and no chain of those that are over
        if not self.budgets:
            return
        reply = uncounted = 0
        if usage is not None:
            usage = usage if usage.calls else replace(usage, calls=1)
            reply = usage.output_tokens or tokens_of(text)
            uncounted = 0 if usage.tokens else self.input_tokens + reply
        with _lock:
            known = [budget.known(self) for budget in self.budgets]
            for each in known:
                each.learn(usage, reply, isinstance(error, TimeoutExpired))
            in_dollars = any(budget.usd is not None for budget in self.budgets)
            if uncounted and usage and usage.cost is None and error and in_dollars:
                usage = replace(usage, cost=max(each.dearest for each in known))  # as none is told
            for budget in self.budgets:
                budget.settle(self, usage, uncounted)


def _settle(turn: Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def _living(call: Hold | None) -> Hold | None:
    """The innermost of a call and those around it that has not come back."""
    while call is not None and call.is_over:
        call = call.around
    return call


def is_within_a_call() -> bool:
    """Whether a call that holds room has led here, and may wait for what is done here."""
    return _living(_within.get()) is not None


def locked() -> AbstractContextManager[bool]:
    """The lock that budgets share."""
    return _lock


def tokens_of(text: str) -> int:
    return -(-len(text.encode(errors="surrogatepass")) // 4)


def _in_child() -> None:
    global _lock
    _lock = threading.RLock()  # another thread may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
