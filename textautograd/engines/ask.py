"""`ask`: the one place where a coroutine of the framework sends a request to an engine."""

from textautograd.dispatch import on_loop, on_the_loop
from textautograd.engines.base import Engine, Reply, Request
from textautograd.engines.call import call, call_now


async def ask(engine: Engine, request: Request) -> Reply:
    """The engine's reply: at once and in this thread where the engine can, else on the loop.

    Raises:
        EngineError: the call brought no usable reply.
        BudgetExceeded: before a call that would pass a budget of this context.
    """
    if not on_the_loop():
        reply = call_now(engine, request)
        if reply is not None:
            return reply
        await on_loop()
    return await call(engine, request)
