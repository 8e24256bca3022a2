"""The tasks: data in disjoint parts, a graph, and how outputs are scored."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.paper.graphs import Node, analysts, two_hints
from textautograd import data, tasks
from textautograd.data import Example, random_split
from textautograd.errors import UsageError
from textautograd.settings import digest_of

NUMBER = "Reply with the number in digits and nothing else."
YES_NO = "Reply with Yes or No and nothing else."
FORMATS = {  # what an answer looks like, for runs that state it
    "bbh/boolean_expressions": "Reply with True or False and nothing else.",
    "bbh/causal_judgement": YES_NO,
    "bbh/dyck_languages": "Reply with the missing brackets, separated by spaces, and nothing else.",
    "bbh/formal_fallacies": "Reply with valid or invalid and nothing else.",
    "bbh/multistep_arithmetic_two": NUMBER,
    "bbh/navigate": YES_NO,
    "bbh/object_counting": NUMBER,
    "bbh/sports_understanding": "Reply with yes or no, in small letters, and nothing else.",
    "bbh/web_of_lies": YES_NO,
    "bbh/word_sorting": "Reply with the sorted words, separated by spaces, and nothing else.",
    "gsm8k": NUMBER,
    "liar": YES_NO,
}
CHOICE = "Reply with the letter of the right option in brackets, as in (A), and nothing else."
_CHOICE = re.compile(r"\([A-Z]\)")
BINARY = ("liar",)  # whose labels are reported one by one


@dataclass(frozen=True)
class Questions:
    """A task's parts. `indices` are places in the authors' files: training, gate, held-out."""

    task: str
    train: list[Example]
    val: list[Example]
    test: list[Example]
    indices: dict[str, list[int]]

    @property
    def digest(self) -> str:
        """What tells these questions from others."""
        return digest_of([*self.train, *self.val, *self.test])[:16]

    @property
    def kind(self) -> str:
        return self.task.partition("/")[0]

    def graph(self, reasoning: bool, stated: bool = False) -> list[Node]:
        """The paper's; with `stated` the last instruction says what an answer looks like."""
        nodes = analysts() if self.kind == "liar" else two_hints(reasoning)
        if stated:
            nodes[-1]["instruction"] += f" {self.format}"
        return nodes

    @property
    def format(self) -> str:
        """What an answer looks like.

        Raises:
            UsageError: nothing tells.
        """
        examples = [*self.train, *self.val, *self.test]
        if self.task not in FORMATS and not any(_CHOICE.fullmatch(e.answer) for e in examples):
            raise UsageError(
                f"what an answer to {self.task} looks like is not known: it is no choice like (A), "
                "and FORMATS in benchmarks/paper/questions.py does not say"
            )
        return FORMATS.get(self.task, CHOICE)

    @property
    def extract(self) -> Callable[[str], str]:
        """The output as training and the score called exact compare it with the answer: whole, but
        for space around it; for LIAR, as in the reference, Yes if it begins so."""
        return yes_or_no if self.kind == "liar" else str.strip

    def exact(self, output: str, answer: str) -> bool:
        return self.extract(output) == answer

    def lenient(self, output: str, answer: str) -> bool:
        """The answer is in it: the last one stated, the last choice or number."""
        return tasks.lenient_match(output, answer)


def yes_or_no(output: str) -> str:
    """The reference's reading of a verdict (`data_utils/liar.py`, commit c8af252)."""
    return "Yes" if output.strip().upper().startswith("YES") else "No"


def load(task: str, root: Path, seed: int, sizes: tuple[int, int, int]) -> Questions:
    """A task's questions, from its authors' files under `root`.

    Where `sizes` says how many are held out, these are the same for every seed, and the seed draws
    the others from the rest. With 0 the seed draws the others first, and all that are left are held
    out (GSM8K and LIAR: all of the file that is meant for it), but for those that a file repeats.

    Raises:
        UsageError: there are fewer, or no such task. DataError: a file is missing or malformed.
    """
    pool, held_out = fetch(task, root, download=False)
    train, val, test = sizes
    needed, there = train + val + (test if pool is held_out else 0), len(pool)
    if needed + (pool is held_out and not test) > there or test > len(held_out):
        raise UsageError(
            f"sizes {train}, {val} and {test or 'all others'} are more questions than {task} has: "
            f"{there}" + ("" if pool is held_out else f", and {len(held_out)} to hold out")
        )
    left = list(range(len(pool)))
    chosen: list[int] = []
    if test:
        (chosen,) = random_split(range(len(held_out)), [test], seed=0)
        asked = {held_out[i].question for i in chosen}
        left = [i for i in left if pool[i].question not in asked]  # a file may repeat one
    drawn = random_split(left, [train, val], seed=seed)
    if not test:
        shown = {pool[i].question for part in drawn for i in part}
        chosen = [i for i, held in enumerate(held_out) if held.question not in shown]
    return Questions(
        task,
        [pool[i] for i in drawn[0]],
        [pool[i] for i in drawn[1]],
        [held_out[i] for i in chosen],
        {"train": drawn[0], "val": drawn[1], "test": chosen},
    )


def fetch(
    task: str, root: Path, download: bool = True
) -> tuple[Sequence[Example], Sequence[Example]]:
    """What there is to train on and to hold out, which may be the same; fetched if it is missing.

    Raises:
        UsageError: no such task. DataError: a file is missing, cannot be fetched, or is malformed.
    """
    kind, _, which = task.partition("/")
    if kind == "bbh" and which:
        everything = data.BBH(root, which, download=download)
        return everything, everything
    if task == "gsm8k":
        return data.GSM8K(root, "train", download), data.GSM8K(root, "test", download)
    if task == "liar":
        return (
            data.LIAR(root, "train", download=download),
            data.LIAR(root, "valid", download=download),
        )
    raise UsageError(f"there is no task {task!r}: use bbh/<task>, gsm8k or liar")


def with_wrong_answers(examples: list[Example]) -> list[Example]:
    """The same questions, each with the answer of the next example that has another one."""
    found = []
    for i, example in enumerate(examples):
        later = [*examples[i + 1 :], *examples[:i]]
        wrong = next((e.answer for e in later if e.answer != example.answer), None)
        if wrong is None:
            raise UsageError("all answers are the same: none can be made wrong by another")
        found.append(Example(example.question, wrong, **example.extra))
    return found
