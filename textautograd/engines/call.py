"""The one place through which every call of a model goes."""

from __future__ import annotations

from textautograd.engines._checks import finished
from textautograd.engines.base import Engine, Reply, Request
from textautograd.engines.budget import metered
from textautograd.engines.cache import Cached, run_cache


async def call(engine: Engine, request: Request) -> Reply:
    """A whole reply: charged to the context's budgets, and kept in the run's cache if there is one.

    Raises:
        EngineError: there is none; `IncompleteReplyError` where it is cut off or empty.
        BudgetExceeded: before the call that would pass a budget.
        UsageError: the engine returned something else.
    """
    return finished(await _in_context(engine).complete(request), request)


def call_now(engine: Engine, request: Request) -> Reply | None:
    """As `call`, for what needs no waiting: a cached reply, a plain function. Else `None`."""
    answer = getattr(_in_context(engine), "answer_now", None)
    reply: Reply | None = answer and answer(request)
    return reply and finished(reply, request)


def _in_context(engine: Engine) -> Engine:
    store = run_cache()
    return metered(engine) if store is None else Cached(engine, store)
