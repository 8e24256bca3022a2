"""The command line: `textautograd demo`, `train`, `eval`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from textautograd import tasks
from textautograd.engines import Budget, caching, engine
from textautograd.engines.base import Engine
from textautograd.errors import Error, UsageError
from textautograd.evaluation import Evaluation, evaluate
from textautograd.nn import ExactMatchLoss
from textautograd.optim import SGD
from textautograd.training import fit

_MODELS = """\
models:
  local                      SmolLM2-135M, comes with the installation (the extra `local`)
  local/qwen2.5-coder-1.5b   a larger one, from the user's cache or its hub; also -0.5b
  local/FILE.gguf            any model file for llama.cpp
  openai/gpt-4o-mini, …      litellm's names; the key is read from the environment
  NAME with --api-base URL   an OpenAI-compatible server, such as llama.cpp's, vLLM's or Ollama's
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for an error, 2 for unusable arguments."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except Error as error:
        print(f"textautograd: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        out = getattr(arguments, "out", None)
        resume = f"; the same command resumes in {out}" if out else ""
        print(f"\ntextautograd: interrupted{resume}", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="textautograd",
        description="PyTorch for agents: trains the instructions of an agent by backpropagation "
        "of feedback in words.",
        epilog="Start with: textautograd demo",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="train a small agent on a small model in this process: no key, no network",
        description="Trains a two-step agent on questions that come with the package, with "
        "SmolLM2-135M running in this process, and shows what happens: a gradient, the "
        "instruction before and after, and accuracy on held-out questions. "
        "About a minute on two idle cores.",
    )
    demo.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")
    demo.set_defaults(run=_demo)

    train = commands.add_parser(
        "train",
        help="train the paper's agent on one of its tasks",
        description="Trains the paper's agent (two hints and an answer; five analysts for LIAR) "
        "and reports its accuracy on held-out questions before and after.",
        epilog=_MODELS + "\nexample:\n  textautograd train --task bbh/object_counting --data DIR "
        "--model openai/gpt-4o-mini \\\n      --optimizer-model openai/gpt-4o --steps 4 "
        "--out runs/counting",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_task(train)
    train.add_argument(
        "--optimizer-model",
        metavar="M2",
        help="the model for gradients and rewriting (default: the --model)",
    )
    train.add_argument("--optimizer-api-base", metavar="URL", help="its server, if it has one")
    train.add_argument("--steps", type=int, default=4, help="optimizer steps (default: 4)")
    train.add_argument("--batch-size", type=int, default=10, help="examples a step (default: 10)")
    train.add_argument(
        "--candidates", type=int, default=1, help="rewrites to try per step (default: 1)"
    )
    train.add_argument(
        "--examples", type=int, default=2, help="feedbacks shown per rewrite (default: 2)"
    )
    train.add_argument(
        "--out",
        type=Path,
        required=True,
        help="directory of the run: results, best state, all replies; the same command resumes it",
    )
    for name, what in (("calls", "calls"), ("tokens", "tokens"), ("usd", "US dollars")):
        train.add_argument(
            f"--budget-{name}",
            metavar="N",
            type=float if name == "usd" else int,
            help=f"stop training before it passes N {what} (held-out evaluations not counted)",
        )
    train.set_defaults(run=_train)

    test = commands.add_parser(
        "eval",
        help="measure an agent on held-out questions",
        description="Measures the paper's agent on a task's held-out questions.",
        epilog=_MODELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_task(test)
    test.add_argument(
        "--state", type=Path, metavar="FILE", help="best.json of a run (default: untrained)"
    )
    test.set_defaults(run=_eval)
    return top


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task", required=True, help="bbh/<task>, such as bbh/object_counting; gsm8k; or liar"
    )
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="where bbh/, gsm8k/ and liar/ hold their authors' files",
    )
    command.add_argument(
        "--download", action="store_true", help="fetch missing files from where they are published"
    )
    command.add_argument("--model", required=True, metavar="M", help="see below")
    command.add_argument("--api-base", metavar="URL", help="an OpenAI-compatible server's address")
    command.add_argument(
        "--cache", type=Path, metavar="FILE", help="keep the model's replies for other runs, too"
    )
    command.add_argument(
        "--max-tokens", type=int, default=512, help="of each reply in the agent (default: 512)"
    )
    command.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")
    command.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        default=(20, 20, 50),
        metavar=("TRAIN", "GATE", "TEST"),
        help="examples to train on, to compare states on, and held out (default: 20 20 50)",
    )


