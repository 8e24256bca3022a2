"""The measure of `benchmarks.cost`: replies of fixed length, and the tokens of all that is sent.

Tokens are those of `cl100k_base`, whose vocabulary litellm ships; nothing is fetched. Standard
library and tiktoken only, as every system's environment runs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "seven pears and nine plums are in the basket near the old door of that small house".split()
SIZES = {
    "batch": [1, 2, 4, 8, 16, 32],  # samples of the two-step agent
    "depth": [1, 2, 4, 8, 16],  # steps of a chain, one sample
    "width": [1, 2, 4, 8, 16],  # hints before one answer, one sample
    "question": [10, 100, 1000, 10000],  # words of it, two-step agent, one sample
    "instruction": [10, 100, 1000],  # words of each, two-step agent, one sample
}
PHASES = ["forward", "loss", "backward", "step"]
CRITERION = "The correct answer is 42."
REWRITE = "First read all of it, then say only what was asked."
EXTRACT, ANSWER = "Extract the facts.", "Answer the question."


def text(words: int, about: str = "") -> str:
    """So many words, told apart by what they are about."""
    return " ".join([about] * bool(about) + [WORDS[i % len(WORDS)] for i in range(words)])


def shape(case: str, size: int) -> tuple[list[str], str, str]:
    """The questions of a case of the two-step agent, and its two instructions."""
    extract, answer = EXTRACT, ANSWER
    if case == "instruction":
        extract, answer = f"{EXTRACT} {text(size)}", f"{ANSWER} {text(size)}"
    words = size if case == "question" else 20
    return [text(words, f"{i}:") for i in range(size if case == "batch" else 1)], extract, answer


class Meter:
    """Counts calls and tokens by phase; `said` is what the model says in a phase."""

    def __init__(self) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
        spec = importlib.util.find_spec("litellm")
        assert spec and spec.origin, "litellm, whose vocabulary this counts with, is not installed"
        vocabulary = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
        os.environ["TIKTOKEN_CACHE_DIR"] = str(vocabulary)
        import tiktoken

        self._encoding = tiktoken.get_encoding("cl100k_base")
        self.phase = "forward"
        self._found: dict[str, list[int]] = {phase: [0, 0, 0] for phase in PHASES}

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return len(self._encoding.encode(text, disallowed_special=()))

    def charge(self, prompts: list[str], reply: str) -> str:
        """One call."""
        found = self._found[self.phase]
        found[0] += 1
        found[1] += sum(map(self.count, prompts))
        found[2] += self.count(reply)
        return reply

    def said(self) -> str:
        """A forward output, feedback, a gradient: 20 words of each; a rewrite of 11."""
        return REWRITE if self.phase == "step" else text(20, self.phase)

    def take(self) -> dict[str, list[int]]:
        """Calls, input tokens and output tokens by phase, since the last time."""
        found = self._found
        self._found = {phase: [0, 0, 0] for phase in PHASES}
        return found


def main(run: Callable[[Meter, str, int], None]) -> None:
    """Every case, one JSON line each."""
    meter = Meter()
    for case, sizes in SIZES.items():
        for size in sizes:
            meter.phase = "forward"
            run(meter, case, size)
            line: dict[str, Any] = {"case": case, "size": size, "phases": meter.take()}
            print(json.dumps(line), file=sys.__stdout__, flush=True)
