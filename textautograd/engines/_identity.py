"""What tells an engine's replies from another's, where replies are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from textautograd.engines._checks import is_engine
from textautograd.engines.base import Engine
from textautograd.identity import attributes, changed_in, digest, identity

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
_SECRET = re.compile(r"key|token(?!s\b|i[sz])|secret|password|authorization", re.IGNORECASE)


def identity_of(engine: Engine) -> str:
    """What tells this engine's replies from another's in a cache; holds no secrets.

    One that does not say is known by its class and a digest of its attributes: texts, numbers,
    paths, functions, engines, and lists, dicts and dataclasses of them, such as a model's name or a
    temperature. Keys are left out, what `complete` changes (counters, logs), and other objects.
    """
    found = getattr(engine, "identity", None)
    if isinstance(found, str) and found:
        return found
    changing = changed_in(type(engine), "complete", "answer_now")
    own = _told({name: each for name, each in attributes(engine) if name not in changing})
    name = type(engine).__qualname__
    return f"{name}#{digest(own)[:10]}" if own else name


def _told(value: Any) -> Any:
    """What of a value tells engines apart, or `None`."""
    if isinstance(value, (str, int, float, bytes)) and not isinstance(value, Enum):
        return value
    if isinstance(value, (PurePath, Enum)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return list(map(_told, value))
    if isinstance(value, (set, frozenset)):
        return sorted(digest(_told(each)) for each in value)
    if isinstance(value, Mapping):
        told = {name: _told(each) for name, each in value.items() if not _SECRET.search(str(name))}
        return {name: each for name, each in told.items() if each is not None}
    if is_dataclass(value) and not isinstance(value, type):
        return _told({field.name: getattr(value, field.name) for field in fields(value)})
    if is_engine(value):
        return identity_of(value)
    return identity(value) if isinstance(value, _FUNCTIONS) else None
