"""The update gate: a closure, evaluated with the old state and with each candidate, at once."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from textautograd.errors import EngineError, ReplyError, UsageError
from textautograd.grad_mode import no_grad
from textautograd.variable import TextVariable, overridden

State = Mapping[TextVariable, TextVariable]


@dataclass(slots=True)
class Verdict:
    """What a gate found: the old state's loss, each candidate's loss or why there is none, and the
    index of the candidate to keep, if one is better than the old state."""

    before: float
    losses: list[float | str]
    best: int | None


Gate = Callable[[State, Sequence[State]], Verdict]


def closure_gate(closure: Callable[[], float]) -> Gate:
    """Evaluates `closure` per state, concurrently and in full; the best must be strictly lower.

    Each runs under `no_grad` in a thread of its own, with a copy of the caller's context in which
    every parameter reads as that state's text. A candidate that a model's failure makes impossible
    to evaluate is out, and so is one with more samples that failed in an `evaluate` than the old
    state, whose loss is not about the same samples; any other error is raised.
    """

    def gate(old: State, candidates: Sequence[State]) -> Verdict:
        states = [old, *candidates]
        results: list[Any] = [None] * len(states)
        failed: list[list[int]] = [[] for _ in states]

        def work(index: int) -> None:
            _failed.set(failed[index])
            try:
                with no_grad(), overridden(states[index]):
                    results[index] = loss_of(closure())
            except BaseException as error:  # the caller raises it
                results[index] = error

        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(work, i), daemon=True, name="gate"
            )
            for i in range(len(states))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, result in enumerate(results):
            if isinstance(result, BaseException):
                if i == 0 or not isinstance(result, (EngineError, ReplyError)):
                    raise result
                results[i] = f"{type(result).__name__}: {result}"
            elif sum(failed[i]) > sum(failed[0]):
                results[i] = f"{sum(failed[i])} samples failed, {sum(failed[0])} with the old state"
        before, *losses = results
        lower = [i for i, loss in enumerate(losses) if isinstance(loss, float) and loss < before]
        return Verdict(before, losses, min(lower, key=losses.__getitem__, default=None))

    return gate


_failed: ContextVar[list[int] | None] = ContextVar("textautograd_failed", default=None)


def tell_gate(failed: int) -> None:
    """How many samples have no loss: to the gate whose closure runs in this context, if any."""
    found = _failed.get()
    if found is not None:
        found.append(failed)


def loss_of(value: Any) -> float:
    """A closure's result as a float.

    Raises:
        UsageError: if it is no number, or not a number, or larger than a float.
    """
    if isinstance(value, TextVariable):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise UsageError(f"the closure must return a loss, a number; it returned {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"the closure must return a loss, a number: {error}") from None
