import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textautograd.data import BBH, GSM8K, LIAR, Example
from textautograd.errors import DataError, UsageError

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "data"


def write(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def gsm8k_row(answer: str = "2 + 2 = 4\n#### 4", question: str = "How many?") -> str:
    return json.dumps({"question": question, "answer": answer})


def liar_row(
    label: str = "true",
    statement: str = "Taxes fell.",
    job_title: str = "Senator",
    state: str = "Texas",
    party: str = "republican",
    source: str = "a speech",
) -> str:
    row = ["1.json", label, statement, "taxes", "the-speaker", job_title, state, party]
    return "\t".join([*row, "1", "2", "3", "4", "5", source])


# GSM8K


def test_gsm8k_answers_are_what_follows_the_mark(tmp_path: Path) -> None:
    golds = ["18", "1,080", "1,234,567", "-10", "0.5", "12,5", " 7 "]
    lines = [gsm8k_row(f"It is #### hard,\n1,000 steps\n#### {gold}") for gold in golds]
    dataset = GSM8K(write(tmp_path, "gsm8k/test.jsonl", "\n".join(lines) + "\n"), "test")
    assert [ex.answer for ex in dataset] == ["18", "1080", "1234567", "-10", "0.5", "12,5", "7"]
    assert all(ex.question == "How many?" and ex.extra == {} for ex in dataset)


def test_lines_end_in_lf_or_crlf_and_nowhere_else(tmp_path: Path) -> None:
    questions = ["one\u2028line", "two\x85", "three\x0b\x0c"]
    lines = [
        json.dumps({"question": question, "answer": "#### 1"}, ensure_ascii=False)
        for question in questions[:2]
    ]
    lines.append(gsm8k_row("#### 1", questions[2]))
    root = write(tmp_path, "gsm8k/train.jsonl", "\r\n".join(["", *lines, "", ""]))
    assert [ex.question for ex in GSM8K(root)] == questions


BAD_GSM8K = [
    (gsm8k_row() + "\n{", "line 2: expected a JSON object; Expecting property name"),
    (gsm8k_row() + "\n\n[1]", 'line 3: expected a JSON object with a non-empty string "question"'),
    ('{"answer": "#### 1"}', "line 1: .*\"question\", found the keys 'answer'"),
    ("{}", "line 1: .*found the keys none"),
    ('{"question": 5, "answer": "#### 1"}', r"line 1: .*found '5' \(int\)"),
    ('{"question": " ", "answer": "#### 1"}', 'line 1: .*non-empty string "question"'),
    ('{"question": "q", "answer": null}', r"line 1: .*\"answer\", found 'None' \(NoneType\)"),
    (gsm8k_row("4"), 'line 1: expected an "answer" whose last line is "#### "'),
    (gsm8k_row("####4"), 'line 1: expected an "answer" whose last line is "#### "'),
    (gsm8k_row("#### "), 'line 1: expected an "answer" whose last line is "#### "'),
    (gsm8k_row("#### 4\nor 5"), 'line 1: expected an "answer" whose last line is "#### "'),
    ("[" * 100_000, "line 1: expected a JSON object; "),
    ("1" * 10_000, "line 1: expected a JSON object; "),
]
BAD_ENCODING = [
    (b"", "line 1: expected rows, but the file is empty"),
    (b"\n \n", "line 1: expected rows, but the file is empty"),
    (b"\xef\xbb\xbf" + gsm8k_row().encode(), "line 1: .*byte order mark"),
    (gsm8k_row().encode() + b"\n\xff\n", "line 2: expected UTF-8, found byte 0xff"),
    (gsm8k_row().encode("utf-16"), "line 1: expected UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), [*BAD_GSM8K, *BAD_ENCODING])
def test_gsm8k_names_file_line_and_what_it_expected(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    root = write(tmp_path, "gsm8k/train.jsonl", content)
    with pytest.raises(DataError, match=r"gsm8k.train\.jsonl, " + message):
        GSM8K(root)


# BBH


def test_bbh_keeps_input_and_target_as_they_are(tmp_path: Path) -> None:
    rows = [{"input": "Is it?\n(A) a", "target": "(A)"}, {"input": "[ {", "target": "} ]"}]
    content = json.dumps({"canary": "…", "examples": rows}, indent=1).replace("\n", "\r\n")
    dataset = BBH(write(tmp_path, "bbh/dyck_languages.json", content), "dyck_languages")
    assert list(dataset) == [Example("Is it?\n(A) a", "(A)"), Example("[ {", "} ]")]
    assert repr(dataset) == "BBH('dyck_languages', 2 examples)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"examples":\n [}', r"line 2: expected \{\"examples\""),
        ("[]", "line 1: .*with at least one example"),
        ('{"examples": []}', "line 1: .*with at least one example"),
        ('{"examples": {"input": "q"}}', "line 1: .*with at least one example"),
        ('{"examples": [{"input": "q", "target": "a"}, 3]}', r"example 2: .*found '3' \(int\)"),
        ('{"examples": [{"input": "q"}]}', "example 1: .*\"target\", found the keys 'input'"),
        ('{"examples": [{"input": "q", "target": 8}]}', r"example 1: .*found '8' \(int\)"),
        *BAD_ENCODING,
    ],
)
def test_bbh_names_file_place_and_what_it_expected(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    root = write(tmp_path, "bbh/snarks.json", content)
    with pytest.raises(DataError, match=r"bbh.snarks\.json, " + message):
        BBH(root, "snarks")


def test_an_unknown_task_lists_what_there_is(tmp_path: Path) -> None:
    write(tmp_path, "bbh/my_task.json", "{}")
    with pytest.raises(DataError) as caught:
        BBH(tmp_path, "navigat", download=True)
    message = str(caught.value)
    assert "BBH has no task 'navigat'. Did you mean 'navigate'?" in message
    assert f"In {tmp_path / 'bbh'}: my_task." in message
    assert len(set(BBH.names)) == 27 and all(name in message for name in BBH.names)


def test_a_task_of_ones_own_is_read(tmp_path: Path) -> None:
    content = '{"examples": [{"input": "q", "target": "a"}]}'
    assert len(BBH(write(tmp_path, "bbh/my_task.json", content), "my_task")) == 1


# LIAR


def test_liar_asks_whether_the_statement_is_true(tmp_path: Path) -> None:
    labels = ["true", "barely-true", "false", "half-true", "mostly-true", "pants-fire"]
    rows = [liar_row(label, f"It is {label}.") for label in labels]
    dataset = LIAR(write(tmp_path, "liar/valid.tsv", "\n".join(rows)), "valid")
    extra = {
        "party": "republican",
        "job_title": "Senator",
        "state": "Texas",
        "source": "a speech",
    }
    assert list(dataset) == [
        Example("It is true.", "Yes", **extra),
        Example("It is barely-true.", "No", **extra),
    ]


def test_liar_with_other_labels(tmp_path: Path) -> None:
    rows = [liar_row("false"), liar_row("true"), liar_row("barely-true")]
    root = write(tmp_path, "liar/train.tsv", "\n".join(rows))
    answers = {"false": "Yes", "true": "No"}
    assert [ex.answer for ex in LIAR(root, answers=answers)] == ["Yes", "No"]


def test_liar_has_no_quoting(tmp_path: Path) -> None:
    statements = ['"Half a quote', 'He said "no" and ""left', "It's"]
    rows = [liar_row(statement=statement, source='" an email ') for statement in statements]
    dataset = LIAR(write(tmp_path, "liar/train.tsv", "\r\n".join(rows) + "\r\n"))
    assert [ex.question for ex in dataset] == statements
    assert {ex.extra["source"] for ex in dataset} == {'" an email'}


@pytest.mark.parametrize("field", ["statement", "job_title", "state", "party", "source"])
@pytest.mark.parametrize("value", ["", " ", "none", "None", "-"])
def test_liar_leaves_out_rows_with_a_field_not_filled(
    tmp_path: Path, field: str, value: str
) -> None:
    rows = [liar_row(**{field: value}), liar_row(statement="Filled.")]
    dataset = LIAR(write(tmp_path, "liar/train.tsv", "\n".join(rows)))
    assert [ex.question for ex in dataset] == ["Filled."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (liar_row() + "\n" + liar_row()[:-12], ", line 2: expected 14 tab-sep.*, found 12"),
        (liar_row() + "\textra", ", line 1: expected 14 tab-separated columns, found 15"),
        (liar_row("TRUE"), ", line 1: expected one of pants-fire, .* in column 2, found 'TRUE'"),
        (liar_row("half-true"), ": expected at least one row labelled true or barely-true"),
        (liar_row(party="none"), ": expected at least one row labelled true or barely-true"),
        *[(content, ", " + message) for content, message in BAD_ENCODING],
    ],
)
def test_liar_names_file_line_and_what_it_expected(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    root = write(tmp_path, "liar/train.tsv", content)
    with pytest.raises(DataError, match=r"liar.train\.tsv" + message):
        LIAR(root)


@pytest.mark.parametrize("answers", [{}, {"True": "Yes"}])
def test_liar_answers_must_be_for_its_labels(tmp_path: Path, answers: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="answers must map some of the labels"):
        LIAR(tmp_path, answers=answers)


# All of them

Open = Callable[..., Any]
ALL: list[tuple[Open, str, str]] = [
    (GSM8K, "train", "gsm8k/train.jsonl"),
    (BBH, "navigate", "bbh/navigate.json"),
    (LIAR, "train", "liar/train.tsv"),
]


@pytest.mark.parametrize(("dataset", "name", "file"), ALL)
def test_a_missing_file_says_what_belongs_there_and_how_to_get_it(
    tmp_path: Path, dataset: Open, name: str, file: str
) -> None:
    with pytest.raises(DataError) as caught:
        dataset(tmp_path, name)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / file}: no such file. Expected there: ")
    assert "https://" in message and "Pass download=True" in message


@pytest.mark.parametrize(("dataset", "name", "file"), ALL)
@pytest.mark.parametrize("wrong", ["trian", "../train", "a/b", "", ".", "train\n", "{name}"])
def test_a_name_that_is_no_file_name_is_never_opened_or_fetched(
    tmp_path: Path, dataset: Open, name: str, file: str, wrong: str
) -> None:
    folder, suffix = (tmp_path / file).parent, Path(file).suffix
    if wrong != "trian":
        write(folder, f"{wrong}{suffix}", "what must not be read")
    with pytest.raises(DataError, match=r"has no (split|task) .* Published: .*"):
        dataset(tmp_path, wrong, download=True)


@pytest.mark.parametrize(("dataset", "name", "file"), ALL)
def test_arguments_of_other_types(tmp_path: Path, dataset: Open, name: str, file: str) -> None:
    with pytest.raises(UsageError, match="root must be a path, not NoneType"):
        dataset(None, name)
    with pytest.raises(UsageError, match=r"(split|task) must be a str, not int"):
        dataset(tmp_path, 3)


@pytest.mark.parametrize(("dataset", "name", "file"), ALL)
def test_a_folder_in_the_files_place(tmp_path: Path, dataset: Open, name: str, file: str) -> None:
    (tmp_path / file).mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read"):
        dataset(tmp_path, name)


def test_datasets_are_sequences(tmp_path: Path) -> None:
    lines = [gsm8k_row(f"#### {number}") for number in range(5)]
    dataset = GSM8K(str(write(tmp_path, "gsm8k/train.jsonl", "\n".join(lines))))
    assert len(dataset) == 5
    assert dataset[-1].answer == "4"
    assert [ex.answer for ex in dataset[1:4:2]] == ["1", "3"]
    assert dataset[2] in dataset and dataset.index(dataset[2]) == 2
    with pytest.raises(IndexError):
        dataset[5]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the authors' files are not here")
class TestPublishedFiles:
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_gsm8k(self, split: str) -> None:
        dataset = GSM8K(PUBLISHED, split)
        assert len(dataset) > 0
        assert all(float(ex.answer) is not None and ex.question.strip() for ex in dataset)

    @pytest.mark.parametrize(
        "path", sorted(PUBLISHED.glob("bbh/*.json")), ids=lambda path: path.stem
    )
    def test_bbh(self, path: Path) -> None:
        dataset = BBH(PUBLISHED, path.stem)
        assert len(dataset) > 0
        assert path.stem in BBH.names
        assert all(ex.question.strip() and ex.answer == ex.answer.strip() != "" for ex in dataset)

    @pytest.mark.parametrize("split", ["train", "valid"])
    def test_liar(self, split: str) -> None:
        dataset = LIAR(PUBLISHED, split)
        assert {ex.answer for ex in dataset} == {"Yes", "No"}
        assert all(set(ex.extra) == {"party", "job_title", "state", "source"} for ex in dataset)
        assert all(value.strip() for ex in dataset for value in ex.extra.values())
        assert any('"' in ex.question for ex in dataset)
        parties = {ex.extra["party"] for ex in dataset}
        assert {"republican", "democrat"} <= parties and "none" not in parties


@pytest.mark.parametrize("answers", [["true"], "true", {"true": 3}, {}, {"maybe": "Yes"}, None])
def test_answers_that_cannot_be_are_refused_before_any_file_is_read(answers: Any) -> None:
    with pytest.raises(UsageError, match="answers must map"):
        LIAR("/nowhere", answers=answers)
