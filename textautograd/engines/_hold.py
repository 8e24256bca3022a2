"""What a call in flight holds of the budgets that are active, and how it waits for room in them."""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, cast
from weakref import WeakKeyDictionary

from textautograd.cancelling import check_cancelled
from textautograd.engines._checks import a_usage
from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.errors import EngineError, TimeoutExpired

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Future

    from textautograd.engines.budget import Budget

# Of all budgets: a call gets room in all that are active, or in none. A coroutine that is thrown
# away gives back what it held wherever that happens, so also where the lock is held.
_lock = threading.RLock()
_tickets = itertools.count()
PATIENCE = 1.0  # seconds
_within: ContextVar[Hold | None] = ContextVar("call_around", default=None)
_asked: WeakKeyDictionary[AbstractEventLoop, float] = WeakKeyDictionary()
"""When event loops were asked to turn that have not yet."""


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
        "_is_woken",
        "_joined",
        "_loop",
        "_patience",
        "_token",
        "_turn",
        "around",
        "budgets",
        "engine",
        "input_tokens",
        "is_over",
        "max_tokens",
        "purpose",
        "ticket",
    )

    def __init__(self, request: Request, engine: Engine, budgets: tuple[Budget, ...]) -> None:
        self.budgets = budgets
        self.engine = engine
        self.purpose = request.purpose
        self.max_tokens = request.max_tokens
        self.input_tokens = 0
        if budgets:
            texts = [str(message.get("content", "")) for message in request.messages]
            self.input_tokens = tokens_of("".join(texts))
        self.around = _living(_within.get())
        self.is_over = False
        self.ticket = math.inf
        """Its place among those that wait, which it keeps wherever it waits."""
        self._joined: list[Budget] = []
        self._is_woken = False
        self._patience = 1
        self._token: Token[Hold | None]
        self._loop: weakref.ref[AbstractEventLoop] | None = None
        self._turn: weakref.ref[Future[None]] | None = None

    def take_now(self) -> bool:
        """Whether there is room in all budgets, which is taken.

        Raises:
            BudgetExceeded: there never will be.
            SetupError: a budget in dollars and no price.
        """
        check_cancelled()
        with _lock:
            return not self._take()

    async def take(self) -> None:
        """Takes room in all budgets as soon as there is some; raises as `take_now` does."""
        import asyncio

        loop = asyncio.get_running_loop()
        self._loop = weakref.ref(loop)  # what a budget holds keeps no loop alive
        try:
            while True:
                check_cancelled()
                with _lock:
                    full = self._take()
                    if not full:
                        return
                    turn = loop.create_future()
                    self._turn = weakref.ref(turn)
                    self._join(full)
                await asyncio.wait([turn], timeout=PATIENCE)  # a loop that stops tells nobody
        finally:
            if self._joined:
                with _lock:
                    joined, self._joined = self._joined, []
                    for budget in joined:
                        budget.leave(self)
                    for budget in joined:
                        budget.wake()

    def _take(self) -> list[Budget]:
        """The budgets that have no room yet. If none, room is taken in all."""
        shares = [budget.room(self) for budget in self.budgets]
        both = list(zip(self.budgets, shares, strict=True))
        if full := [budget for budget, share in both if share is None]:
            return full
        for budget, share in both:
            budget.hold(self, cast(Share, share))
        return []

    def _join(self, budgets: Sequence[Budget]) -> None:
        """Waits in these as well: it keeps its place in all until it has room in all, else those
        that need one of them alone would always come before it."""
        if self.ticket == math.inf:
            self.ticket = next(_tickets)
        for budget in budgets:
            if budget not in self._joined:
                self._joined.append(budget)
                budget.join(self)

    def pass_over(self, budget: Budget) -> None:
        """It waits there no more, until it asks again. The next time it is given longer: its loop
        may turn slowly."""
        with suppress(ValueError):  # it was given up, and has just been collected
            self._joined.remove(budget)
        self._patience *= 2
        self.wake()

    def wake(self) -> None:
        """Lets it try again, as soon as its event loop turns."""
        loop = self._loop() if self._loop else None
        if loop is not None and not self._is_woken:
            self._is_woken = True
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._try_again)

    def _try_again(self) -> None:
        self._is_woken = False
        turn = self._turn() if self._turn else None
        if turn is not None and not turn.done():
            turn.set_result(None)

    def is_heard(self) -> bool:
        """Whether it can try again when it is woken: its loop may have been stopped, or blocked by
        its own program."""
        loop = self._loop() if self._loop else None
        return loop is not None and not loop.is_closed() and not _is_silent(loop, self._patience)

    def is_lost(self) -> bool:
        """Whether it may never come back from the model: its event loop is gone, or stopped. One
        that is blocked will go on."""
        if self._loop is None:  # it is answered in its caller's thread
            return False
        loop = self._loop()
        if loop is None or loop.is_closed():
            return True
        return not loop.is_running() and _is_silent(loop)

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
        except BaseException:  # a share is given back whatever the engine's own parts raise
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
            known = [budget.known(self) for budget in self.budgets if budget.has_limits()]
            for each in known:
                each.learn(usage, reply, isinstance(error, TimeoutExpired | TimeoutError))
            in_dollars = any(budget.usd is not None for budget in self.budgets)
            if uncounted and usage and usage.cost is None and error and in_dollars:
                usage = replace(usage, cost=max(each.dearest for each in known))  # as none is told
            for budget in self.budgets:
                budget.settle(self, usage, uncounted)
            for budget in self.budgets:
                budget.wake()


def _is_silent(loop: AbstractEventLoop, patience: int = 1) -> bool:
    """Whether an event loop has not turned since it was asked to some time ago."""
    now = monotonic()
    if loop not in _asked:
        _asked[loop] = now
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(_has_turned, loop)
    return now - _asked.get(loop, now) >= PATIENCE * patience


def _has_turned(loop: AbstractEventLoop) -> None:
    with _lock:
        _asked.pop(loop, None)


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
    _asked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
