"""Runs settings, and appends a line for each that has ended.

    python -m benchmarks.paper --task T --method M --model A --optimizer-model B --seed S ...
    python -m benchmarks.paper --queue small [--minutes N]     the runs of small.json, in order
    python -m benchmarks.paper --queue small --task gsm8k      those of them that have this option
    python -m benchmarks.paper --queue full                    the paper's sizes, by gpt-4o-mini
    python -m benchmarks.paper ... --dry-run                   what it would cost, without a model

A run whose line is there is not made again, and one that another process makes with the same
`--out` is left to it, so several share a queue. `python -m benchmarks.report --results FILE` makes
tables of the lines. A task of your own is a file DIR/bbh/NAME.json, as BIG-Bench Hard's are.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import textautograd as ta
from benchmarks.paper import dry, lines
from benchmarks.paper.arguments import asked_for, check_places, objection, parser
from benchmarks.paper.checked import check, check_one_more
from benchmarks.paper.groups import has_changed
from benchmarks.paper.methods import METHODS
from benchmarks.paper.peer import theirs
from benchmarks.paper.questions import load
from benchmarks.paper.run import ours, tree
from benchmarks.paper.served import served
from benchmarks.paper.settings import Setting, digest
from textautograd.cli import in_options
from textautograd.engines.base import Engine
from textautograd.errors import DataError, RateLimitError, RunError, TransientError, UsageError
from textautograd.locking import InUseError, locked
from textautograd.stopping import stopped_by_signals
from textautograd.terminal import spelled, write_anything

AGAIN = "the same command goes on from here"
TOO_FAST = (
    f"the server limits the rate of calls: {AGAIN}; a smaller --max-concurrency asks less of it "
    "at once, and more --max-attempts wait longer"
)


def main(words: list[str] | None = None) -> None:
    """The command."""
    command = parser(__doc__)
    arguments = command.parse_args(words)
    write_anything()
    arguments.results = arguments.results or arguments.out / "results.jsonl"
    try:
        wanted = asked_for(arguments)
    except UsageError as error:
        command.error(str(error))
    if wrong := objection(wanted, arguments):
        command.error(wrong)
    try:
        with stopped_by_signals(f"ended; {AGAIN}"):
            check_places(wanted, arguments)
            if arguments.dry_run:
                print(in_options(dry.report(wanted, arguments.data)))
                return
            lines.check(arguments.results)
            check(lines.read(arguments.results))
            if arguments.queue:
                print(left(wanted, arguments), flush=True)
            tree()  # of the code as it is now, whatever is changed while it runs
            fine = all_of(wanted, arguments)
    except (ta.Error, OSError) as error:
        sys.exit(said(error))
    except KeyboardInterrupt as stop:
        print(f"interrupted; {AGAIN}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))
    if not fine:
        sys.exit(1)


def left(wanted: list[Setting], arguments: argparse.Namespace) -> str:
    """How much of a queue is there, and what is left out."""
    found = lines.read(arguments.results)
    missing = [s for s in wanted if not lines.is_there(found, s.key())]
    told = f"{len(wanted) - len(missing)} of {len(wanted)} runs are in {arguments.results}"
    peers = sum(METHODS[setting.method].peer is not None for setting in missing)
    if peers and arguments.peers is None:
        told += f"; {peers} of the others are left out, as they need --peers"
    return told


def all_of(wanted: list[Setting], arguments: argparse.Namespace) -> bool:
    """Runs settings in order. Whether none failed; what would fail in each ends them."""
    started, failed, heard, in_a_row = time.time(), 0, set[str](), 0
    was_limited = False
    for setting in wanted:
        if time.time() - started > 60 * arguments.minutes:
            break
        if METHODS[setting.method].peer and arguments.peers is None:
            continue
        try:
            one(setting, arguments)
            in_a_row = 0
        except (ta.Error, OSError) as error:
            failed += 1
            if str(error) not in heard:  # one mistake may be that of many runs
                why = f"{setting.task}, {setting.method}: {said(error)}"
                print(why, file=sys.stderr, flush=True)
            heard.add(str(error))
            was_limited = was_limited or isinstance(error, RateLimitError)
            in_a_row = in_a_row + 1 if isinstance(error, TransientError) else 0
            if isinstance(error, RunError | OSError) or in_a_row == 2:  # the server is down
                break
    if failed > len(heard):
        print(f"{failed} of {len(wanted)} runs failed", file=sys.stderr, flush=True)
    if was_limited:
        print(TOO_FAST, file=sys.stderr, flush=True)
    return not failed


def said(error: Exception) -> str:
    """An error in the words of the command line."""
    return in_options("\n".join(spelled(error)))


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
                check_questions(setting, arguments)
                make(setting, arguments)
    except InUseError:
        if not arguments.queue:
            raise


def check_same(line: lines.Line, setting: Setting, arguments: argparse.Namespace) -> None:
    """Raises `UsageError` where a line is about other questions than there are now, or was made
    by a server's models and these are litellm's of the same name, or the other way round."""
    if ("served" in line) != (arguments.api_base is not None):
        raise UsageError(
            f"{arguments.results} has this run, made with"
            f"{'' if 'served' in line else 'out'} --api-base: give another --results"
        )
    try:
        now = load(setting.task, arguments.data, setting.seed, setting.sizes).digest
    except DataError:  # there are none
        return
    if now != line.get("data", now):
        raise UsageError(
            f"{arguments.results} has this run, of other questions than those in {arguments.data}: "
            "give another --results"
        )


def check_questions(setting: Setting, arguments: argparse.Namespace) -> None:
    """Raises `UsageError` where a line could not be reported beside those that are there."""
    questions = load(setting.task, arguments.data, setting.seed, setting.sizes)
    try:
        check_one_more(lines.read(arguments.results), setting.key(), questions)
    except UsageError as error:
        raise UsageError(f"{arguments.results}: {error}: give another --results") from error


def make(setting: Setting, arguments: argparse.Namespace) -> None:
    """Runs a setting, and appends its line."""
    print(f"{time.strftime('%H:%M:%S')} {setting.task} {setting.method} {setting.seed}", flush=True)
    api_base = arguments.api_base
    weights = api_base and served(api_base, [setting.model, setting.optimizer_model])
    if METHODS[setting.method].peer:
        tokens = setting.tokens or tokens_of_ours(setting, lines.read(arguments.results))
        if tokens is None:
            raise UsageError(
                "it may spend the tokens that sgd spent on training, and there is no line of sgd "
                "in this setting: run that first, or give --tokens"
            )
        line = theirs(setting, tokens, arguments.data, arguments.out, api_base, arguments.peers)
    else:
        given = {
            name: getattr(arguments, name)
            for name in ("api_base", "timeout", "max_concurrency", "max_attempts")
        }
        engines = partial(engine, **given)
        line = ours(setting, arguments.data, arguments.out / "calls.sqlite", engines)
    if api_base:
        line["served"] = weights
    lines.append(arguments.results, line)
    print(f"{time.strftime('%H:%M:%S')}   {summary(line)}", flush=True)


def engine(
    name: str, max_tokens: int, api_base: str | None, timeout: float | None, **options: Any
) -> Engine:
    """A model by name, here or at a server, which may be slow."""
    if api_base:
        options |= {"api_base": api_base, "api_key": "ours"}
    if api_base or timeout is not None or name.startswith("local"):
        options["timeout"] = timeout
    return ta.engine(name, max_tokens=max_tokens, **options)


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


if __name__ == "__main__":
    main()
