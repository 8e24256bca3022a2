"""The paper's tasks: an agent's graph, its data in disjoint parts, and two ways to score an answer.

`bbh/<task>`, `gsm8k` and `liar` are read from their authors' files. The held-out part is the same
for every seed; the seed draws training and gate examples from the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from textautograd import nn
from textautograd.data import BBH, GSM8K, LIAR, Example, random_split
from textautograd.errors import UsageError
from textautograd.variable import TextVariable


class TwoHints(nn.Module):
    """The paper's graph for BBH and GSM8K: two parallel hints, then the answer.

    Unlike in the paper the hints are asked to be short, which small models need.
    """

    def __init__(self, max_tokens: int | None = None) -> None:
        def hint() -> nn.LLM:
            return nn.LLM(
                "Work out an intermediate step that helps solve the problem.",
                output_format="Use at most two short sentences.",
                max_tokens=max_tokens,
            )

        self.hint_1, self.hint_2 = hint(), hint()
        self.solve = nn.LLM("Solve the problem.", max_tokens=max_tokens)

    def forward(self, question: str | TextVariable) -> TextVariable:
        answer: TextVariable = self.solve(
            question=question,
            hint_1=self.hint_1(question=question),
            hint_2=self.hint_2(question=question),
        )
        return answer


class Analysts(nn.Module):
    """The paper's graph for LIAR: five analysts, then Yes (the statement is true) or No."""

    def __init__(self, max_tokens: int | None = None) -> None:
        def analyst(what: str) -> nn.LLM:
            return nn.LLM(f"Analyse what {what} tells about its truth.", max_tokens=max_tokens)

        self.statement = analyst("the statement")
        self.party = analyst("the party of the statement's speaker")
        self.job_title = analyst("the job title of the statement's speaker")
        self.state = analyst("the state of the statement's speaker")
        self.source = analyst("the source of the statement")
        self.decide = nn.LLM("Is the statement true? Answer Yes or No.", max_tokens=max_tokens)

    def forward(
        self,
        question: str | TextVariable,
        party: str,
        job_title: str,
        state: str,
        source: str,
    ) -> TextVariable:
        verdict: TextVariable = self.decide(
            statement=question,
            on_statement=self.statement(statement=question),
            on_party=self.party(statement=question, party=party),
            on_job_title=self.job_title(statement=question, job_title=job_title),
            on_state=self.state(statement=question, state=state),
            on_source=self.source(statement=question, source=source),
        )
        return verdict


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a run needs: a fresh agent, disjoint examples, and the lenient scorer."""

    name: str
    agent: nn.Module
    train: Sequence[Example]
    val: Sequence[Example]
    test: Sequence[Example]


def load(
    name: str,
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    sizes: tuple[int, int, int] = (20, 20, 50),
    max_tokens: int | None = None,
    download: bool = False,
) -> Task:
    """A task by name, with `sizes` = (training, gate, held-out) examples.

    Raises:
        DataError: a file that is missing or malformed.
        UsageError: an unknown task, or more examples wanted than there are.
    """
    kind, _, which = name.partition("/")
    agent: Callable[[int | None], nn.Module] = TwoHints
    pool: Sequence[Example]
    rest: Sequence[Example]
    if kind == "bbh" and which:
        everything = BBH(root, which, download=download)
        _check_enough(everything, sum(sizes), sizes)
        test, rest = random_split(everything, [sizes[2], len(everything) - sizes[2]], seed=0)
    elif kind in ("gsm8k", "liar") and not which:
        read, held_out = (GSM8K, "test") if kind == "gsm8k" else (LIAR, "valid")
        agent = TwoHints if kind == "gsm8k" else Analysts
        rest = read(root, "train", download=download)
        pool = read(root, held_out, download=download)
        _check_enough(rest, sizes[0] + sizes[1], sizes)
        _check_enough(pool, sizes[2], sizes)
        (test,) = random_split(pool, [sizes[2]], seed=0)
    else:
        raise UsageError(f"there is no task {name!r}: use bbh/<task>, gsm8k or liar")
    train, val = random_split(rest, [sizes[0], sizes[1]], seed=seed)
    return Task(name, agent(max_tokens), train, val, test)


def _check_enough(there: Sequence[Example], wanted: int, sizes: tuple[int, int, int]) -> None:
    if wanted > len(there):
        raise UsageError(f"{there!r} are too few: sizes={sizes} takes {wanted} of them")


def lenient(output: str) -> str:
    """The answer in a free-form output: after the last "answer", else the last choice or number.

    Beside exact match it tells an agent that does not know from one that does not say it so.
    """
    return _last_answer(_stated(output)) or _last_answer(output) or _plain(output)


def lenient_match(output: str, target: str) -> bool:
    """Whether an output's answer is the target's.

    Of a choice, as (A), the letter counts, with brackets or without; of numbers, yes, no, true and
    false the one that `lenient` finds; what is none of these, as a sorted list or brackets, must be
    what the output ends with, or what comes right after its last "answer".
    """
    if choice := _CHOICE.fullmatch(target.strip()):
        return _choice(output) == choice[1].upper()
    if _last_answer(target) is not None:
        return lenient(output) == lenient(target)
    wanted = _plain(target)
    ends = rf"(?:^|.*[\s:*\"'`]){re.escape(wanted)}"
    begins = rf"{re.escape(wanted)}(?:$|[\s.,;*\"'`].*)"
    return any(re.fullmatch(ends, _plain(text)) for text in (output, _stated(output))) or bool(
        re.fullmatch(begins, _plain(_stated(output)))
    )


_CHOICE = re.compile(r"\(([A-Za-z])\)")
_BARE = re.compile(r"\W*([A-Z])\b(?!['\w]|\s+[a-z])")  # no article, nor a word's beginning


def _choice(output: str) -> str | None:
    """The letter of an output's choice."""
    for text in (_stated(output), output):
        if found := _CHOICE.findall(text):
            return str(found[-1]).upper()
        if bare := _BARE.match(text):
            return bare[1]
    return None


def _stated(output: str) -> str:
    """What follows the last "answer" on its line, if anything does."""
    found = re.findall(r"answer(?:\s+is)?(?:\s*:\s*|\s+)(.+)", output, re.IGNORECASE)
    return found[-1] if found else ""


def _plain(text: str) -> str:
    """Small letters, one space or comma as good as another, and no quotes or stop around it."""
    return re.sub(r"[\s,]+", " ", text).strip(" .*\"'`").lower()


def _last_answer(text: str) -> str | None:
    found = re.findall(r"\(([A-Za-z])\)|(-?\d[\d,]*(?:\.\d+)?)|\b(yes|no|true|false)\b", text, re.I)
    if not found:
        return None
    choice, number, word = found[-1]
    if number:
        whole, _, fraction = number.replace(",", "").partition(".")
        digits = whole.lstrip("-").lstrip("0") or "0"
        rest = fraction.rstrip("0")
        sign = "-" if whole.startswith("-") and (digits != "0" or rest) else ""
        return f"{sign}{digits}.{rest}" if rest else sign + digits
    return f"({choice.upper()})" if choice else word.lower()
