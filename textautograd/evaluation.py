"""`evaluate`: a module's loss on a dataset, sample by sample, concurrently."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from textautograd.calling import unusable
from textautograd.data.dataset import check_dataset, item
from textautograd.data.example import Example
from textautograd.engines import use_engine
from textautograd.engines.base import Engine, Usage
from textautograd.engines.budget import Budget, charge, has_limits
from textautograd.engines.default import chosen_engine
from textautograd.engines.draws import numbering_draws
from textautograd.errors import BudgetExceeded, Error, RunError, UsageError
from textautograd.grad_mode import no_grad
from textautograd.mapping import map as map_
from textautograd.nn.module import Module, replacements
from textautograd.optim.gate import tell_gate
from textautograd.progress import Progress
from textautograd.variable import TextVariable, overridden

LossFn = Callable[[Any, str], TextVariable]
"""(output, target) → loss."""


@dataclass(frozen=True, slots=True)
class Row:
    """One sample's outcome: `output` and `loss`, or the `error` that there is none for."""

    example: Example
    output: str | None = None
    loss: float | None = None
    error: Exception | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Row, (self.example, self.output, self.loss, _portable(self.error))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A module's outcome on a dataset.

    `loss` and `accuracy` (the share with loss 0) are over the samples that did not fail; `failed`
    counts those that did, and their rows hold the error. `usage` is what was paid for it now.
    """

    rows: list[Row]
    usage: Usage

    @property
    def loss(self) -> float:
        losses = losses_of(self.rows)
        return sum(losses) / len(losses)

    @property
    def accuracy(self) -> float:
        losses = losses_of(self.rows)
        return sum(loss == 0 for loss in losses) / len(losses)

    @property
    def failed(self) -> int:
        return sum(row.error is not None for row in self.rows)

    def __repr__(self) -> str:
        failed = f", {self.failed} failed and not counted" if self.failed else ""
        return (
            f"Evaluation(loss={self.loss:.3f}, accuracy={self.accuracy:.1%}, "
            f"{len(self.rows)} samples{failed}, {self.usage.calls} calls, "
            f"{self.usage.tokens} tokens)"
        )


def evaluate(
    module: Module,
    dataset: Sequence[Example],
    loss_fn: LossFn,
    *,
    executor: Executor | None = None,
    progress: bool = False,
) -> Evaluation:
    """Calls `module(question=example.question, **example.extra)` on every example.

    Nothing is recorded (`no_grad`). Parameters read as the context says, so this can be a gate's
    closure.

    Args:
        executor: where samples run, instead of threads here; module, state, examples and the
            context's engine are sent to it, a `Budget` or `caching` is not. What it spends is
            counted, but no limits are kept.
        progress: a bar, where standard error is a terminal or a notebook.

    Raises:
        UsageError: an empty dataset, an executor within a budget that has limits, or a module or
            loss that cannot be called as said above. The first sample's error, if every sample
            failed.
        RunError: at once: a budget is used up, the call cache's disk is full.
    """
    examples = examples_of(dataset, "evaluate")
    check_calls("evaluate", module, examples, loss_fn)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise UsageError(
            "evaluate: the executor must be one of concurrent.futures, not "
            f"{type(executor).__name__}"
        )
    if executor is not None and has_limits():
        raise UsageError(
            "evaluate: a budget's limits cannot be kept in another process: leave out executor=, "
            "or call it outside of `with Budget(…)`"
        )
    with Budget() as meter, no_grad():
        bar = Progress("evaluate", "sample", len(examples), lambda: meter.spent, visible=progress)
        with bar:
            if executor is None:

                def one(example: Example) -> Row:
                    row = outcome(module, example, loss_fn)
                    bar.update()
                    return row

                try:
                    rows = map_(one, examples)
                except BudgetExceeded as error:
                    note = "with cache= what was paid for is not paid for again"
                    if note not in getattr(error, "__notes__", ()):
                        error.add_note(note)
                    raise
            else:
                state = module.state_dict()
                rows = _rows_of(executor, (module, state), examples, loss_fn, bar)
    tell_gate([(_sample(row.example), row.error or row.loss or 0.0) for row in rows])
    return Evaluation(succeeded(rows), meter.spent)


def _sample(example: Example) -> Hashable:
    """What tells a sample from others; an example may be any object that has its fields."""
    return example.question, example.answer, repr(dict(example.extra))


def losses_of(rows: Iterable[Row]) -> list[float]:
    """Of the samples that did not fail."""
    return [row.loss for row in rows if row.loss is not None]


def outcome(module: Module, example: Example, loss_fn: LossFn) -> Row:
    """One sample's row."""
    try:
        with numbering_draws():
            output = module(question=example.question, **example.extra)
            loss = scored(loss_fn, output, example)
            return Row(example, str(output), loss.item())
    except RunError:
        raise
    except Exception as error:  # whatever it is, it is this sample's outcome
        return Row(example, error=error)


