"""Budgets: what calls may consume, counted over everything that runs inside `with Budget(…)`."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textautograd.cancelling import check_cancelled
from textautograd.engines._checks import a_reply, a_usage
from textautograd.engines._per_loop import PerLoop
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.errors import BudgetExceeded, EngineError, SetupError, UsageError

if TYPE_CHECKING:
    from asyncio import Lock
    from collections.abc import AsyncIterator, Coroutine

_finding_out: ContextVar[bool] = ContextVar("finding_out", default=False)
_active: ContextVar[tuple[Budget, ...]] = ContextVar("budgets", default=())


class Budget:
    """A limit on calls, tokens (input and output together) and US dollars, and a meter of them.

    A context manager; budgets nest, and each call is charged to all that are active where it is
    written. Without limits it only counts. `BudgetExceeded` is raised before the call that would
    pass it. A call in flight counts as one call and as the tokens that it may use: its input,
    estimated as a token for four bytes, and its `max_tokens`, or, without, the engine's longest
    reply so far to a call of its purpose. So a call can pass `tokens` by what its input has more
    than that, as code has, and by how much its reply is longer than those before it. A provider
    that counts no tokens is held to the estimate. A call counts as the dollars of the dearest call
    so far, as its own are known afterwards: only one that is dearer than all before it can pass
    `usd`. A whole reply without a known price stops a budget in dollars before the next call
    (`SetupError`). Until one call of an engine and purpose has come back, and so told what it costs
    or how long replies are, they go one at a time where that is limited, but for those that a plain
    function answers: an engine that waits for company before it answers would wait for ever.
    Replies from a cache, and calls that fail unpaid, cost nothing; an answer that cannot be read
    counts as a call.
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
        self._calls_in_flight = 0
        self._tokens_held = 0
        self._dearest = 0.0
        self._lock = threading.Lock()
        self._prices: dict[tuple[int, str], _Price] = {}

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

    def price(self, engine: Engine, purpose: str) -> _Price:
        """What is known of an engine's calls for a purpose."""
        with self._lock:
            key = id(engine), purpose
            if key not in self._prices:
                self._prices[key] = _Price(engine, self.usd is not None)
            return self._prices[key]

    def reserve(self, tokens: int) -> None:
        """Holds one call of at most `tokens` tokens until `settle`, or raises."""
        with self._lock:
            spent = self._spent
            if self.calls is not None and spent.calls + self._calls_in_flight + 1 > self.calls:
                raise BudgetExceeded(f"the next call would pass the budget: {self!r}")
            if self.tokens is not None and spent.tokens + self._tokens_held + tokens > self.tokens:
                raise BudgetExceeded(
                    f"the next call may use {tokens} tokens and so pass the budget: {self!r}"
                )
            if self.usd is not None:
                if spent.calls and spent.cost is None:
                    raise SetupError(
                        f"usd={self.usd} cannot be kept: the price of a call is not known. "
                        "Limit calls= or tokens= instead"
                    )
                cost = spent.cost or 0.0
                if cost >= self.usd:
                    raise BudgetExceeded(f"the budget is used up: {self!r}")
                held = self._dearest * (self._calls_in_flight + 1)
                if cost + held > self.usd * (1 + 1e-9):  # sums of prices are rounded
                    raise BudgetExceeded(
                        f"the next call may cost ${self._dearest:.4f} and so pass the budget: "
                        f"{self!r}"
                    )
            self._calls_in_flight += 1
            self._tokens_held += tokens

    def settle(
        self, tokens: int, usage: Usage | None, estimated: int = 0, failed: bool = False
    ) -> None:
        """Gives back what was held and charges what was used; `None` for nothing.

        `estimated` tokens stay held: those of a provider that does not count. What `failed` and has
        no known price is charged as the dearest call so far.
        """
        with self._lock:
            self._calls_in_flight -= 1
            self._tokens_held += estimated - tokens
            if usage is not None:
                if failed and usage.cost is None and self.usd is not None:
                    usage = replace(usage, cost=self._dearest)
                self._spent += usage
                self._dearest = max(self._dearest, usage.cost or 0.0)

    def charge(self, usage: Usage) -> None:
        """Counts what was used elsewhere."""
        with self._lock:
            self._spent += usage

    def __repr__(self) -> str:
        limits = {"calls": self.calls, "tokens": self.tokens, "usd": self.usd}
        shown = ", ".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
        spent = self._spent
        cost = "" if spent.cost is None else f", ${spent.cost:.4f}"
        flying = f", {self._calls_in_flight} calls in flight" if self._calls_in_flight else ""
        held = f", {self._tokens_held} tokens held" if self._tokens_held else ""
        known = f"{spent.calls} calls, {spent.tokens} tokens{cost} spent"
        return f"Budget({shown}) with {known}{flying}{held}"


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

    def complete(self, request: Request) -> Coroutine[Any, Any, Reply]:
        # one made within a call that is finding out waits for none, which may be waiting for it
        prices = [] if _finding_out.get() else self._prices(request)
        # in one order for all, so that no two wait for one another
        return self._in_turn(request, sorted(prices, key=id)) if prices else self._charged(request)

    def _prices(self, request: Request) -> list[_Price]:
        """Of the budgets that limit what is known only once a call has come back."""
        return [
            budget.price(self.inner, request.purpose)
            for budget in _active.get()
            if budget.usd is not None or (budget.tokens is not None and not request.max_tokens)
        ]

    async def _in_turn(self, request: Request, prices: list[_Price]) -> Reply:
        """One call at a time, until what it takes is known to all."""
        for i, price in enumerate(prices):
            async with price.turn():
                if not price.is_known:
                    try:
                        reply = await self._in_turn(request, prices[i + 1 :])
                    except EngineError:
                        price.is_known = not price.in_dollars  # as much as it ever will be
                        raise
                    price.is_known = reply.usage.cost is not None or not price.in_dollars
                    return reply
        return await self._charged(request)

    async def _charged(self, request: Request) -> Reply:
        held = _Hold(request, self.inner)
        try:
            answer: Any = self.inner.complete(request)
            if not hasattr(answer, "__await__"):
                raise SetupError(f"`complete` of {self.inner!r} must be an `async def`")
            reply = a_reply(await answer, self.inner)
        except BaseException as error:
            held.release(error, self.inner)
            raise
        held.charge(reply)
        return reply

    def answer_now(self, request: Request) -> Reply | None:
        answer = getattr(self.inner, "answer_now", None)
        if answer is None:
            return None
        held = _Hold(request, self.inner)
        try:
            reply: Reply | None = answer(request)
            if reply is not None:
                a_reply(reply, self.inner)
        except BaseException as error:
            held.release(error, self.inner)
            raise
        held.charge(reply)
        return reply


