"""`fit`: the training loop, with a gate, checkpoints, a budget and progress."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from textwrap import shorten
from typing import Any

from textautograd.backward import Failure, as_rule, backward
from textautograd.checking import quantity, whole
from textautograd.data.example import Example
from textautograd.data.loader import DataLoader
from textautograd.engines import as_engine
from textautograd.engines.base import Engine, Usage
from textautograd.engines.budget import Budget
from textautograd.engines.cache import caching
from textautograd.errors import BudgetExceeded, RunError, StateError, UsageError
from textautograd.evaluation import LossFn, check_calls, examples_of, scored
from textautograd.files import as_path
from textautograd.fit_gate import FitGate
from textautograd.functional import mean
from textautograd.grad_mode import is_grad_enabled
from textautograd.gradient import Gradient
from textautograd.locking import locked
from textautograd.mapping import map as map_
from textautograd.nn.module import Module, check_state
from textautograd.optim.optimizer import NO_GRADIENT, Optimizer, StepResult
from textautograd.progress import Progress
from textautograd.rules import Rule
from textautograd.run_dir import RunDir, damaged
from textautograd.settings import digest_of, engines_of, settings_of
from textautograd.tape import Walk
from textautograd.variable import TextVariable


@dataclass(slots=True)
class History:
    """What `fit` did.

    `metrics` holds one dict per step, with the reason `why` where it changed nothing; `states`
    every state that was tried, with its loss; `state` the best one, which the module is left in;
    `usage` what was paid for in this call of `fit`; `stopped` why the run ended early, if it did.
    """

    metrics: list[dict[str, Any]] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)
    state: dict[str, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    stopped: str | None = None

    @property
    def accepted(self) -> int:
        """How many steps changed the module."""
        return sum(step["accepted"] for step in self.metrics)

    def __repr__(self) -> str:
        first = next((m["before"] for m in self.metrics if m["before"] is not None), None)
        last = next((m["after"] for m in reversed(self.metrics) if m["after"] is not None), None)
        loss = f", loss {first:g} → {last:g}" if first is not None and last is not None else ""
        stopped = f", stopped: {self.stopped}" if self.stopped else ""
        if self.metrics and self.metrics[-1]["why"]:
            stopped = f", last step: {shorten(self.metrics[-1]['why'], 120)}{stopped}"
        return (
            f"History({len(self.metrics)} steps, {self.accepted} accepted{loss}, "
            f"{self.usage.calls} calls, {self.usage.tokens} tokens{stopped})"
        )


def fit(
    module: Module,
    train: Sequence[Example],
    loss_fn: LossFn,
    optimizer: Optimizer,
    *,
    val: Sequence[Example] | None = None,
    steps: int,
    batch_size: int,
    run_dir: str | os.PathLike[str] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    progress: bool = True,
    rule: Rule | None = None,
    engine: Engine | str | None = None,
    max_failed: float = 0.5,
) -> History:
    """Trains a module: forward on a batch, backward, and a gated step, `steps` times.

    Args:
        val: what the gate compares states on; `train` if it is not given. A candidate that cannot
            win any more is not evaluated further. Losses must not be negative.
        batch_size: samples per step, drawn without repetition in an order that `seed` fixes.
        run_dir: where checkpoints, metrics.jsonl, the states that were tried, the best one and all
            replies are kept; calling `fit` again with the same arguments resumes there.
        steps: in all: a run that has had as many already is returned as it is.
        budget: when it is used up, the best state so far is kept and returned.
        progress: a bar, where standard error is a terminal or a notebook.
        rule: of the backward pass; by default the optimizer's.
        engine: as in `TextVariable.backward`.
        max_failed: the largest share of a batch that may fail (in forward, loss, or a rule that
            feedback has to pass) for a step to be taken of what is left; above it, as where every
            rule fails, nothing is rewritten, `why` says so and the next step goes on. By default
            half: if most of a batch fails, that tells of the provider and not of the samples, and
            what is left is too few to learn from. It is none of the settings that make a run: it
            may be another when the run is resumed.

    A step that is cut short, by an error or Ctrl-C, leaves module and optimizer as they were
    before it.

    Raises:
        UsageError: arguments that cannot work, or a `run_dir` that holds another run: other code
            of agent, loss or rule (see `textautograd.identity`), other settings, engines or data.
        RunError: at once, what cannot get better, such as a key that is refused or a full disk: the
            module has the best state, and what was paid for is kept in `run_dir`. The first
            sample's error, if all samples of a batch fail in forward or loss, or all of the gate.
    """
    whole("fit: steps", steps, 0)
    share = quantity(max_failed)
    if share is None or share > 1:
        raise UsageError(f"fit: max_failed must be a share from 0 to 1, not {max_failed!r:.80}")
    given: dict[str, tuple[object, type]] = {
        "module": (module, Module),
        "optimizer": (optimizer, Optimizer),
    }
    given |= {} if budget is None else {"budget": (budget, Budget)}
    for what, (thing, kind) in given.items():
        if not isinstance(thing, kind):
            raise UsageError(f"fit: {what} must be a {kind.__name__}, not {type(thing).__name__}")
    train = examples_of(train, "fit, train")
    gate_set = train if val is None else examples_of(val, "fit, val")
    check_calls("fit", module, [*train, *gate_set], loss_fn)
    _check_can_learn(module, optimizer)
    rule = as_rule(optimizer.rule if rule is None else rule)
    optimizer.check_rule(rule)
    loader = DataLoader(train, batch_size, shuffle=True, seed=seed)
    answering = None if engine is None else as_engine(engine)
    history = History(state=module.state_dict())
    with ExitStack() as stack:
        meter = stack.enter_context(Budget())
        directory = None
        if run_dir is not None:
            settings = settings_of(module, loss_fn, optimizer, rule, answering)
            settings |= {"batch_size": batch_size, "seed": seed}
            settings |= {"train": digest_of(train), "val": digest_of(gate_set)}
            path = as_path(run_dir, "the run directory")
            stack.enter_context(locked(path))
            directory = RunDir(path, settings, module.state_dict())
            stack.enter_context(caching(directory.cache))
            _resume(directory, history, module, optimizer)
        if budget is not None:
            stack.enter_context(budget)
        bar = Progress("fit", "step", steps, lambda: meter.spent, visible=progress)
        stack.enter_context(bar).update(len(history.metrics))
        gate = FitGate(module, gate_set, loss_fn, _workers(module), optimizer.needs_losses)
        finished = history.state, optimizer.state_dict()
        unseen = not history.metrics  # no batch yet in which every sample had a tape
        try:
            for step in range(len(history.metrics), steps):
                optimizer.zero_grad()
                learnt = _Learnt()
                if optimizer.needs_gradients:
                    batch = _batch(loader, step)
                    learnt = _learn(
                        module, batch, loss_fn, optimizer, rule, answering, max_failed, unseen
                    )
                    unseen = unseen and bool(learnt.errors)
                    if learnt.unreached:
                        warnings.warn(_UNREACHED.format(", ".join(learnt.unreached)), stacklevel=2)
                saved = gate.saved
                result = optimizer.step_with(gate)
                found = _metrics(step, learnt, result)
                history.metrics.append(found | {"gate_samples_saved": gate.saved - saved})
                history.states += [
                    {"step": step, "state": c.state, "loss": c.loss, "error": c.error}
                    for c in result.candidates
                ]
                history.state = module.state_dict()
                if directory is not None:
                    directory.save(_checkpoint(history, optimizer))
                finished = history.state, optimizer.state_dict()
                loss_now = "-" if result.after is None else f"{result.after:.3f}"
                bar.update(loss=loss_now, accepted=str(history.accepted))
        except BaseException as error:  # the next call of `fit` takes an unfinished step anew
            module.load_state_dict(finished[0])
            optimizer.load_state_dict(finished[1])
            if not isinstance(error, BudgetExceeded):
                raise
            history.stopped = str(error)
        history.usage = meter.spent
    return history


@dataclass(slots=True)
class _Learnt:
    """What forward and backward brought: the mean loss, those of the samples that have one, what
    happened to the others and to rules, gradients to be read, parameters that no sample's tape
    leads to, and why nothing is to be rewritten, if so."""

    value: float | None = None
    losses: list[TextVariable] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    gradients: dict[str, list[str]] = field(default_factory=dict)
    unreached: list[str] = field(default_factory=list)
    why: str | None = None


def _learn(
    module: Module,
    batch: Sequence[Example],
    loss_fn: LossFn,
    optimizer: Optimizer,
    rule: Rule,
    engine: Engine | None,
    max_failed: float,
    unseen: bool,
) -> _Learnt:
    """Forward and backward on a batch; leaves no gradient where too much of it failed."""
    losses, errors = _forward(module, batch, loss_fn)
    failures: list[Failure] = []
    loss = mean(losses)
    value, lost = loss.item(), len(errors)
    unreached = [] if errors or not unseen else _unreached(optimizer, losses)
    if loss.requires_grad and lost / len(batch) <= max_failed:
        tapes = [Walk([(x, Gradient())]) for x in losses]
        failures = backward([(loss, Gradient())], rule=rule, engine=engine, all_may_fail=True)
        lost += _passed_by(tapes, failures)
    learnt = _Learnt(value, losses, errors, failures, _shown(optimizer), unreached)
    if lost / len(batch) > max_failed:  # 29 / 100 is .29, .29 * 100 is below 29
        first = [*errors, *map(str, failures)][0]
        learnt.why = f"{lost} of {len(batch)} samples failed, and max_failed is {max_failed:g}"
        learnt.why += f": {first}"
        optimizer.zero_grad()  # a step without gradients asks for no rewrite
    return learnt


def _metrics(step: int, learnt: _Learnt, result: StepResult) -> dict[str, Any]:
    wrong = sum(x.item() > 0 for x in learnt.losses)
    why = _why(result, wrong, learnt.failures) if learnt.losses else result.why
    return {
        "step": step,
        "loss": learnt.value,
        "wrong": wrong,
        "samples": len(learnt.losses),
        "failed": [*learnt.errors, *map(str, learnt.failures)],
        "gradients": learnt.gradients,
        "before": result.before,
        "after": result.after,
        "accepted": result.accepted,
        "changes": {name: list(pair) for name, pair in result.changes.items()},
        "problems": [c.problems for c in result.candidates if c.problems],
        "why": learnt.why or why,
    }


def _forward(
    module: Module, batch: Sequence[Example], loss_fn: LossFn
) -> tuple[list[TextVariable], list[str]]:
    """The losses of a batch, and what happened to the samples that have none."""
    losses: list[TextVariable] = []
    errors: list[Exception] = []
    for found in map_(lambda example: _loss(module, example, loss_fn), batch):
        if isinstance(found, Exception):
            errors.append(found)
        else:
            losses.append(found)
    if not losses:
        raise errors[0]
    return losses, [f"{type(error).__name__}: {error}" for error in errors]


def _passed_by(tapes: Sequence[Walk], failures: Sequence[Failure]) -> int:
    """How many samples' feedback came to a node whose rule failed."""
    failed = {failure.node for failure in failures}
    return sum(any(tape.node(x) in failed for x in tape) for tape in tapes)


