"""Intervals and tests for what a few runs on a few questions show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 10_000
Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds between which 1 - `alpha` of the bootstrap's draws lie."""

    mean: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def interval(values: Sequence[Sequence[float]], alpha: float = 0.05) -> Interval:
    """Of the mean of `values[seed][question]`, by the bootstrap over seeds and over questions.

    What a seed was not asked is not a number. Both are drawn anew, with replacement, the same
    questions for all seeds drawn. For a comparison pass differences, which pairs what is compared
    by seed and by question. With a single seed there is nothing to draw: it is about the questions
    alone.
    """
    return interval_of_mean([values], alpha)


def interval_of_mean(tasks: Sequence[Sequence[Sequence[float]]], alpha: float = 0.05) -> Interval:
    """Of the mean over tasks of the mean in each, which `interval` is about: seeds and questions
    are drawn anew in each task by itself, and the tasks are those that there are."""
    rng = np.random.default_rng(0)
    found = [np.asarray(values, dtype=float) for values in tasks]
    means = np.mean([_drawn(values, rng) for values in found], axis=0).round(12)
    low, high = np.nanquantile(means, [alpha / 2, 1 - alpha / 2])
    return Interval(float(np.mean([np.nanmean(v) for v in found])), float(low), float(high))


def _drawn(found: Values, rng: np.random.Generator) -> Values:
    """The means of `DRAWS` draws."""
    seeds, questions = found.shape
    picked = rng.integers(seeds, size=(DRAWS, seeds))
    # the mean over the seeds drawn, as weights on seeds; then the same for questions
    weights = np.zeros((DRAWS, seeds))
    np.add.at(weights, (np.arange(DRAWS)[:, None], picked), 1 / seeds)
    chosen = rng.integers(questions, size=(DRAWS, questions))

    def drawn(cells: Values) -> Values:
        return np.take_along_axis(weights @ cells, chosen, axis=1).sum(axis=1)

    asked = drawn(~np.isnan(found) * 1.0)
    means: Values = drawn(np.nan_to_num(found)) / np.where(asked > 0, asked, np.nan)
    return means


def wilson(mean: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); shares of a case count as such."""
    z = 1.959964
    middle = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_test(values: Sequence[Sequence[float]]) -> float:
    """The two-sided p of `values[seed][question]`, differences, by the exact sign test over
    questions, each summed over the seeds that were asked it. With one seed it is McNemar's exact
    test."""
    by_question = np.nansum(np.asarray(values, dtype=float), axis=0)
    up, down = int((by_question > 0).sum()), int((by_question < 0).sum())
    n = up + down
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(min(up, down) + 1)) / 2**n)


def holm(found: Sequence[float], alpha: float = 0.05) -> float:
    """The largest p that holds among all that were `found` (Holm, 1979); -1 if none does."""
    last = -1.0
    for i, p in enumerate(sorted(found)):
        if p > alpha / (len(found) - i):
            break
        last = p
    return last
