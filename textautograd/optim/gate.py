"""The update gate: a closure, evaluated with the old state and with each candidate, at once."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from textautograd.errors import EngineError, ReplyError, RunError, TransientError, UsageError
from textautograd.grad_mode import no_grad
from textautograd.mapping import map as map_
from textautograd.variable import TextVariable, overridden

State = Mapping[TextVariable, TextVariable]
Told = tuple[Hashable, float | Exception]
"""A sample and its loss, or why it failed."""


@dataclass(slots=True)
class Verdict:
    """What a gate found: the old state's loss, each candidate's loss or why there is none, and the
    index of the candidate to keep, if one is better than the old state. An error that may not come
    again says nothing about its candidate, which can be proposed anew."""

    before: float
    losses: list[float | str | TransientError]
    best: int | None


def is_verdict(found: Any, count: int) -> bool:
    """Whether it is a verdict about so many candidates; the best has a loss."""

    def is_loss(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value

    if not isinstance(found, Verdict) or not is_loss(found.before):
        return False
    losses = found.losses
    if not isinstance(losses, list) or len(losses) != count:
        return False
    if not all(
        is_loss(each) or (isinstance(each, str | TransientError) and str(each)) for each in losses
    ):
        return False
    best = found.best
    return best is None or (type(best) is int and 0 <= best < count and is_loss(losses[best]))


IS_ASYNC = "the closure is async, and is called as a plain function: write it with `def`"

Gate = Callable[[State, Sequence[State]], Verdict]


def closure_gate(closure: Callable[[], float]) -> Gate:
    """Evaluates `closure` per state, concurrently and in full; the best must be strictly lower.

    Each runs under `no_grad` in a thread of its own, with a copy of the caller's context in which
    every parameter reads as that state's text. A candidate that a model's failure makes impossible
    to evaluate is out, and so is one with more samples that failed in an `evaluate` than the old
    state; any other error is raised. Where the closure returns the mean loss of what it evaluated,
    and other samples failed than with the old state, the losses of those that failed in neither
    decide: the means are not about the same samples.
    """

    def gate(old: State, candidates: Sequence[State]) -> Verdict:
        states = [old, *candidates]
        told: list[list[Told]] = [[] for _ in states]
        gains: dict[int, tuple[float, float]] = {}

        def work(index: int) -> float | EngineError | ReplyError:
            _told.set(told[index])
            try:
                with no_grad(), overridden(states[index]):
                    return loss_of(closure())
            except (EngineError, ReplyError) as error:
                if index == 0 or isinstance(error, RunError):
                    raise
                return error

        results: list[Any] = map_(work, range(len(states)), max_workers=len(states))
        for i, result in enumerate(results):
            if why := more_failed(failures(told[i]), len(failures(told[0]))):
                results[i] = why
            elif isinstance(result, Exception):
                results[i] = result if isinstance(result, TransientError) else described(result)
            else:
                was, now = results[0], result
                if _which(told[0]) != _which(told[i]) and _is_mean(was, told[0]):
                    both = _in_both(told[0], told[i])
                    if both is None:
                        results[i] = "not comparable with the old state: other samples failed"
                        continue
                    was, now = both
                    results[i] = f"{now:g}, and {was:g} before, where neither failed"
                if now < was:
                    results[i] = result
                    gains[i - 1] = (now - was, now)
        before, *losses = results
        return Verdict(before, losses, min(gains, key=gains.__getitem__, default=None))

    return gate


def described(error: Exception) -> str:
    """An error by its kind and what it says."""
    return f"{type(error).__name__}: {error}"


def failures(told: Iterable[Told]) -> list[Exception]:
    return [found for _, found in told if isinstance(found, Exception)]


def more_failed(failed: Sequence[Exception], of_old: int) -> str | TransientError | None:
    """What is said of a candidate with more failures than the old state, if it has more. It is
    unknown how good it is where those that may not come again make the difference."""
    passing = [error for error in failed if isinstance(error, TransientError)]
    if len(failed) <= of_old:
        return None
    said = f"{len(failed)} samples failed, {of_old} with the old state"
    if len(failed) - len(passing) > of_old:
        return said
    return TransientError(f"{said}; one with {described(passing[0])}")


def _which(told: Sequence[Told]) -> Counter[Hashable]:
    """The samples that failed, and how often: evaluations at once end in any order."""
    return Counter(sample for sample, found in told if isinstance(found, Exception))


def _is_mean(loss: float, told: Sequence[Told]) -> bool:
    """Whether a closure returned what was found here, and no number of its own."""
    losses = [found for _, found in told if not isinstance(found, Exception)]
    return bool(losses) and math.isclose(loss, math.fsum(losses) / len(losses))


def _in_both(old: Sequence[Told], new: Sequence[Told]) -> tuple[float, float] | None:
    """The mean losses over the samples that never failed in either, if there are any."""
    failed = {*_which(old), *_which(new)}
    losses = []
    for told in (old, new):
        whole = [(sample, found) for sample, found in told if sample not in failed]
        losses.append([found for _, found in whole if not isinstance(found, Exception)])
    if Counter(s for s, _ in old) != Counter(s for s, _ in new) or not losses[0]:
        return None  # nothing that one could compare
    return math.fsum(losses[0]) / len(losses[0]), math.fsum(losses[1]) / len(losses[1])


_told: ContextVar[list[Told] | None] = ContextVar("textautograd_told", default=None)


def tell_gate(told: Sequence[Told]) -> None:
    """The loss of each sample, or why it failed: to the gate whose closure runs in this context, if
    any."""
    found = _told.get()
    if found is not None:
        found.extend(told)


def loss_of(value: Any) -> float:
    """A closure's result as a float.

    Raises:
        UsageError: if it is no number, or not a number, or larger than a float.
    """
    if isinstance(value, TextVariable):
        value = value.item()
    if inspect.iscoroutine(value):
        value.close()
        raise UsageError(IS_ASYNC)
    if isinstance(loss := getattr(value, "loss", None), (int, float)):
        raise UsageError(
            f"the closure must return a loss, a number, and not the {type(value).__name__}: return "
            f"its .loss, which is {loss:g}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise UsageError(f"the closure must return a loss, a number; it returned {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"the closure must return a loss, a number: {error}") from None