_UNREACHED = (
    "fit: backward reaches {} from no sample of a batch: they do not use it, or use what "
    "was read, as by str(x), x.data or an f-string, and is off the tape: pass variables on as they "
    "are, or join them by ta.cat and ta.fill"
)


def _unreached(optimizer: Optimizer, losses: Sequence[TextVariable]) -> list[str]:
    """The parameters that should learn, and that no loss was made with."""
    walk = Walk([(x, Gradient()) for x in losses])
    pairs = zip(optimizer.names, optimizer.params, strict=True)
    return [name for name, param in pairs if param.requires_grad and param not in walk]


def _shown(optimizer: Optimizer) -> dict[str, list[str]]:
    """The first feedbacks of each parameter's gradient, to be read."""
    pairs = zip(optimizer.names, optimizer.params, strict=True)
    return {name: [f.text for f in islice(p.grad, 4)] for name, p in pairs if p.grad}


def _loss(module: Module, example: Example, loss_fn: LossFn) -> TextVariable | Exception:
    try:
        return scored(loss_fn, module(question=example.question, **example.extra), example)
    except RunError:
        raise
    except Exception as error:  # whatever it is, it is this sample's outcome
        return error


def _batch(loader: DataLoader[Example], step: int) -> list[Example]:
    loader.epoch, index = divmod(step, len(loader))
    return list(loader)[index]


