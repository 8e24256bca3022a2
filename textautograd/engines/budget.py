"""Budgets: what calls may consume, counted over everything that runs inside `with Budget(…)`."""

from __future__ import annotations

import os
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
    more tokens than that, as code has, or whose reply is longer or dearer than all before it. A
    provider that counts no tokens is held to the estimate; a whole reply without a price stops a
    budget in dollars before the next call (`SetupError`). Replies from a cache, and calls that fail
    unpaid, cost nothing; an answer that cannot be read counts as a call, as dear as the dearest.
    """

    def __init__(
        self, calls: int | None = None, tokens: int | None = None, usd: float | None = None
    ) -> None:
        for name, limit in (("calls", calls), ("tokens", tokens), ("usd", usd)):
            if limit is not None and not (_is_number(limit) and limit >= 0):
                raise UsageError(f"{name} must be a number that is not negative, not {limit!r}")
        self.calls = calls
        self.tokens = tokens
        self.usd = usd
        self._spent = Usage()
        self._uncounted = 0  # tokens, estimated, of a provider that does not count
        self._shares: dict[Hold, Share] = {}
        self._held: list[float] = [0, 0.0, 0, 0.0]  # their sum
        self._outer: dict[Hold, None] = {}  # those that wait, in turn
        self._inner: dict[Hold, None] = {}  # and those made within others
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
            BudgetExceeded: there would be no room if all others cost nothing.
            SetupError: dollars are limited, and a call has no price.
        """
        known = self.known(call)
        tokens = call.input_tokens + (call.max_tokens or known.longest)
        dollars = known.dearest
        if self.calls is self.tokens is self.usd is None:
            return Share(tokens, dollars)
        left_tokens, left_dollars = self._left(tokens, dollars)
        if not call.within and call is not next(iter(self._outer), call):
            return None  # those before it are served first
        around = [self._shares[one] for one in call.within if one in self._shares]
        more_tokens, more_dollars = 0, 0.0
        if self.tokens is not None and not (call.max_tokens or known.has_length):
            all_left = left_tokens - self._needed(call, around, 0)
            more_tokens = max(0, int(all_left / 2**known.timeouts) - tokens)
        if self.usd is not None and not known.has_price:
            all_left = left_dollars - self._needed(call, around, 1)
            more_dollars = max(0.0, all_left / 2**known.timeouts - dollars)
        share = Share(tokens, dollars, more_tokens, more_dollars)
        if self._fits(share, around, left_tokens, left_dollars):
            return share
        if any(not one.waiting_within for one in self._shares if one not in call.within):
            return None
        raise BudgetExceeded(f"the next call would pass the budget: {self!r}")

    def _fits(self, share: Share, around: list[Share], tokens: float, dollars: float) -> bool:
        """Whether there is room for a share beside those in flight, within others."""
        held = self._held
        calls = self._spent.calls + len(self._shares) + 1
        tokens -= held[0] + held[2] - sum(each.more_tokens for each in around)
        dollars -= held[1] + held[3] - sum(each.more_dollars for each in around)
        return (
            (self.calls is None or calls <= self.calls)
            and (self.tokens is None or share.tokens + share.more_tokens <= tokens)
            and (
                self.usd is None
                or share.dollars + share.more_dollars <= dollars + self.usd * ROUNDING
            )
        )

    def _needed(self, call: Hold, around: list[Share], which: int) -> float:
        """What those need that cannot come back before it: those around it, and those with calls
        within them that wait."""
        stuck = [
            share[which] + share[which + 2]
            for one, share in self._shares.items()
            if one.waiting_within and one not in call.within
        ]
        return sum(stuck) + sum(share[which] for share in around)

    def _left(self, tokens: int, dollars: float) -> tuple[float, float]:
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
            if left_dollars <= 0:
                raise BudgetExceeded(f"the budget is used up: {self!r}")
            if dollars > left_dollars + self.usd * ROUNDING:
                raise BudgetExceeded(
                    f"the next call may cost ${dollars:.4f} and so pass the budget: {self!r}"
                )
        return left_tokens, left_dollars

    def hold(self, call: Hold, share: Share) -> None:
        """Holds it until `settle`."""
        self._shares[call] = share
        for i, held in enumerate(share):
            self._held[i] += held

    def settle(self, call: Hold, usage: Usage | None, uncounted: int) -> None:
        """Gives back what was held and charges what was used; `None` for nothing."""
        for i, held in enumerate(self._shares.pop(call, ())):
            self._held[i] -= held
        if not self._shares:
            self._held = [0, 0.0, 0, 0.0]  # sums of dollars are rounded
        self._uncounted += uncounted
        if usage is not None:
            self._spent += usage
        self.wake()

    def queue(self, call: Hold) -> None:
        """Lets it try again when another has come back."""
        (self._inner if call.within else self._outer)[call] = None

    def unqueue(self, call: Hold) -> None:
        """It waits no more; the next one is served."""
        (self._inner if call.within else self._outer).pop(call, None)
        self.wake()

    def wake(self) -> None:
        """Lets the first that waits try again, and all that are made within others."""
        for call in list(self._inner):
            if not call.wake():
                del self._inner[call]
        while self._outer and not (first := next(iter(self._outer))).wake():
            del self._outer[first]

    def forget(self) -> None:
        """Forgets the calls in flight, which come back in another process."""
        self._shares.clear()
        self._outer.clear()
        self._inner.clear()
        self._held = [0, 0.0, 0, 0.0]

    def __repr__(self) -> str:
        limits = {"calls": self.calls, "tokens": self.tokens, "usd": self.usd}
        shown = ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
        spent = self._spent
        cost = "" if spent.cost is None else f", ${spent.cost:.4f}"
        flying = f", {len(self._shares)} calls in flight" if self._shares else ""
        held = self._held[0] + self._held[2] + self._uncounted
        estimated = f", {held} tokens held" if held else ""
        known = f"{spent.calls} calls, {spent.tokens} tokens{cost} spent"
        return f"Budget({shown}) with {known}{flying}{estimated}"


def charge(usage: Usage) -> None:
    """Charges the context's budgets for calls that were made elsewhere."""
    for budget in _active.get():
        budget.charge(usage)


def has_limits() -> bool:
    """Whether a budget of the context has a limit."""
    return any((b.calls, b.tokens, b.usd) != (None, None, None) for b in _active.get())


class Metered(Wrapper):
    """Charges the context's budgets for each call that reaches the model."""

    metered = True

    async def complete(self, request: Request) -> Reply:
        held = Hold(request, self.inner, _active.get())
        await held.take()
        try:
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
        if not held.take_now():
            return None  # `complete` waits for its turn
        try:
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


def _in_child() -> None:
    for budget in _active.get():
        budget.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
