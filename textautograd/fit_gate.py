"""The gate of `fit`: it knows the samples, so it need not finish a candidate that has lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from textautograd.cancelling import check_cancelled
from textautograd.data.example import Example
from textautograd.errors import TransientError, UsageError
from textautograd.evaluation import LossFn, Row, losses_of, outcome, succeeded
from textautograd.grad_mode import no_grad
from textautograd.mapping import map as map_
from textautograd.nn.module import Module
from textautograd.optim.gate import State, Verdict, more_failed
from textautograd.variable import overridden


class FitGate:
    """Compares states sample by sample.

    Losses are compared over the samples that failed in neither state. A candidate wins if it has a
    lower loss and no more failures than the old state, or an equal loss and fewer failures. One
    that cannot win any more, as losses are not negative, is stopped: the decision is the same as
    after evaluating it in full. `saved` counts the samples that this left out. With `in_full` none
    is stopped: then each has its loss.
    """

    def __init__(
        self,
        module: Module,
        examples: Sequence[Example],
        loss_fn: LossFn,
        workers: int,
        in_full: bool = False,
    ) -> None:
        self.module = module
        self.examples = list(examples)
        self.loss_fn = loss_fn
        self.workers = workers
        self.in_full = in_full
        self.saved = 0
        self._old: list[Row] | None = None

    def __call__(self, old: State, candidates: Sequence[State]) -> Verdict:
        rows_of_old = self.current(old)
        raced = map_(lambda state: self._race(state, rows_of_old), candidates)
        losses: list[float | str | TransientError] = []
        winners: dict[int, tuple[float, int]] = {}
        for i, rows in enumerate(raced):
            done = [row for row in rows if row is not None]
            left = len(rows) - len(done)
            self.saved += left
            before, after, failed_before, failed_after = compared(rows_of_old, rows)
            why = more_failed([row.error for row in done if row.error], failed_before)
            if isinstance(why, TransientError) and _is_too_high(rows_of_old, rows):
                why = str(why)  # whatever those samples would have brought
            if left and not isinstance(why, TransientError):
                why = f"could not win after {len(done)} of {len(rows)} samples"
            found = losses_of(done)
            losses.append(why or sum(found) / len(found))
            if why is None and wins(before, after, failed_before, failed_after):
                winners[i] = (after - before, failed_after)
        best = min(winners, key=winners.__getitem__, default=None)
        of_old = losses_of(rows_of_old)
        if best is not None:
            self._old = [row for row in raced[best] if row is not None]
        return Verdict(sum(of_old) / len(of_old), losses, best)

    def current(self, old: State | None = None) -> list[Row]:
        """The rows of the state in place; evaluated on first use.

        Raises:
            The first sample's error, if every sample failed.
        """
        if self._old is None:
            with no_grad(), overridden(old or {}):
                self._old = succeeded(map_(self._outcome, self.examples, max_workers=self.workers))
        return self._old

    def _race(self, state: State, old: Sequence[Row]) -> list[Row | None]:
        """A sample is left out if the candidate has lost by those that are `workers` places and
        more ahead of it. They have ended by then, so what is evaluated depends on no timing."""
        rows: list[Row | None] = [None] * len(old)
        ended = [threading.Event() for _ in old]

        def one(index: int) -> None:
            known = max(index - self.workers + 1, 0)
            try:
                for sample in ended[:known]:
                    while not sample.wait(0.1):  # a cancelled sample may never begin
                        check_cancelled()
                if self.in_full or not has_lost(old, [*rows[:known], *[None] * (len(old) - known)]):
                    rows[index] = self._outcome(self.examples[index])
            finally:
                ended[index].set()

        with no_grad(), overridden(state):
            map_(one, range(len(old)), max_workers=self.workers)
        return rows

    def _outcome(self, example: Example) -> Row:
        row = outcome(self.module, example, self.loss_fn)
        if row.loss is not None and not row.loss >= 0:
            raise UsageError(f"a loss must be a number of at least 0, and this one is {row.loss}")
        return row


def wins(before: float, after: float, failed_before: int, failed_after: int) -> bool:
    """Whether a candidate is better in loss or failures, and in neither worse."""
    no_worse = after <= before and failed_after <= failed_before
    return no_worse and (after < before or failed_after < failed_before)


def compared(old: Sequence[Row], new: Sequence[Row | None]) -> tuple[float, float, int, int]:
    """Summed losses over the samples that succeeded in both, before and after, and failures."""
    both = [
        (o.loss, n.loss)
        for o, n in zip(old, new, strict=True)
        if o.loss is not None and n is not None and n.loss is not None
    ]
    return (
        sum(o for o, _ in both),
        sum(n for _, n in both),
        sum(o.error is not None for o in old),
        sum(n is not None and n.error is not None for n in new),
    )


def has_lost(old: Sequence[Row], new: Sequence[Row | None]) -> bool:
    """Whether a candidate cannot win whatever its unfinished samples (`None`) bring."""
    _, _, failed_before, failed_after = compared(old, new)
    return failed_after > failed_before or _is_too_high(old, new)


def _is_too_high(old: Sequence[Row], new: Sequence[Row | None]) -> bool:
    """Whether the losses of finished samples alone leave nothing to win by."""
    _, after, failed_before, _ = compared(old, new)
    most = sum(losses_of(old))
    return after > most or (after == most and failed_before == 0)
