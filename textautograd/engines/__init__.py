"""Engines: whatever runs a model. A `Request` goes in, a `Reply` comes out."""

from typing import Any

from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.engines.budget import Budget, Metered
from textautograd.engines.cache import Cached, Coalesced, caching
from textautograd.engines.call import call, call_now
from textautograd.engines.default import (
    as_engine,
    default_engine,
    set_default_engine,
    use_engine,
)
from textautograd.engines.factory import engine
from textautograd.engines.http import HTTP
from textautograd.engines.limit import Limited
from textautograd.engines.litellm import LiteLLM
from textautograd.engines.retry import Retrying
from textautograd.engines.scripted import Scripted

__all__ = [
    "HTTP",
    "Budget",
    "Cached",
    "Coalesced",
    "Engine",
    "Limited",
    "LiteLLM",
    "Local",
    "Metered",
    "Reply",
    "Request",
    "Retrying",
    "Scripted",
    "Usage",
    "as_engine",
    "caching",
    "call",
    "call_now",
    "default_engine",
    "engine",
    "set_default_engine",
    "use_engine",
]


def __getattr__(name: str) -> Any:
    if name == "Local":
        from textautograd.engines.local import Local

        return Local
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