def scored(loss_fn: LossFn, output: Any, example: Example) -> TextVariable:
    """An output's loss, its number known.

    Raises:
        UsageError: the loss function returned something else.
    """
    loss = loss_fn(output, example.answer)
    if not isinstance(loss, TextVariable):
        raise UsageError(
            f"the loss function must return a loss, not {type(loss).__name__}: give "
            "nn.FunctionLoss(fn), whose fn returns (number, how the output should change)"
        )
    loss.item()
    return loss


def examples_of(dataset: Sequence[Example], what: str) -> list[Example]:
    """A dataset's examples.

    Raises:
        UsageError: there are none, or one is no example.
    """
    check_dataset(what, dataset)
    examples = [item(what, dataset, i) for i in range(len(dataset))]
    if not examples:
        raise UsageError(f"{what}: the dataset is empty")
    for example in examples:
        if not all(hasattr(example, name) for name in ("question", "answer", "extra")):
            raise UsageError(f"{what}: a dataset holds Examples, not {type(example).__name__}")
        extra: object = example.extra
        if not isinstance(extra, Mapping) or not all(isinstance(name, str) for name in extra):
            raise UsageError(
                f"{what}: an example's extra is a dict of argument → value, not {extra!r:.80}"
            )
    return examples


def check_calls(
    what: str,
    module: Module,
    examples: Sequence[Example],
    loss_fn: LossFn,
) -> None:
    """Finds out before anything is paid for whether module and loss take what they will be given.

    Raises:
        UsageError: they do not.
    """
    for role, given in (("module", module), ("loss function", loss_fn)):
        if isinstance(given, type):
            raise UsageError(f"{what}: the {role} is a class: pass an instance, {given.__name__}()")
        if not callable(given):
            raise UsageError(f"{what}: the {role} cannot be called: it is {type(given).__name__}")
    for extra in {tuple(example.extra): example.extra for example in examples}.values():
        if "question" in extra:
            raise UsageError(f'{what}: an example has a second "question" in its extra')
        if why := unusable(getattr(module, "forward", module), question="", **extra):
            arguments = ", ".join(f"{name}=…" for name in ("question", *extra))
            raise UsageError(
                f"{what}: {type(module).__name__} is called as ({arguments}), by the names in the "
                f"examples, but {why}"
            )
    if why := unusable(getattr(loss_fn, "forward", loss_fn), "", ""):
        raise UsageError(f"{what}: the loss function is called as (output, target), but {why}")


def succeeded(rows: Iterable[Row]) -> list[Row]:
    """The rows, unless every sample failed: then the first cause is raised."""
    rows = list(rows)
    if all(row.error is not None for row in rows) and rows[0].error is not None:
        if len(rows) > 1:
            rows[0].error.add_note(
                f"  (all {len(rows)} samples failed; this is the first one's cause)"
            )
        raise rows[0].error
    return rows


def _rows_of(
    executor: Executor,
    agent: tuple[Module, dict[str, str]],
    examples: Sequence[Example],
    loss_fn: LossFn,
    bar: Progress,
) -> list[Row]:
    try:
        engine = chosen_engine()
        futures = [
            executor.submit(_remote, *agent, engine, example, loss_fn) for example in examples
        ]
        for future in futures:
            future.add_done_callback(lambda _: bar.update())
        rows = []
        try:
            for future in futures:
                row, usage = future.result()
                charge(usage)
                rows.append(row)
        finally:
            for future in futures:  # unless all are done
                future.cancel()
        return rows
    except Error:
        raise
    except Exception as error:  # what samples raise is in their rows
        raise UsageError(
            f"evaluate: the executor failed with {type(error).__name__}: {error}. Another process "
            "is sent module, example and loss by pickle, which takes no lambda"
        ) from error


def _remote(
    module: Module,
    state: dict[str, str],
    engine: Engine | None,
    example: Example,
    loss_fn: LossFn,
) -> tuple[Row, Usage]:
    with Budget() as meter, no_grad(), nullcontext() if engine is None else use_engine(engine):
        try:
            with overridden(replacements(dict(module.named_parameters()), state)):
                row = outcome(module, example, loss_fn)
        except SystemExit as end:  # it would end the process that waits for this one
            row = Row(example, error=Error(f"SystemExit: {end.code}"))
    return row, meter.spent


def _portable(error: Exception | None) -> Exception | None:
    """The error, or what it says where it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does
        return Error(f"{type(error).__name__}: {error}")
    return error
