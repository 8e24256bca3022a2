"""Runs settings, and appends a line for each that has ended.

    python -m benchmarks.paper --task T --method M --model A --optimizer-model B --seed S ...
    python -m benchmarks.paper --queue small [--minutes N]     the runs of small.json, in order
    python -m benchmarks.paper --queue small --task gsm8k      those of one task, method or seed
    python -m benchmarks.paper --queue full                    the paper's sizes, by gpt-4o-mini
    python -m benchmarks.paper ... --dry-run                   what it would cost, without a model

A run whose line is there is not made again, and one that another process makes with the same
`--out` is left to it, so several share a queue. `python -m benchmarks.report --results FILE` makes
tables of the lines. A task of your own is a file DIR/bbh/NAME.json, as BIG-Bench Hard's are.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import textautograd as ta
from benchmarks.paper import dry, lines
from benchmarks.paper.groups import has_changed
from benchmarks.paper.methods import METHODS
from benchmarks.paper.numbers import at_least
from benchmarks.paper.peer import theirs
from benchmarks.paper.questions import fetch, load
from benchmarks.paper.run import ours
from benchmarks.paper.served import served
from benchmarks.paper.settings import Setting, digest, queued
from textautograd.checking import quantity
from textautograd.engines.base import Engine
from textautograd.errors import RunError, UsageError
from textautograd.locking import InUseError, locked
from textautograd.stopping import stopped_by_signals
from textautograd.terminal import write_anything

TASK, METHOD = "bbh/object_counting", "sgd"


def main(words: list[str] | None = None) -> None:
    """The command."""
    command = parser()
    arguments = command.parse_args(words)
    write_anything()
    arguments.results = arguments.results or arguments.out / "results.jsonl"
    if arguments.queue and (ignored := given_besides(command, arguments)):
        command.error(f"a queue says what it runs: leave out {', '.join(ignored)}")
    wanted = asked_for(arguments)
    if not wanted:
        command.error("the queue has no such run")
    if wrong := objection(wanted, arguments):
        command.error(wrong)
    try:
        check_places(wanted, arguments)
        if arguments.dry_run:
            print(dry.report(wanted, arguments.data))
            return
        lines.check(arguments.results)
        if arguments.queue:
            print(left(wanted, arguments), flush=True)
    except (ta.Error, OSError) as error:
        sys.exit(str(error))
    again = "the same command goes on from here"
    try:
        with stopped_by_signals(f"ended; {again}"):
            fine = all_of(wanted, arguments)
    except KeyboardInterrupt as stop:
        print(f"interrupted; {again}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    if not fine:
        sys.exit(1)


CHOICE = ("task", "method", "seed")  # of a queue's runs


def given_besides(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """The options of a single run that are not as they are by default, and choose none."""
    names = [field.name for field in fields(Setting) if field.name not in CHOICE]
    given = [n for n in names if getattr(arguments, n) != command.get_default(n)]
    return [f"--{name.replace('_', '-')}" for name in given]


def asked_for(arguments: argparse.Namespace) -> list[Setting]:
    """The runs of a queue, or those of them that are chosen; or the one that is described."""
    given = {field.name: getattr(arguments, field.name) for field in fields(Setting)}
    given = {name: value for name, value in given.items() if value is not None}
    if not arguments.queue:
        return [Setting(**{"task": TASK, "method": METHOD, **given})]
    chosen = {name: given[name] for name in CHOICE if name in given}
    return [
        setting
        for setting in queued(arguments.queue)
        if all(getattr(setting, name) == value for name, value in chosen.items())
    ]


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
    if arguments.results.is_dir():
        raise UsageError(f"argument --results: {arguments.results} is a directory, not a file")
    if not arguments.dry_run:
        (arguments.out / "making").mkdir(parents=True, exist_ok=True)


def left(wanted: list[Setting], arguments: argparse.Namespace) -> str:
    """How much of a queue is there, and what is left out."""
    found = lines.read(arguments.results)
    missing = [s for s in wanted if not lines.is_there(found, s.key())]
    told = f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {arguments.results}"
    peers = sum(METHODS[setting.method].peer is not None for setting in missing)
    if peers and arguments.peers is None:
        told += f"; {peers} of the others are left out, as they need --peers"
    return told


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


def all_of(wanted: list[Setting], arguments: argparse.Namespace) -> bool:
    """Runs settings in order. Whether none failed; what would fail in each ends them."""
    started, failed, told = time.time(), 0, set[str]()
    for setting in wanted:
        if time.time() - started > 60 * arguments.minutes:
            break
        if METHODS[setting.method].peer and arguments.peers is None:
            continue
        try:
            one(setting, arguments)
        except (ta.Error, OSError) as error:
            failed += 1
            if (why := message(error)) not in told:  # one mistake may be that of many runs
                print(f"{setting.task}, {setting.method}: {why}", file=sys.stderr, flush=True)
            told.add(why)
            if isinstance(error, RunError | OSError):
                break
    if failed > len(told):
        print(f"{failed} of {len(wanted)} runs failed", file=sys.stderr, flush=True)
    return not failed


def one(setting: Setting, arguments: argparse.Namespace) -> None:
    """Runs a setting whose line is missing, unless another process is making it."""
    if there := lines.found(lines.read(arguments.results), setting.key()):
        check_same(there, setting, arguments)
        if not arguments.queue:
            print(
                f"It is in {arguments.results}: {summary(there)}. --results OTHER makes it again."
            )
        return
    try:
        with locked(arguments.out / "making" / digest(setting.key())):
            if not lines.is_there(lines.read(arguments.results), setting.key()):  # made meanwhile
                make(setting, arguments)
    except InUseError:
        if not arguments.queue:
            raise


def message(error: Exception) -> str:
    """What an error says, by the names of this command."""
    said = str(error).replace("Pass download=True", "Pass --download")
    return said.replace("in the environment or give api_key=", "in the environment")


def check_same(line: lines.Line, setting: Setting, arguments: argparse.Namespace) -> None:
    """Raises `UsageError` where a line is about other questions than there are now."""
    if "data" not in line:
        return
    now = load(setting.task, arguments.data, setting.seed, setting.sizes).digest
    if now != line["data"]:
        raise UsageError(
            f"{arguments.results} has this run, of other questions than those in {arguments.data}: "
            "give another --results"
        )


def make(setting: Setting, arguments: argparse.Namespace) -> None:
    """Runs a setting, and appends its line."""
    print(f"{time.strftime('%H:%M:%S')} {setting.task} {setting.method} {setting.seed}", flush=True)
    api_base = arguments.api_base
    if METHODS[setting.method].peer:
        tokens = setting.tokens or tokens_of_ours(setting, lines.read(arguments.results))
        if tokens is None:
            raise UsageError(
                "it may spend the tokens that sgd spent on training, and there is no line of sgd "
                "in this setting: run that first, or give --tokens"
            )
        line = theirs(setting, tokens, arguments.data, arguments.out, api_base, arguments.peers)
    else:
        engines = partial(engine, api_base=api_base)
        line = ours(setting, arguments.data, arguments.out / "calls.sqlite", engines)
    if api_base:
        line["served"] = served(api_base, [setting.model, setting.optimizer_model])
    lines.append(arguments.results, line)
    print(f"{time.strftime('%H:%M:%S')}   {summary(line)}", flush=True)


def engine(name: str, max_tokens: int, api_base: str | None) -> Engine:
    """A model by name, here or at a server."""
    options: dict[str, Any] = {"api_base": api_base, "api_key": "ours"} if api_base else {}
    return ta.engine(name, max_tokens=max_tokens, timeout=None, **options)


def tokens_of_ours(setting: Setting, found: list[lines.Line]) -> int | None:
    """What training took `sgd` in the same setting, which a peer may spend as well."""
    key = replace(setting, method="sgd").key()
    same = [line for line in found if line["key"] == key]
    training = same[0]["cost"].get("training", {}) if same else None
    return None if training is None else sum(c[1] + c[2] for c in training.values())


def summary(line: lines.Line) -> str:
    """A line of a line."""
    before, after = (sum(line[stage]["exact"]) for stage in ("before", "after"))
    kept = "changed" if has_changed(line) else "as they were"
    failed = f", {line['error']['type']}: {line['error']['message']}" if line["error"] else ""
    return (
        f"exact {before} → {after} of {len(line['after']['exact'])}, "
        f"instructions {kept} after {len(line['steps'])} steps, {line['seconds']} s{failed}"
    )


def parser() -> argparse.ArgumentParser:
    """Of the command."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    standard = Setting(TASK, METHOD, "gpt-4o-mini", "gpt-4o")
    add("--task", help=f"bbh/<task>, gsm8k or liar (default: {TASK})")
    methods = ", ".join(METHODS)
    add("--method", choices=METHODS, metavar="METHOD", help=f"{methods} (default: {METHOD})")
    add("--model", default=standard.model, help="of the agent's calls (default: %(default)s)")
    add(
        "--optimizer-model",
        default=standard.optimizer_model,
        help="of backward and optimizer calls (default: %(default)s)",
    )
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
    add("--minutes", type=minutes, default=math.inf, help="start no run after so many")
    add("--dry-run", action="store_true", help="calls, tokens and cost, by scripted replies")
    add("--data", type=Path, required=True, help="where bbh/, gsm8k/ and liar/ are")
    add("--download", action="store_true", help="fetch missing questions, as they are published")
    add("--api-base", help="an OpenAI-compatible server; peers need benchmarks.paper.server")
    add("--peers", type=Path, help="the virtual environment of the peers")
    out = "where calls, locks and logs are kept (default: %(default)s)"
    add("--out", type=Path, default=Path("runs/paper"), help=out)
    add("--results", type=Path, help="the file where lines go (default: results.jsonl in --out)")
    return found


def minutes(text: str) -> float:
    """A `type` of argparse's."""
    if (found := quantity(float(text))) is None:
        raise argparse.ArgumentTypeError(f"must be a number of minutes, not {text}")
    return found


if __name__ == "__main__":
    main()
