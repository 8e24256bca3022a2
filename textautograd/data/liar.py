"""LIAR: short political statements and how true PolitiFact found them."""

import os
from collections.abc import Mapping
from types import MappingProxyType

from textautograd.data.example import Example
from textautograd.data.published import Published
from textautograd.data.reading import malformed, rows
from textautograd.errors import DataError, UsageError

LABELS = ("pants-fire", "false", "barely-true", "half-true", "mostly-true", "true")
ANSWERS: Mapping[str, str] = MappingProxyType({"true": "Yes", "barely-true": "No"})

_COLUMNS = 14
_LABEL, _STATEMENT = 1, 2
_EXTRA = {"party": 7, "job_title": 5, "state": 6, "source": 13}


class LIAR(Published):
    """Wang 2017 (ACL, P17-2067), splits "train", "valid" and "test", as a sequence of `Example`.

    Reads `<root>/liar/<split>.tsv`; `download=True` fetches it if it is missing (research use
    only). The question is the statement, the answer "Yes" where its label is true and "No" where it
    is barely-true; rows with another label are left out. `extra` holds what the other four analysts
    of Semantic Backpropagation (arXiv 2412.03624) look at: `party`, `job_title`, `state` and
    `source`. The source is the column "context", where the statement was made, as in the paper's
    code; the speaker's name is not used. Also as there, a row is left out where one of the five is
    empty or "none".

    `answers` maps the labels to use to answers. The paper's code picks its labels by the numbers 0
    and 3, which the copy that it loads gives to false and true, and asks whether the statement is a
    lie: `answers={"false": "Yes", "true": "No"}`.

    Raises `DataError` for a missing or malformed file, `UsageError` for answers that cannot be.
    """

    folder = "liar"
    suffix = ".tsv"
    kind = "split"
    names = ("train", "valid", "test")
    content = f"{_COLUMNS} tab-separated columns, without header or quoting, the label second"
    archived = True

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str = "train",
        download: bool = False,
        *,
        answers: Mapping[str, str] = ANSWERS,
    ) -> None:
        texts = isinstance(answers, Mapping) and all(isinstance(a, str) for a in answers.values())
        if not texts or not answers or not set(answers) <= set(LABELS):
            raise UsageError(
                f"LIAR: answers must map some of the labels {', '.join(LABELS)}; got {answers!r}"
            )
        super().__init__(
            root, split, lambda raw, where: _parse(raw, where, answers), download=download
        )


def _parse(raw: bytes, where: str, answers: Mapping[str, str]) -> list[Example]:
    examples = []
    for number, line in rows(raw, where):
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != _COLUMNS:
            raise malformed(
                where, number, f"{_COLUMNS} tab-separated columns, found {len(columns)}"
            )
        label, statement = columns[_LABEL], columns[_STATEMENT]
        if label not in LABELS:
            raise malformed(
                where, number, f"one of {', '.join(LABELS)} in column 2, found {label!r}"
            )
        extra = {name: columns[column] for name, column in _EXTRA.items()}
        if label in answers and all(map(_is_filled, (statement, *extra.values()))):
            examples.append(Example(statement, answers[label], **extra))
    if not examples:
        raise DataError(
            f"{where}: expected at least one row labelled {' or '.join(answers)} with statement, "
            f"{', '.join(_EXTRA)} filled"
        )
    return examples


def _is_filled(value: str) -> bool:
    return "".join(filter(str.isalpha, value)).casefold() not in ("", "none")
