"""`ask`: a call that a coroutine of the framework makes, here or on the loop."""

from contextvars import ContextVar

from textautograd.dispatch import on_loop
from textautograd.engines.base import Engine, Reply, Request
from textautograd.engines.call import call, call_now
from textautograd.engines.draws import numbered
from textautograd.loop import on_the_loop

listening: ContextVar[list[str] | None] = ContextVar("textautograd_listening", default=None)
"""Where a context keeps the text of every reply that it gets."""


async def ask(engine: Engine, request: Request) -> Reply:
    """The engine's reply: at once and in this thread where the engine can, else on the loop.

    Raises:
        EngineError: the call brought no usable reply.
        BudgetExceeded: before a call that would pass a budget of this context.
    """
    request = numbered(engine, request)
    if not on_the_loop():
        reply = call_now(engine, request)
        if reply is not None:
            return _heard(reply)
        await on_loop()
    return _heard(await call(engine, request))


def _heard(reply: Reply) -> Reply:
    heard = listening.get()
    if heard is not None:
        heard.append(reply.text)
    return reply