def _workers(module: Module) -> int:
    """How many samples to have under way: as many as the slowest engine takes at once."""
    return min(
        (getattr(engine, "max_concurrency", 64) for engine in engines_of(module)), default=64
    )


def _check_can_learn(module: Module, optimizer: Optimizer) -> None:
    own = {id(parameter) for parameter in module.parameters()}
    pairs = list(zip(optimizer.names, optimizer.params, strict=True))
    foreign = [name for name, parameter in pairs if id(parameter) not in own]
    if foreign:
        raise UsageError(
            f"fit: the optimizer's {', '.join(foreign)} are not parameters of this module: make it "
            "with module.parameters(), after the module's parts are in place"
        )
    if not any(parameter.requires_grad for _, parameter in pairs):
        raise UsageError("fit: no parameter of the optimizer has requires_grad: nothing can learn")
    if not is_grad_enabled():
        raise UsageError("fit: it is called under no_grad, where there are no gradients")


def _why(result: StepResult, wrong: int, failures: Sequence[object]) -> str | None:
    """Why a step changed nothing, if it did not."""
    if result.why != NO_GRADIENT:
        return result.why
    if not wrong:
        return f"{NO_GRADIENT}: no answer was wrong"
    why = str(failures[0]) if failures else "the feedback is empty, or reaches no parameter"
    return f"{NO_GRADIENT}: {why}"


def _checkpoint(history: History, optimizer: Optimizer) -> dict[str, Any]:
    return {
        "state": history.state,
        "optimizer": optimizer.state_dict(),
        "metrics": history.metrics,
        "states": history.states,
    }


def _resume(directory: RunDir, history: History, module: Module, optimizer: Optimizer) -> None:
    found = directory.left
    if found is None:
        return
    file = directory.path / "checkpoint.json"
    steps = found["optimizer"].get("steps")
    if isinstance(steps, int) and steps < len(found["metrics"]):
        raise UsageError(damaged(file, "its optimizer took fewer steps than it lists"))
    try:
        check_state(dict(module.named_parameters()), found["state"])
        optimizer.load_state_dict(found["optimizer"])
    except StateError as error:
        raise UsageError(damaged(file, error)) from error
    directory.save(found)  # what is missing or damaged beside the checkpoint is here again
    module.load_state_dict(found["state"])
    history.state = module.state_dict()
    history.metrics = found["metrics"]
    history.states = found["states"]