class _Price:
    """Whether it is known what an engine's replies take, and whose turn it is to find out."""

    def __init__(self, engine: Engine, in_dollars: bool) -> None:
        self.engine = engine  # held, so that its `id` stays its own
        self.in_dollars = in_dollars
        self.longest = 0  # tokens of a reply
        self.is_known = False
        self._turns = PerLoop(_lock)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits until no other call is finding out."""
        if self.is_known:
            yield
            return
        async with self._turns.here():
            token = _finding_out.set(True)
            try:
                yield
            finally:
                _finding_out.reset(token)


def _lock() -> Lock:
    import asyncio

    return asyncio.Lock()


def metered(engine: Engine) -> Engine:
    """The engine, made to charge the context's budgets if it does not yet."""
    return engine if getattr(engine, "metered", False) else Metered(engine)


class _Hold:
    """One call's reservation in every active budget."""

    def __init__(self, request: Request, engine: Engine) -> None:
        check_cancelled()
        self.held: list[tuple[Budget, _Price, int]] = []
        active = _active.get()
        if not active:
            return
        self.input_tokens = _tokens("".join(str(m["content"]) for m in request.messages))
        try:
            for budget in active:
                price = budget.price(engine, request.purpose)
                tokens = self.input_tokens + (request.max_tokens or price.longest)
                budget.reserve(tokens)
                self.held.append((budget, price, tokens))
        except BaseException:
            self._settle(None)
            raise

    def charge(self, reply: Reply | None) -> None:
        if reply is None or reply.cached:
            self._settle(None)
        else:
            self._settle(reply.usage, reply.text)

    def release(self, error: BaseException, engine: Engine) -> None:
        """A call that failed costs what its error says, as a reply that was cut off does."""
        usage = error.usage if isinstance(error, EngineError) else None
        try:
            if usage is not None:
                a_usage(usage, engine, f"raised {type(error).__name__}")
        except UsageError:
            usage = None
            raise
        finally:
            self._settle(usage, failed=True)

    def _settle(self, usage: Usage | None, text: str = "", failed: bool = False) -> None:
        if not self.held:
            return
        estimated = reply = 0
        if usage is not None:
            usage = replace(usage, calls=max(1, usage.calls))
            reply = usage.output_tokens or _tokens(text)
            if not usage.tokens:
                estimated = self.input_tokens + reply
        for budget, price, tokens in self.held:
            price.longest = max(price.longest, reply)
            budget.settle(tokens, usage, estimated, failed)


def _tokens(text: str) -> int:
    return -(-len(text.encode(errors="surrogatepass")) // 4)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
