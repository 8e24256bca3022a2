"""What `python -m benchmarks.paper` is told: the runs it should make, and where."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path

from benchmarks.paper.methods import METHODS
from benchmarks.paper.numbers import at_least
from benchmarks.paper.questions import fetch
from benchmarks.paper.settings import Setting, queued
from textautograd.checking import quantity
from textautograd.errors import UsageError

TASK, METHOD = "bbh/object_counting", "sgd"
MODEL, OPTIMIZER_MODEL = "gpt-4o-mini", "gpt-4o"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Of the command."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        usage="%(prog)s --data DIR [options]",
        description=description,
        epilog="methods:\n" + "\n".join(f"  {n:<16} {m.what}" for n, m in METHODS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    standard = Setting(TASK, METHOD, MODEL, OPTIMIZER_MODEL)
    add("--task", help=f"bbh/<task>, gsm8k or liar (default: {TASK})")
    add("--method", choices=METHODS, metavar="METHOD", help=f"see below (default: {METHOD})")
    names = "litellm's name, local/NAME, or, with --api-base, the server's"
    add("--model", help=f"of the agent's calls: {names} (default: {standard.model})")
    whose = f"of backward and optimizer calls (default: {standard.optimizer_model})"
    add("--optimizer-model", help=whose)
    add("--seed", type=int, help=f"(default: {standard.seed})")
    some, number = at_least(1), at_least(0)
    add(
        "--sizes",
        type=number,
        nargs=3,
        metavar="N",
        help="training, gate and held-out questions; 0 of the last: all others (default: "
        f"{' '.join(map(str, standard.sizes))})",
    )
    for name, what in (
        ("steps", "of training"),
        ("batch_size", "questions of a step"),
        ("examples", "wrong samples shown to a rewrite"),
        ("max_tokens", "of an agent's reply"),
        ("optimizer_max_tokens", "of a backward or optimizer reply"),
    ):
        told = f"{what} (default: {getattr(standard, name)})"
        add(f"--{name.replace('_', '-')}", type=some, help=told)
    add(
        "--tokens",
        type=some,
        help="start no call of training when it has cost so many; calls under way may pass it",
    )
    add(
        "--reasoning",
        action=argparse.BooleanOptionalAction,
        help="nodes reason, then state their output (the paper's way; default)",
    )
    add(
        "--stated",
        action=argparse.BooleanOptionalAction,
        help="the last instruction says from the beginning what an answer looks like",
    )
    add("--queue", choices=["small", "full"], help="the runs of this queue instead of one")
    add("--minutes", type=time, default=math.inf, help="start no run after so many")
    add("--dry-run", action="store_true", help="calls, tokens and cost, by scripted replies")
    add("--data", type=Path, required=True, help="where bbh/, gsm8k/ and liar/ are")
    add("--download", action="store_true", help="fetch missing questions, as they are published")
    add("--api-base", help="an OpenAI-compatible server; peers need benchmarks.paper.server")
    waits = "seconds for a reply (default: with --api-base as long as it takes)"
    add("--timeout", type=time, help=waits)
    flying = "the most calls of a model in flight at once (default: %(default)s)"
    add("--max-concurrency", type=some, default=64, metavar="N", help=flying)
    again = "calls in all, where failures are worth another try (default: %(default)s)"
    add("--max-attempts", type=some, default=5, metavar="N", help=again)
    add("--peers", type=Path, help="the virtual environment of the peers")
    out = "where calls, locks and logs are kept (default: %(default)s)"
    add("--out", type=Path, default=Path("runs/paper"), help=out)
    add("--results", type=Path, help="the file where lines go (default: results.jsonl in --out)")
    return found


def time(text: str) -> float:
    """A `type` of argparse's."""
    try:
        found = quantity(float(text))
    except ValueError:
        found = None
    if found is None:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text}")
    return found


def asked_for(arguments: argparse.Namespace) -> list[Setting]:
    """The runs of a queue that are as the options say; or the one that they describe.

    Raises:
        UsageError: the queue has no such run; says what it has instead.
    """
    given = {field.name: getattr(arguments, field.name) for field in fields(Setting)}
    given = {name: value for name, value in given.items() if value is not None}
    given |= {"sizes": tuple(given["sizes"])} if "sizes" in given else {}
    if not arguments.queue:
        models = {"model": MODEL, "optimizer_model": OPTIMIZER_MODEL}
        return [Setting(**{"task": TASK, "method": METHOD, **models, **given})]
    found = queued(arguments.queue)
    for name, value in given.items():
        there = dict.fromkeys(getattr(setting, name) for setting in found)
        found = [setting for setting in found if getattr(setting, name) == value]
        if not found:
            shown = ", ".join(" ".join(map(str, v)) if type(v) is tuple else str(v) for v in there)
            raise UsageError(
                f"argument --{name.replace('_', '-')}: the queue has no such run; it has {shown}"
            )
    return found


def check_places(wanted: list[Setting], arguments: argparse.Namespace) -> None:
    """Finds out, once for all runs, whether there are questions and a place for what runs leave;
    fetches the questions if that was asked for.

    Raises:
        UsageError, OSError: not so.
    """
    for task in dict.fromkeys(setting.task for setting in wanted) if arguments.download else ():
        fetch(task, arguments.data)
    if not arguments.data.is_dir():
        raise UsageError(
            f"argument --data: there is no directory {arguments.data}: --download makes it, and "
            "fetches what is missing from where it is published"
        )
    if arguments.dry_run:
        return
    if arguments.results.exists() and not arguments.results.is_file():
        raise UsageError(f"argument --results: {arguments.results} is no file")
    for option, folder in (("results", arguments.results.parent), ("out", arguments.out)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"argument --{option}: {folder} cannot be a directory: {error}"
            ) from error


def objection(wanted: list[Setting], arguments: argparse.Namespace) -> str | None:
    """What is wrong with the arguments together."""
    if arguments.sizes and not arguments.sizes[0]:
        return "argument --sizes: there must be a training question"
    if any(setting.stated and METHODS[setting.method].state_format for setting in wanted):
        return "format states the answer's form itself: leave out --stated"
    if arguments.dry_run or not any(METHODS[setting.method].peer for setting in wanted):
        return None
    if arguments.peers is None:  # a queue runs without them
        return None if arguments.queue else f"{arguments.method} needs --peers"
    if not (arguments.peers / "bin" / "python").is_file():
        return f"argument --peers: there is no {arguments.peers / 'bin' / 'python'}"
    return None if arguments.api_base else "--peers needs --api-base, of benchmarks.paper.server"
