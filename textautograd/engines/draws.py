"""Draws: within a sample, the same request at a temperature asks for another reply each time.

A call cache gives one reply for one request. An agent that votes over several draws must not get
one of them five times because there is a cache, nor new ones because a run was resumed: so the
draws of a sample are numbered, and the number is part of the cache's key (`Request.sample`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from itertools import count

from textautograd.engines.base import Engine, Request
from textautograd.engines.cache import key_of

_draws: ContextVar[dict[tuple[int, str], Iterator[int]] | None]
_draws = ContextVar("textautograd_draws", default=None)


@contextmanager
def numbering_draws(anew: bool = True) -> Iterator[None]:
    """Draws made in this context are numbered from 0; unless `anew`, those around go on."""
    if not anew and _draws.get() is not None:
        yield
        return
    token = _draws.set({})
    try:
        yield
    finally:
        _draws.reset(token)


def numbered(engine: Engine, request: Request) -> Request:
    """The request with the number of its draw; at temperature 0 there is but one."""
    draws = _draws.get()
    if draws is None or request.temperature == 0:
        return request
    number = next(draws.setdefault((id(engine), key_of("", request)), count()))
    return replace(request, sample=request.sample + number) if number else request
