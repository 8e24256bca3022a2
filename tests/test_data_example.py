import copy
import dataclasses
import pickle

import pytest

from textautograd import data
from textautograd.data import Example
from textautograd.errors import UsageError


def test_holds_question_answer_and_the_modules_further_arguments() -> None:
    example = Example("q", answer="a", party="green", self="s")
    assert (example.question, example.answer) == ("q", "a")
    assert example.extra == {"party": "green", "self": "s"}
    assert Example("q", "a").extra == {}


def test_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("q", "a").question = "other"  # type: ignore[misc]


def test_is_compared_by_value_and_hashable_whatever_extra_holds() -> None:
    one, same = Example("q", "a", tags=["x"]), Example("q", "a", tags=["x"])
    assert one == same and hash(one) == hash(same)
    others = [Example("p", "a", tags=["x"]), Example("q", "b", tags=["x"]), Example("q", "a")]
    assert all(one != other for other in others)


@pytest.mark.parametrize(
    "duplicate", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy]
)
def test_survives_pickling_and_copying(duplicate) -> None:  # type: ignore[no-untyped-def]
    example = Example("q", "a", party="green")
    assert duplicate(example) == example


def test_repr_reads_well_and_stays_short() -> None:
    assert repr(Example("q", "a", party="b")) == "Example(question='q', answer='a', party='b')"
    assert len(repr(Example("q" * 10_000, "a"))) < 120


@pytest.mark.parametrize(("question", "answer"), [(1, "a"), ("q", 18), (None, "a"), ("q", b"a")])
def test_other_types_are_refused(question: object, answer: object) -> None:
    with pytest.raises(UsageError, match="must be a str, not"):
        Example(question, answer)  # type: ignore[arg-type]


def test_public_names() -> None:
    assert sorted(data.__all__) == ["BBH", "DataLoader", "Example", "GSM8K", "LIAR", "random_split"]
    assert all(hasattr(data, name) for name in data.__all__)
