"""BIG-Bench Hard: 27 tasks on which language models long trailed people."""

import os

from textautograd.data.example import Example
from textautograd.data.published import Published
from textautograd.data.reading import decode, malformed, parse_json, text_field


class BBH(Published):
    """One task of Suzgun et al. 2022 (arXiv 2210.09261), as a sequence of `Example`.

    Reads `<root>/bbh/<task>.json`; `download=True` fetches it if it is missing. Question and answer
    are the file's `input` and `target`, verbatim. There are no published splits: see
    `random_split`. Raises `DataError` for an unknown task and a missing or malformed file.
    """

    folder = "bbh"
    suffix = ".json"
    kind = "task"
    names = (
        "boolean_expressions",
        "causal_judgement",
        "date_understanding",
        "disambiguation_qa",
        "dyck_languages",
        "formal_fallacies",
        "geometric_shapes",
        "hyperbaton",
        "logical_deduction_five_objects",
        "logical_deduction_seven_objects",
        "logical_deduction_three_objects",
        "movie_recommendation",
        "multistep_arithmetic_two",
        "navigate",
        "object_counting",
        "penguins_in_a_table",
        "reasoning_about_colored_objects",
        "ruin_names",
        "salient_translation_error_detection",
        "snarks",
        "sports_understanding",
        "temporal_sequences",
        "tracking_shuffled_objects_five_objects",
        "tracking_shuffled_objects_seven_objects",
        "tracking_shuffled_objects_three_objects",
        "web_of_lies",
        "word_sorting",
    )
    content = '{"examples": [{"input": …, "target": …}, …]} in JSON'

    def __init__(self, root: str | os.PathLike[str], task: str, download: bool = False) -> None:
        super().__init__(root, task, _parse, download=download)


def _parse(raw: bytes, where: str) -> list[Example]:
    document = parse_json(decode(raw, where), where, BBH.content)
    rows = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not rows:
        raise malformed(where, 1, f"{BBH.content}, with at least one example")
    return [_example(row, where, f"example {number}") for number, row in enumerate(rows, start=1)]


def _example(row: object, where: str, place: str) -> Example:
    return Example(text_field(row, "input", where, place), text_field(row, "target", where, place))
