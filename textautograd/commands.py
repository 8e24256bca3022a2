"""What the commands do: `demo`, `train`, `eval`."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from textautograd import evaluation, loop, tasks
from textautograd.engines import Budget, caching, engine
from textautograd.engines.base import Engine, Usage
from textautograd.errors import BudgetExceeded, StateError, UsageError
from textautograd.files import as_path, read_json, write_whole
from textautograd.locking import locked
from textautograd.nn import ExactMatchLoss
from textautograd.optim import SGD
from textautograd.run_dir import WRITTEN
from textautograd.terminal import harmless, tell
from textautograd.training import History, fit

_LAST_REPLIES = 10  # seconds to wait for them after a signal


def demo(arguments: Namespace) -> None:
    """`textautograd demo`."""
    from textautograd.demo import run

    run(arguments.seed)


def train(arguments: Namespace) -> None:
    """`textautograd train`."""
    started = time.time()
    out = as_path(arguments.out, "--out")
    if arguments.cache is not None:
        cache = os.path.realpath(as_path(arguments.cache, "--cache"))
        if cache in {os.path.realpath(out / name) for name in ("result.json", "lock", *WRITTEN)}:
            raise UsageError(f"--cache {arguments.cache} is a file of the run itself: give another")
    if 0 in arguments.sizes:
        raise UsageError("train needs at least one example in each of the three --sizes")
    task, model = _task_and_model(arguments)
    rewriter = _rewriter(arguments) or model
    agent = task.agent.to(model)
    optimizer = SGD(
        agent.parameters(),
        engine=rewriter,
        examples=arguments.examples,
        candidates=arguments.candidates,
        seed=arguments.seed,
    )
    loss_fn = ExactMatchLoss()
    initial = agent.state_dict()
    learn = partial(
        fit,
        agent,
        task.train,
        loss_fn,
        optimizer,
        val=task.val,
        batch_size=arguments.batch_size,
        run_dir=out,
        seed=arguments.seed,
        engine=rewriter,
        max_failed=arguments.max_failed,
    )
    limits = (arguments.budget_calls, arguments.budget_tokens, arguments.budget_usd)
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        if (out / "result.json").is_dir():
            raise UsageError(
                f"{out / 'result.json'} is a directory: move it, or choose another --out"
            )
        learn(steps=0, progress=False)  # what cannot work is refused unpaid
        agent.load_state_dict(initial)
        budget = stack.enter_context(Budget(*limits))
        stack.enter_context(caching(out / "calls.sqlite"))
        stack.enter_context(_finishing(budget))
        try:
            before = evaluation.evaluate(agent, task.test, loss_fn, progress=True)
        except BudgetExceeded as error:
            raise BudgetExceeded(
                f"the budget ran out at the held-out questions, before training ({error}). What "
                "was paid for is kept: the same command with a larger budget goes on there"
            ) from error
        print(f"held-out before: {_scores(before)}", flush=True)
        history = learn(steps=arguments.steps, budget=_rest(budget, before.usage))
        _show(history.metrics)
        try:
            after = evaluation.evaluate(agent, task.test, loss_fn, progress=True)
        except BudgetExceeded:
            after = None
        result = _result(arguments, task, before, after, history)
        try:
            write_whole(out / "result.json", (json.dumps(result, indent=1) + "\n").encode())
        except OSError as error:
            print(
                f"{harmless(str(out / 'result.json'))} cannot be written: {error}", file=sys.stderr
            )
    if history.stopped:
        done = f"{len(history.metrics)} of {arguments.steps} steps"
        print(f"training stopped after {done}: the rest of the budget is for held-out questions")
    if after is not None:
        print(f"held-out after:  {_scores(after)}")
    print(f"{_spent(budget.spent)}, {time.time() - started:.0f} s")
    print(f"the best state is in {harmless(str(out / 'best.json'))}")
    if after is None:
        as_is = f", or with --steps {len(history.metrics)} measures what is trained so far"
        raise BudgetExceeded(
            "the budget ran out at the held-out questions, after training. What was paid for is "
            f"kept: the same command with a larger budget goes on{as_is if history.stopped else ''}"
        )


def evaluate(arguments: Namespace) -> None:
    """`textautograd eval`."""
    if arguments.sizes[2] == 0:
        raise UsageError("eval needs at least one held-out example: the third of --sizes")
    task, model = _task_and_model(arguments)
    agent = task.agent.to(model)
    if arguments.state is not None:
        file = as_path(arguments.state, "--state")
        try:
            agent.load_state_dict(read_json(file))
        except StateError as error:
            raise UsageError(f"{file} is no state of this task's agent: {error}") from error
        except ValueError as error:
            raise UsageError(f"cannot read the state {file}: {error}") from error
    measured = evaluation.evaluate(agent, task.test, ExactMatchLoss(), progress=True)
    result = f"{_scores(measured)}\n{_spent(measured.usage)}"
    try:
        print(result, flush=True)
    except OSError:  # it was paid for, and is kept nowhere else
        print(result, file=sys.stderr)
        raise


@contextmanager
def _finishing(budget: Budget) -> Iterator[None]:
    """After a signal nothing further is sent, and what is under way, and so paid for, is kept."""
    try:
        yield
    except KeyboardInterrupt:
        budget.calls = 0
        if loop.is_busy():
            tell(
                f"\nwaiting up to {_LAST_REPLIES} s for replies that are under way, as they are "
                "paid for; Ctrl-C again ends at once"
            )
            loop.finish(_LAST_REPLIES)
        raise


def _task_and_model(arguments: Namespace) -> tuple[tasks.Task, Engine]:
    task = tasks.load(
        arguments.task,
        arguments.data,
        seed=arguments.seed,
        sizes=tuple(arguments.sizes),
        max_tokens=arguments.max_tokens,
        download=arguments.download,
    )
    kept = {"cache": arguments.cache, **_patience(arguments)}
    return task, engine(arguments.model, api_base=arguments.api_base, **kept)


def _patience(arguments: Namespace) -> dict[str, Any]:
    given = {"timeout": arguments.timeout, "max_attempts": arguments.max_attempts}
    return {name: value for name, value in given.items() if value is not None}


def _rewriter(arguments: Namespace) -> Engine | None:
    if arguments.optimizer_model is not None:
        where, patience = arguments.optimizer_api_base, _patience(arguments)
        try:
            return engine(arguments.optimizer_model, api_base=where, **patience)
        except UsageError as error:
            raise UsageError(str(error).replace("api_base", "optimizer_api_base")) from error
    if arguments.optimizer_api_base is not None:
        raise UsageError("--optimizer-api-base is the server of --optimizer-model: give both")
    return None


def _rest(budget: Budget, kept: Usage) -> Budget:
    """What is left for training, if the held-out questions cost as much after it as before."""
    spent = budget.spent + kept

    def left(limit: float | None, used: float) -> float | None:
        return None if limit is None else max(0, limit - used)

    calls, tokens = left(budget.calls, spent.calls), left(budget.tokens, spent.tokens)
    return Budget(
        None if calls is None else int(calls),
        None if tokens is None else int(tokens),
        left(budget.usd, spent.cost or 0.0),
    )


def _result(
    arguments: Namespace,
    task: tasks.Task,
    before: evaluation.Evaluation,
    after: evaluation.Evaluation | None,
    history: History,
) -> dict[str, Any]:
    return {
        "task": task.name,
        "model": arguments.model,
        "optimizer_model": arguments.optimizer_model or arguments.model,
        "steps": len(history.metrics),
        "seed": arguments.seed,
        "sizes": list(arguments.sizes),
        "before": _counts(before),
        "after": None if after is None else _counts(after),
        "accepted": history.accepted,
        "stopped": history.stopped,
    }


def _counts(measured: evaluation.Evaluation) -> dict[str, int]:
    done = [row for row in measured.rows if row.output is not None]
    return {
        "questions": len(measured.rows),
        "exact": sum(row.loss == 0 for row in done),
        "lenient": sum(tasks.lenient_match(row.output or "", row.example.answer) for row in done),
        "failed": measured.failed,
    }


def _scores(measured: evaluation.Evaluation) -> str:
    counts = _counts(measured)
    scores = (
        f"exact match {counts['exact']} of {counts['questions']}, leniently {counts['lenient']}"
    )
    reasons = Counter(str(row.error) for row in measured.rows if row.error is not None)
    for reason, times in reasons.most_common(1):
        most = "" if times == counts["failed"] else f"{times} of them: "
        scores += f", {counts['failed']} failed ({most}{harmless(reason)})"
    return scores


def _spent(usage: Usage) -> str:
    cost = "" if usage.cost is None else f", ${usage.cost:.4f}"
    return f"{usage.calls} calls, {usage.tokens} tokens{cost}"


def _show(metrics: Sequence[dict[str, Any]]) -> None:
    for step in metrics:
        if step["accepted"]:
            fewer = " with fewer failures" if step["after"] >= step["before"] else ""
            change = f"accepted, gate {step['before']:.3f} → {step['after']:.3f}{fewer}"
        else:
            change = f"no change: {textwrap.shorten(str(step['why']), 200, placeholder=' …')}"
        failed = f", {len(step['failed'])} failures" if step["failed"] else ""
        count = f"{step['wrong']} of {step['samples']} wrong{failed}"
        print(harmless(f"step {step['step'] + 1}: {count}; {change}"))
        for name, (_, new) in step["changes"].items():
            print(harmless(f"  {name}: {new}"))