def _demo(arguments: argparse.Namespace) -> None:
    from textautograd.demo import run

    run(arguments.seed)


def _train(arguments: argparse.Namespace) -> None:
    task, model = _task_and_model(arguments)
    if arguments.optimizer_model:
        rewriter = engine(arguments.optimizer_model, api_base=arguments.optimizer_api_base)
    else:
        rewriter = model
    agent = task.agent.to(model)
    optimizer = SGD(
        agent.parameters(),
        engine=rewriter,
        examples=arguments.examples,
        candidates=arguments.candidates,
        seed=arguments.seed,
    )
    loss_fn = ExactMatchLoss()
    limits = (arguments.budget_calls, arguments.budget_tokens, arguments.budget_usd)
    budget = Budget(*limits) if any(limit is not None for limit in limits) else None
    started = time.time()
    initial = agent.state_dict()
    train = partial(
        fit,
        agent,
        task.train,
        loss_fn,
        optimizer,
        val=task.val,
        batch_size=arguments.batch_size,
        run_dir=arguments.out,
        budget=budget,
        seed=arguments.seed,
        engine=rewriter,
    )
    train(steps=min(arguments.steps, 0), progress=False)  # what cannot work is refused unpaid
    agent.load_state_dict(initial)
    with ExitStack() as stack:
        meter = stack.enter_context(Budget())
        stack.enter_context(caching(arguments.out / "calls.sqlite"))
        before = evaluate(agent, task.test, loss_fn)
        print(f"held-out before: {_scores(before)}", flush=True)
        history = train(steps=arguments.steps)
        _show(history.metrics)
        after = evaluate(agent, task.test, loss_fn)
        print(f"held-out after:  {_scores(after)}")
        spent = meter.spent
    if history.stopped:
        print(f"training stopped early: {history.stopped}")
    cost = "" if spent.cost is None else f", ${spent.cost:.4f}"
    print(f"{spent.calls} calls, {spent.tokens} tokens{cost}, {time.time() - started:.0f} s")
    result = {
        "task": task.name,
        "model": arguments.model,
        "optimizer_model": arguments.optimizer_model or arguments.model,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "sizes": list(arguments.sizes),
        "before": _counts(before),
        "after": _counts(after),
        "accepted": history.accepted,
        "stopped": history.stopped,
    }
    file = arguments.out / "result.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"the best state is in {arguments.out / 'best.json'}")


def _eval(arguments: argparse.Namespace) -> None:
    task, model = _task_and_model(arguments)
    agent = task.agent.to(model)
    if arguments.state is not None:
        try:
            state = json.loads(arguments.state.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the state {arguments.state}: {error}") from error
        agent.load_state_dict(state)
    evaluation = evaluate(agent, task.test, ExactMatchLoss())
    print(_scores(evaluation))
    print(f"{evaluation.usage.calls} calls, {evaluation.usage.tokens} tokens")


def _task_and_model(arguments: argparse.Namespace) -> tuple[tasks.Task, Engine]:
    task = tasks.load(
        arguments.task,
        arguments.data,
        seed=arguments.seed,
        sizes=tuple(arguments.sizes),
        max_tokens=arguments.max_tokens,
        download=arguments.download,
    )
    return task, engine(arguments.model, api_base=arguments.api_base, cache=arguments.cache)


def _counts(evaluation: Evaluation) -> dict[str, int]:
    done = [row for row in evaluation.rows if row.output is not None]
    return {
        "questions": len(evaluation.rows),
        "exact": sum(row.loss == 0 for row in done),
        "lenient": sum(tasks.lenient_match(row.output or "", row.example.answer) for row in done),
        "failed": evaluation.failed,
    }


def _scores(evaluation: Evaluation) -> str:
    counts = _counts(evaluation)
    failed = f", {counts['failed']} failed" if counts["failed"] else ""
    return (
        f"exact match {counts['exact']} of {counts['questions']}, "
        f"leniently {counts['lenient']}{failed}"
    )


def _show(metrics: Sequence[dict[str, Any]]) -> None:
    for step in metrics:
        gate = "" if step["before"] is None else f", gate {step['before']:.3f}"
        why = " with fewer failures" if step["before"] == step["after"] else ""
        change = f" → {step['after']:.3f}, accepted{why}" if step["accepted"] else ", no change"
        print(f"step {step['step'] + 1}: {step['wrong']} of {step['samples']} wrong{gate}{change}")
        for name, (_, new) in step["changes"].items():
            print(f"  {name}: {new}")
