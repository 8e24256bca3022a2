"""Budgets: what calls may consume, counted over everything that runs inside `with Budget(…)`."""

from __future__ import annotations

import os
import sys
from bisect import insort
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from textautograd.engines._checks import a_reply
from textautograd.engines._hold import Hold, Known, Share, locked
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.errors import BudgetExceeded, SetupError, UsageError

_active: ContextVar[tuple[Budget, ...]] = ContextVar("budgets", default=())
ROUNDING = 1e-9  # of a sum of prices


class Budget:
    """A limit on calls, tokens (input and output together) and US dollars, and a meter of them.

    A context manager; budgets nest, and each call is charged to all that are active where it is
    written. Without limits it only counts. `BudgetExceeded` is raised before the call that would
    pass it. A call in flight holds one call and what it may use, and a call for which there is no
    room beside those in flight waits until they have come back. Tokens: those of its input,
    estimated as one for four bytes, and its `max_tokens`, or, without, the longest reply so far of
    its engine to its purpose. Dollars: as much as the dearest call so far of its engine for its
    purpose. Where nothing is known yet, all that is left: so until one has come back, the calls of
    an engine go one at a time (twice as many after each that timed out), and an engine that waits
    for company before it answers waits for ever. So only a call can pass a budget whose input has
    more tokens than that, as code has, or whose reply is longer or dearer than all before it; and
    those that an engine makes within a call of its own, which wait for nobody: of a budget that is
    opened there, all that are made at once. A provider that counts no tokens is held to the
    estimate; a whole reply without a price stops a budget in dollars before the next call
    (`SetupError`). Replies from a cache, and calls that fail unpaid, cost nothing; an answer that
    cannot be read counts as a call, as dear as the dearest.
    """

    def __init__(
        self, calls: int | None = None, tokens: int | None = None, usd: float | None = None
    ) -> None:
        for name, limit in (("calls", calls), ("tokens", tokens), ("usd", usd)):
            if limit is not None and not (_is_number(limit) and limit >= 0):
                raise UsageError(f"{name} must be a number that is not negative, not {limit!r}")
        self.calls, self.tokens, self.usd = (
            None if limit is not None and limit > sys.float_info.max else limit
            for limit in (calls, tokens, usd)
        )
        self._spent = Usage()
        self._uncounted = 0  # tokens, estimated, of a provider that does not count
        self._shares: OrderedDict[Hold, Share] = OrderedDict()  # of those in flight
        self._held: list[float] = [0, 0.0, 0, 0.0]  # their sum
        self._waiting: list[Hold] = []  # by ticket
        self._process = os.getpid()
        self._known: dict[tuple[int, str], Known] = {}

    @property
    def spent(self) -> Usage:
        """What the calls that came back have consumed."""
        return self._spent

    def __enter__(self) -> Budget:
        if any(budget is self for budget in _active.get()):
            raise UsageError("this budget is active already: a second `with` would charge twice")
        _active.set((*_active.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _active.set(tuple(budget for budget in _active.get() if budget is not self))

    def charge(self, usage: Usage) -> None:
        """Counts what was used elsewhere."""
        with locked():
            self._spent += usage

    def has_limits(self) -> bool:
        """Whether it does more than count."""
        return (self.calls, self.tokens, self.usd) != (None, None, None)

    # What follows is called by holds, which have the lock.

    def known(self, call: Hold) -> Known:
        """What is known of such calls."""
        key = id(call.engine), call.purpose
        if key not in self._known:
            self._known[key] = Known(call.engine)
        return self._known[key]

    def room(self, call: Hold) -> Share | None:
        """What it is to hold; `None` if it has to wait for others.

        Raises:
            BudgetExceeded: there is no room for it, and none to wait for.
            SetupError: dollars are limited, and a call has no price.
        """
        if self._process != os.getpid():  # what is in flight comes back in the parent
            self._process = os.getpid()
            self._forget(self._shares)
            self._waiting.clear()
        if not self.has_limits():
            return Share()
        in_flight = len(self._shares)
        known = self.known(call)
        tokens = call.input_tokens + (call.max_tokens or known.longest)
        left_tokens, left_dollars = self._left(tokens, known)
        more_tokens, more_dollars = 0, 0.0
        if call.around is None:
            first = self._first(call)
            if first is not None and first.ticket < call.ticket:
                return None  # those before it are served first
            halvings = min(known.timeouts, 60)
            if self.tokens is not None and not (call.max_tokens or known.has_length):
                more_tokens = max(0, (int(left_tokens) >> halvings) - tokens)
            if self.usd is not None and not known.has_price:
                more_dollars = left_dollars / 2.0**halvings
        share = Share(tokens, known.dearest, more_tokens, more_dollars)
        if self._fits(call, share, left_tokens, left_dollars):
            return share
        self._forget([each for each in list(self._shares) if each.is_lost()])
        if len(self._shares) < in_flight:  # or one that was thrown away was collected meanwhile
            return self.room(call)
        if call.around is None and self._shares:
            return None
        raise BudgetExceeded(f"the next call would pass the budget: {self!r}")

    def _fits(self, call: Hold, share: Share, tokens: float, dollars: float) -> bool:
        """Whether there is room for a share beside those in flight. A call within another, which
        may hold all that is left, is held to what is known of those."""
        held = self._held
        calls = self._spent.calls + len(self._shares) + 1
        outer = call.around is None
        tokens -= held[0] + (held[2] if outer else 0)
        dollars -= held[1] + (held[3] if outer else 0.0)
        return (
            (self.calls is None or calls <= self.calls)
            and (self.tokens is None or share.tokens + share.more_tokens <= tokens)
            and (
                self.usd is None
                or not share.dollars + share.more_dollars
                or share.dollars + share.more_dollars <= dollars + self.usd * ROUNDING
            )
        )

    def _left(self, tokens: int, known: Known) -> tuple[float, float]:
        """The tokens and dollars that are not spent, if such a call fits into them."""
        spent = self._spent
        left_tokens = left_dollars = float("inf")
        if self.calls is not None and spent.calls + 1 > self.calls:
            raise BudgetExceeded(f"the next call would pass the budget: {self!r}")
        if self.tokens is not None:
            left_tokens = self.tokens - spent.tokens - self._uncounted
            if tokens > left_tokens:
                raise BudgetExceeded(
                    f"the next call may use {tokens} tokens and so pass the budget: {self!r}"
                )
        if self.usd is not None:
            if spent.calls and spent.cost is None:
                raise SetupError(
                    f"usd={self.usd} cannot be kept: the price of a call is not known. "
                    "Limit calls= or tokens= instead"
                )
            left_dollars = self.usd - (spent.cost or 0.0)
            is_free = known.has_price and not known.dearest
            if left_dollars <= 0 and not is_free:
                raise BudgetExceeded(f"the budget is used up: {self!r}")
            if known.dearest > max(left_dollars, 0.0) + self.usd * ROUNDING:
                raise BudgetExceeded(
                    f"the next call may cost ${known.dearest:.4f} and so pass the budget: {self!r}"
                )
        return left_tokens, left_dollars

    def hold(self, call: Hold, share: Share) -> None:
        """Holds it until `settle`."""
        self._shares[call] = share
        for i, held in enumerate(share):
            self._held[i] += held

    def settle(self, call: Hold, usage: Usage | None, uncounted: int) -> None:
        """Gives back what was held and charges what was used; `None` for nothing."""
        self._forget([call])
        self._uncounted += uncounted
        if usage is not None:
            self._spent += usage

    def _forget(self, calls: Iterable[Hold]) -> None:
        for call in list(calls):
            for i, held in enumerate(self._shares.pop(call, ())):
                self._held[i] -= held
        if not self._shares:
            self._held = [0, 0.0, 0, 0.0]  # sums of dollars are rounded

    def join(self, call: Hold) -> None:
        """Lets it try again, in its turn, when another has come back."""
        insort(self._waiting, call, key=_ticket)

    def leave(self, call: Hold) -> None:
        """It waits here no more."""
        with suppress(ValueError):  # in a child that was forked meanwhile
            self._waiting.remove(call)

    def _first(self, call: Hold | None = None) -> Hold | None:
        """The first that waits here. One that does not hear, if it is before the one that asks, is
        passed over: when its loop goes on, it asks again."""
        while self._waiting:
            first = self._waiting[0]
            if (call is not None and call.ticket <= first.ticket) or first.is_heard():
                return first
            self.leave(first)
            first.pass_over(self)
        return None

    def wake(self) -> None:
        """Lets the first that waits try again."""
        if (first := self._first()) is not None:
            first.wake()

    def __repr__(self) -> str:
        limits = {"calls": self.calls, "tokens": self.tokens, "usd": self.usd}
        shown = ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
        spent = self._spent
        cost = "" if spent.cost is None else f", ${spent.cost:.4f}"
        flying = f", {len(self._shares)} calls in flight" if self._shares else ""
        uncounted = f" (and about {self._uncounted} uncounted)" if self._uncounted else ""
        tokens = self._held[0] + self._held[2]
        held = f", {tokens} tokens held" if tokens else ""
        known = f"{spent.calls} calls, {spent.tokens} tokens{uncounted}{cost} spent"
        return f"Budget({shown}) with {known}{flying}{held}"


def _ticket(call: Hold) -> float:
    return call.ticket


def charge(usage: Usage) -> None:
    """Charges the context's budgets for calls that were made elsewhere."""
    for budget in _active.get():
        budget.charge(usage)


def has_limits() -> bool:
    """Whether a budget of the context has a limit."""
    return bool(limits())


def limits() -> tuple[Budget, ...]:
    """The context's budgets that have a limit."""
    return tuple(budget for budget in _active.get() if budget.has_limits())


class Metered(Wrapper):
    """Charges the context's budgets for each call that reaches the model."""

    metered = True

    async def complete(self, request: Request) -> Reply:
        held = Hold(request, self.inner, _active.get())
        try:
            await held.take()
            with held:
                answer: Any = self.inner.complete(request)
                if not hasattr(answer, "__await__"):
                    raise SetupError(f"`complete` of {self.inner!r} must be an `async def`")
                reply = a_reply(await answer, self.inner)
        except BaseException as error:
            held.release(error)
            raise
        held.charge(reply)
        return reply

    def answer_now(self, request: Request) -> Reply | None:
        answer = getattr(self.inner, "answer_now", None)
        if answer is None:
            return None
        held = Hold(request, self.inner, _active.get())
        try:
            if not held.take_now():
                return None  # `complete` waits for its turn
            with held:
                reply: Reply | None = answer(request)
            if reply is not None:
                a_reply(reply, self.inner)
        except BaseException as error:
            held.release(error)
            raise
        held.charge(reply)
        return reply


def metered(engine: Engine) -> Engine:
    """The engine, made to charge the context's budgets if it does not yet."""
    return engine if getattr(engine, "metered", False) else Metered(engine)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
