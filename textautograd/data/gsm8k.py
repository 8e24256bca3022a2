"""GSM8K: grade-school mathematics with a number as the answer."""

import os
import re

from textautograd.data.example import Example
from textautograd.data.published import Published
from textautograd.data.reading import malformed, parse_json, rows, text_field


class GSM8K(Published):
    """Cobbe et al. 2021 (arXiv 2110.14168), splits "train" and "test", as a sequence of `Example`.

    Reads `<root>/gsm8k/<split>.jsonl`; `download=True` fetches it if it is missing. The answer is
    what follows `#### `, without thousands separators: "1,080" becomes "1080". The worked solution
    before it is left out. Raises `DataError` for a missing or malformed file.
    """

    folder = "gsm8k"
    suffix = ".jsonl"
    kind = "split"
    names = ("train", "test")
    content = 'one JSON object a line with "question" and "answer"'

    def __init__(
        self, root: str | os.PathLike[str], split: str = "train", download: bool = False
    ) -> None:
        super().__init__(root, split, _parse, download=download)


def _parse(raw: bytes, where: str) -> list[Example]:
    return [_example(line, where, number) for number, line in rows(raw, where)]


def _example(line: str, where: str, number: int) -> Example:
    row = parse_json(line, where, "a JSON object", line=number)
    question = text_field(row, "question", where, number)
    _, marker, gold = text_field(row, "answer", where, number).rpartition("#### ")
    gold = gold.strip()
    if not marker or not gold or "\n" in gold:
        raise malformed(where, number, 'an "answer" whose last line is "#### " and the gold answer')
    return Example(question, re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", gold))
