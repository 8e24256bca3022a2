"""The command line: `textautograd demo`, `train`, `eval`."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence

from textautograd import __version__, commands
from textautograd.engines import Budget
from textautograd.errors import EngineError, Error, UsageError
from textautograd.stopping import stopped_by_signals
from textautograd.terminal import harmless, spelled, tell, write_anything

_MODELS = """\
models:
  local                      SmolLM2-135M, comes with the installation (the extra `local`)
  local/qwen2.5-coder-1.5b   a larger one, from the user's cache or its hub; also -0.5b
  local/FILE.gguf            any model file for llama.cpp
  openai/gpt-4o-mini, ...    litellm's names; the key is read from the environment
  NAME with --api-base URL   an OpenAI-compatible server, such as llama.cpp's, vLLM's or Ollama's
"""


# What the library's messages call what the command line calls otherwise.
_OPTIONS = {
    "download=True": "--download",
    "optimizer_api_base=": "--optimizer-api-base",
    "optimizer_api_base": "--optimizer-api-base",
    "api_base=": "--api-base",
    "api_base": "--api-base",
    "in the environment or give api_key=": "in the environment",
    "api_key=": "the provider's environment variable, such as OPENAI_API_KEY",
    "run_dir": "--out",
    "cache=": "--cache",
    "timeout=": "--timeout",
    "max_attempts=": "--max-attempts",
    "max_failed": "--max-failed",
    "the training examples differ": "the training examples differ (--sizes, --seed or the data)",
    "(val) differ": "(val) differ (--sizes, --seed or the data)",
    "sizes=": "--sizes",
    "max_tokens =": "--max-tokens",
    "max_tokens=": "--max-tokens",
    "max_tokens": "--max-tokens",
    "usd=": "--budget-usd",
    "calls=": "--budget-calls",
    "tokens=": "--budget-tokens",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 1 for an error, 2 for unusable arguments, 128 + n
    for signal n."""
    write_anything()
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as done:  # argparse has said why
        return int(done.code or 0)
    if sys.stdout is None:  # closed
        tell("textautograd: there is nowhere to write to: standard output is closed")
        return 1
    out = getattr(arguments, "out", None)
    resume = f"; the same command goes on in {harmless(str(out))}" if out else ""
    paid = Budget()
    try:
        with stopped_by_signals(f"textautograd: ended{resume}"), paid:
            arguments.run(arguments)
            sys.stdout.flush()
    except Error as error:
        print(in_options("textautograd: " + "\n".join(spelled(error))), file=sys.stderr)
        if resume and isinstance(error, EngineError) and paid.spent.calls:
            print(f"what was paid for is kept{resume}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:  # of a broken pipe who reads the output, as `head` does, knows
        if not isinstance(error, BrokenPipeError):
            print(f"textautograd: {harmless(str(error))}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as stop:
        tell(f"\ntextautograd: interrupted{resume}")
        return 128 + getattr(stop, "number", signal.SIGINT)
    return 0


def in_options(message: str) -> str:
    """A message of the library in the command line's words."""
    names = "|".join(sorted(_OPTIONS, key=len, reverse=True))
    # usd=0.5 becomes --budget-usd 0.5
    spaced = re.sub(rf"(?<![\w-])({names})(?<==)(?=[\w('\"])", r"\1 ", message)
    return re.sub(rf"(?<![\w-])({names})", lambda found: _OPTIONS[found[0]], spaced)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="textautograd",
        description="PyTorch for agents: trains the instructions of an agent by backpropagation "
        "of feedback in words.",
        epilog="Start with: textautograd demo",
    )
    top.add_argument("--version", action="version", version=f"textautograd {__version__}")
    kinds = top.add_subparsers(required=True, metavar="COMMAND")

    demo = kinds.add_parser(
        "demo",
        help="train a small agent on a small model in this process: no key, no network",
        description="Trains a two-step agent on questions that come with the package, with "
        "SmolLM2-135M running in this process, and shows what happens: a gradient, the "
        "instruction before and after, and accuracy on held-out questions. "
        "About a minute on two idle cores.",
    )
    _add_seed(demo)
    demo.set_defaults(run=commands.demo)

    train = kinds.add_parser(
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
    train.add_argument(
        "--optimizer-api-base", metavar="URL", help="an OpenAI-compatible server for M2"
    )
    for name, least, default, what in (
        ("steps", 0, 4, "optimizer steps"),
        ("batch-size", 1, 10, "training examples per step"),
        ("candidates", 1, 1, "rewrites to try per step"),
        ("examples", 1, 2, "wrong answers shown to M2 per rewrite"),
    ):
        train.add_argument(
            f"--{name}",
            type=_whole(least),
            default=default,
            metavar="N",
            help=f"{what} (default: {default})",
        )
    train.add_argument(
        "--max-failed",
        type=_number("share from 0 to 1", 1),
        default=0.5,
        metavar="SHARE",
        help="of a step's examples that may fail; above it nothing is rewritten (default: 0.5)",
    )
    train.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="where the run is kept: results, best state, all replies; the same command resumes it",
    )
    for name, kind, what in (
        ("calls", _whole(0), "calls"),
        ("tokens", _whole(0), "tokens, read and written"),
        ("usd", _number("amount of US dollars"), "US dollars"),
    ):
        train.add_argument(
            f"--budget-{name}",
            metavar="N",
            type=kind,
            help=f"spend at most N {what}, the held-out questions included",
        )
    train.set_defaults(run=commands.train)

    test = kinds.add_parser(
        "eval",
        help="measure an agent on held-out questions",
        description="Measures the paper's agent on a task's held-out questions.",
        epilog=_MODELS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_task(test)
    test.add_argument(
        "--state", metavar="FILE", help="best.json of a run (default: the untrained agent)"
    )
    test.set_defaults(run=commands.evaluate)
    return top


def _add_task(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task", required=True, help="bbh/<task>, such as bbh/object_counting; gsm8k; or liar"
    )
    command.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="where bbh/, gsm8k/ and liar/ with their authors' files are, or are to be put",
    )
    command.add_argument(
        "--download", action="store_true", help="fetch missing files from where they are published"
    )
    command.add_argument("--model", required=True, metavar="M", help="the model; see below")
    command.add_argument("--api-base", metavar="URL", help="an OpenAI-compatible server's address")
    command.add_argument(
        "--cache",
        metavar="FILE",
        help="keep M's replies in this file, too: commands that share it pay for a reply once",
    )
    command.add_argument(
        "--max-tokens",
        type=_whole(1),
        default=512,
        metavar="N",
        help="the longest reply in the agent; one that is cut off fails (default: 512)",
    )
    command.add_argument(
        "--timeout",
        type=_number("number of seconds"),
        metavar="S",
        help="seconds to wait for a reply (default: 120; for a local model, for ever)",
    )
    command.add_argument(
        "--max-attempts",
        type=_whole(1),
        default=5,
        metavar="N",
        help="how often a call is made that fails for want of a reply (default: 5)",
    )
    _add_seed(command)
    command.add_argument(
        "--sizes",
        type=_whole(0),
        nargs=3,
        default=(20, 20, 50),
        metavar=("TRAIN", "GATE", "TEST"),
        help="examples to train on, to compare states on, and held out (default: 20 20 50)",
    )


def _add_seed(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of every random choice (default: 0)"
    )


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.strip().lstrip("+").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return number


def _number(what: str, most: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not 0 <= found <= most or found == math.inf:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}")
        return found

    return number
