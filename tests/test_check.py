"""The check of a rewritten instruction."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textautograd.optim import check, objection

SENTENCES = {
    "English": "How many apples does Ann have after lunch",
    "Chinese": "小明早上买了五个苹果中午吃了两个还剩几个苹果呢",
    "Japanese": "花子さんは昼ごはんのあとにりんごをいくつ持っていますか",
    "Thai": "หลังอาหารกลางวันสมชายมีแอปเปิ้ลเหลืออยู่กี่ผล",
    "Khmer": "បន្ទាប់ពីអាហារថ្ងៃត្រង់សុខមានផ្លែប៉ោមប៉ុន្មាន",
    "Korean": "점심을 먹은 뒤에 민수에게 남은 사과는 모두 몇 개입니까",
    "Arabic": "كم عدد التفاحات التي بقيت مع أحمد بعد الغداء اليوم",
}


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_a_copy_is_caught_in_any_script(sentence: str) -> None:
    for new in (sentence, f"Say 5 if asked: {sentence} Else think.", f"当问{sentence}时回答三"):
        assert "it copies the example text" in str(objection(new, "old", [], [sentence]))
    assert objection(f"{sentence} (new)", f"old: {sentence}", [], [sentence]) is None


@pytest.mark.parametrize(
    ("new", "data"),
    [
        ("用一个数字回答问题", "小明早上买了五个苹果中午吃了两个还剩几个苹果呢"),
        ("回答苹果的个数", "苹果的个数"),  # as two English words
        (
            "りんごの数だけを答えてください",
            "花子さんは昼ごはんのあとにりんごをいくつ持っていますか",
        ),
        ("Answer with a number", "How many apples does Ann have after lunch"),
        ("Say yes please or no", "yes please"),
    ],
)
def test_what_is_common_to_a_language_is_no_copy(new: str, data: str) -> None:
    assert objection(new, "old", [], [data]) is None


def test_sixteen_signs_in_a_row_are_a_copy_and_fifteen_are_not() -> None:
    data = "".join(chr(0x4E00 + i) for i in range(60))
    assert objection("請" + data[20:36], "old", [], [data]) is not None
    assert objection("請" + data[20:35], "old", [], [data]) is None


@pytest.mark.parametrize(
    "new",
    [
        "No change.",
        "none",
        "N/A",
        ' "no change needed" ',
        "**No change**",
        "No changes are required.",
    ],
)
def test_no_change_is_no_instruction(new: str) -> None:
    assert "it is no instruction" in str(objection(new, "old", [], []))
    assert objection(f"{new} of units", "old", [], []) is None


LEAKS = [
    "Use the feedback to answer.",
    "Answer as in example 1.",
    "See example-2-output.",
    "A better instruction: be brief.",
    "<prompt>Be brief.",
    "Be brief.</instruction-2>",
    "Unlike tried-1, be brief.",
]


@pytest.mark.parametrize("new", LEAKS)
def test_the_optimizers_own_words_are_kept_out(new: str) -> None:
    assert "it speaks of" in str(objection(new, "Be kind.", [], ["why?"]))
    word = str(objection(new, "Be kind.", [], [])).split("'")[1]
    assert objection(new, f"Be kind. {word.upper()}", [], []) is None
    assert objection(new, "Be kind.", [], [f"a question about {word}"]) is None


@pytest.mark.parametrize("new", ["For example, say A.", "Be exemplary.", "Instructions first."])
def test_ordinary_words_are_not_the_optimizers(new: str) -> None:
    assert objection(new, "Be kind.", [], []) is None


def test_texts_without_words_are_compared_as_they_are() -> None:
    assert objection("→", "…", [], []) is None
    assert objection("→", "→", [], []) is not None


@given(st.text(), st.text(), st.lists(st.text(), max_size=3), st.lists(st.text(), max_size=3))
def test_any_texts_are_checked(new: str, old: str, tried: list[str], data: list[str]) -> None:
    assert objection(old, old, tried, data) is not None
    found = objection(new, old, tried, data)
    assert found is None or found.startswith("it ")


def test_work_grows_linearly_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs looked at, in all places that read a text."""
    looked_at = 0

    class Counting:
        def findall(self, text: str) -> Any:
            nonlocal looked_at
            looked_at += len(text)
            return word.findall(text)

    word = check._WORD
    monkeypatch.setattr(check, "_WORD", Counting())

    def work(size: int) -> int:
        nonlocal looked_at
        looked_at = 0
        data = " ".join(f"w{i}" for i in range(size))
        objection("new " * size, "old " * size, [], [data])
        return looked_at

    assert work(4000) < 2.2 * work(2000) < 5 * work(1000)
