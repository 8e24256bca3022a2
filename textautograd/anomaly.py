"""What `detect_anomaly` tells: which call went wrong, in which module, on which data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from reprlib import Repr
from typing import Any

from textautograd.tape import Gradient, Node, place

_within: ContextVar[tuple[Any, ...]] = ContextVar("textautograd_within", default=())


@contextmanager
def entered(module: Any) -> Iterator[None]:
    """What is recorded in here belongs to this module."""
    token = _within.set((*_within.get(), module))
    try:
        yield
    finally:
        _within.reset(token)


def within() -> tuple[Any, ...]:
    """The modules whose calls are running, outermost first; none unless anomalies are detected."""
    return _within.get()


def line(node: Node) -> str:
    """Which call a failure in backward belongs to."""
    title = getattr(node.operation, "title", node.operation.name)
    return f"  in backward through {title}, at {place(node.site)}"


def story(node: Node, gradient: Gradient, replies: Sequence[str]) -> str:
    """The call, its module, the sample, and what the rule was told about it."""
    names = getattr(node.operation, "names", None) or [f"input{i}" for i in range(len(node.inputs))]
    inputs = [f"{n}={_shown(v)}" for n, v in zip(names, node.inputs, strict=True)]
    told = {
        "module": _module(node),
        "inputs": ", ".join(inputs),
        "output": _shown(node.output),
        "feedback on the output": _shown(gradient),
        "replies to the rule": " | ".join(map(_shown, replies)),
    }
    return "\n".join([line(node), *(f"    {what}: {it}" for what, it in told.items() if it)])


def _module(node: Node) -> str:
    if node.within:
        root, module = node.within[0], node.within[-1]
        kind = type(module).__name__
        for name, part in root.named_modules():
            if part is module and name:
                return f"{name}, the {kind} of {type(root).__name__}"
        return kind
    names = (getattr(predecessor, "name", None) or "" for predecessor in node.predecessors)
    return next((name.rpartition(".")[0] for name in names if "." in name), "")


_short = Repr()
_short.maxstring = _short.maxother = 200


def _shown(value: Any) -> str:
    return _short.repr(str(value) if isinstance(value, str) else value)
