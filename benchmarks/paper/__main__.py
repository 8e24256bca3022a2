"""Runs settings, and appends a line for each that has ended.

    python -m benchmarks.paper --task T --method M --model A --optimizer-model B --seed S ...
    python -m benchmarks.paper --queue small [--minutes N]     the runs of small.json, in order
    python -m benchmarks.paper --queue full                    the paper's sizes, by gpt-4o-mini
    python -m benchmarks.paper ... --dry-run                   what it would cost, without a model

A line that is there is not run again, and a run that another process makes with the same `--out`
is left to it, so several share a queue. `python -m benchmarks.report` makes tables of the lines.
"""

from __future__ import annotations

import argparse
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
from benchmarks.paper.run import ours
from benchmarks.paper.served import served
from benchmarks.paper.settings import Setting, digest, queued
from textautograd.engines.base import Engine
from textautograd.errors import RunError, UsageError
from textautograd.locking import InUseError, locked
from textautograd.stopping import stopped_by_signals

RESULTS = Path(__file__).parent.parent / "results" / "paper.jsonl"


def main(words: list[str] | None = None) -> None:
    """The command."""
    command = parser()
    arguments = command.parse_args(words)
    if arguments.queue:
        wanted = queued(arguments.queue)
    else:
        given = {field.name: getattr(arguments, field.name) for field in fields(Setting)}
        wanted = [Setting(**{k: v for k, v in given.items() if v is not None})]
    if arguments.queue and (ignored := given_besides(command, arguments)):
        command.error(f"a queue says what it runs: leave out {', '.join(ignored)}")
    if wrong := objection(wanted, arguments):
        command.error(wrong)
    try:
        if arguments.dry_run:
            print(dry.report(wanted, arguments.data))
            return
        lines.check(arguments.results)
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


def given_besides(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[str]:
    """The options of a single run that are not as they are by default."""
    names = [field.name for field in fields(Setting)]
    given = [n for n in names if getattr(arguments, n) != command.get_default(n)]
    return [f"--{name.replace('_', '-')}" for name in given]


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
    started, fine = time.time(), True
    for setting in wanted:
        if time.time() - started > 60 * arguments.minutes:
            break
        if METHODS[setting.method].peer and arguments.peers is None:
            continue
        try:
            one(setting, arguments)
        except (ta.Error, OSError) as error:
            fine = False
            print(f"{setting.task}, {setting.method}: {error}", file=sys.stderr, flush=True)
            if isinstance(error, RunError | OSError):
                break
    return fine


def one(setting: Setting, arguments: argparse.Namespace) -> None:
    """Runs a setting whose line is missing, unless another process is making it."""
    if lines.is_there(lines.read(arguments.results), setting.key()):
        return
    try:
        with locked(arguments.out / "making" / digest(setting.key())):
            if not lines.is_there(lines.read(arguments.results), setting.key()):  # made meanwhile
                make(setting, arguments)
    except InUseError:
        if not arguments.queue:
            raise


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
    add("--task", default="bbh/object_counting", help="bbh/<task>, gsm8k or liar")
    add("--method", default="sgd", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    add("--model", default="gpt-4o-mini", help="of the agent's calls")
    add("--optimizer-model", default="gpt-4o", help="of backward and optimizer calls")
    add("--seed", type=int)
    some, number = at_least(1), at_least(0)
    add(
        "--sizes",
        type=number,
        nargs=3,
        metavar="N",
        help="training, gate and held-out questions; 0 of the last: all others",
    )
    add("--steps", type=some)
    add("--batch-size", type=some)
    add("--examples", type=some, help="wrong samples shown to a rewrite")
    add("--max-tokens", type=some, help="of an agent's reply")
    add("--optimizer-max-tokens", type=some, help="of a backward or optimizer reply")
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
    add("--minutes", type=float, default=1e9, help="start no run after so many")
    add("--dry-run", action="store_true", help="calls, tokens and cost, by scripted replies")
    add("--data", type=Path, required=True, help="where bbh/, gsm8k/ and liar/ are")
    add("--api-base", help="an OpenAI-compatible server; peers need benchmarks.paper.server")
    add("--peers", type=Path, help="the virtual environment of the peers")
    add("--out", type=Path, default=Path("paper-runs"), help="where calls and logs are kept")
    add("--results", type=Path, default=RESULTS, help="where lines go (benchmarks/results)")
    return found


if __name__ == "__main__":
    main()
