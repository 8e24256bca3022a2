"""A gradient is a rope: it behaves as the list of its feedbacks, and shares its parts."""

import copy
import operator
import pickle
from functools import reduce
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd.gradient import Feedback, Gradient, as_gradient

texts = st.text(max_size=5)
feedbacks = st.builds(
    Feedback,
    texts,
    inputs=st.none() | st.dictionaries(texts, texts, max_size=2),
    output=st.none() | texts,
)
leaves = st.lists(feedbacks, max_size=3).map(lambda fs: (Gradient(fs), fs))


def joined(left: Any, right: Any) -> Any:
    return left[0] + right[0], left[1] + right[1]


# (a rope of any shape, the list it stands for)
ropes = st.recursive(leaves, lambda part: st.builds(joined, part, part), max_leaves=8)
indices = st.integers(-12, 12)


@given(ropes)
def test_a_rope_is_the_list_of_its_feedbacks(rope: Any) -> None:
    gradient, expected = rope
    assert list(gradient) == expected
    assert len(gradient) == len(expected)
    assert bool(gradient) == bool(expected)
    assert list(reversed(gradient)) == expected[::-1]


@given(ropes, ropes)
def test_adding_is_concatenation(left: Any, right: Any) -> None:
    assert list(left[0] + right[0]) == left[1] + right[1]
    assert list(left[0]) == left[1]  # neither part has changed


@given(ropes, ropes, ropes)
def test_adding_is_associative_and_the_empty_gradient_its_unit(a: Any, b: Any, c: Any) -> None:
    assert (a[0] + b[0]) + c[0] == a[0] + (b[0] + c[0])
    assert a[0] + Gradient() == a[0] == Gradient() + a[0]


@given(ropes, indices)
def test_indexing_is_the_lists(rope: Any, index: int) -> None:
    gradient, expected = rope
    if -len(expected) <= index < len(expected):
        assert gradient[index] == expected[index]
    else:
        with pytest.raises(IndexError):
            gradient[index]


@given(ropes, *[st.none() | indices] * 2, st.none() | indices.filter(bool))
def test_slicing_is_the_lists(rope: Any, start: Any, stop: Any, step: Any) -> None:
    gradient, expected = rope
    assert list(gradient[start:stop:step]) == expected[start:stop:step]


@given(ropes, ropes)
def test_equal_as_lists_and_hashed_alike(left: Any, right: Any) -> None:
    assert (left[0] == right[0]) == (left[1] == right[1])
    flat = Gradient(left[1])
    assert flat == left[0]
    assert hash(flat) == hash(left[0])


def test_equal_whatever_the_kind_and_order_of_inputs() -> None:
    one = Gradient([Feedback("f", inputs={"a": "1", "b": "2"})])
    other = Gradient([Feedback("f", inputs=MappingProxyType({"b": "2", "a": "1"}))])
    assert one == other
    assert hash(one) == hash(other)
    assert one != Gradient([Feedback("f", inputs={"a": "1"})])


def test_equal_to_no_other_type() -> None:
    gradient = Gradient(["f"])
    assert gradient != [Feedback("f")]
    assert gradient != "f"
    assert gradient != Gradient()


def doubled(times: int) -> Gradient:
    gradient = Gradient(["first", "last"])
    for _ in range(times):
        gradient = gradient + gradient
    return gradient


def test_sixty_doublings_cost_nothing_until_they_are_read() -> None:
    gradient = doubled(59)
    assert len(gradient) == 2**60
    assert gradient[0].text == "first"
    assert gradient[2**59 + 1].text == "last"
    assert gradient[-1].text == "last"
    assert [f.text for f in gradient[2**59 - 1 : 2**59 + 2]] == ["last", "first", "last"]
    assert [f.text for f in gradient[-1:-4:-1]] == ["last", "first", "last"]
    assert [f.text for f in gradient[:: 2**59]] == ["first", "first"]
    assert next(iter(gradient)).text == "first"
    assert repr(gradient) == f"Gradient(['first', 'last', 'first', …], {2**60} in all)"
    assert gradient == gradient
    assert bool(doubled(100))


def test_neither_depth_nor_length_meets_recursion() -> None:
    parts = [Gradient([str(i)]) for i in range(20_000)]
    left = reduce(operator.add, parts)
    right = reduce(lambda rope, part: part + rope, reversed(parts))
    expected = [str(i) for i in range(20_000)]
    assert [f.text for f in left] == [f.text for f in right] == expected
    assert left == right
    assert left[:] == tuple(left)
    assert left[19_999].text == right[19_999].text == "19999"
    for gradient in (left, right):
        assert pickle.loads(pickle.dumps(gradient)) == gradient
        assert copy.deepcopy(gradient) == gradient
    del left, right, parts


@given(ropes)
def test_pickle_and_deepcopy_keep_it(rope: Any) -> None:
    for copied in (pickle.loads(pickle.dumps(rope[0])), copy.deepcopy(rope[0])):
        assert copied == rope[0]
        assert list(copied) == rope[1]


@given(ropes, ropes)
def test_distinct_is_each_feedback_once_where_it_comes_first(left: Any, right: Any) -> None:
    shared = joined(joined(left, right), joined(right, joined(left, left)))
    assert list(shared[0].distinct()) == list(dict.fromkeys(shared[1]))


def test_distinct_takes_a_part_that_is_shared_once() -> None:
    assert [f.text for f in doubled(59).distinct()] == ["first", "last"]


def test_reads_well() -> None:
    assert str(Gradient()) == ""
    assert str(Gradient(["be brief"])) == "be brief"
    assert str(Gradient(["be brief", "say why"])) == "- be brief\n- say why"
    assert repr(Gradient(["be brief"])) == "Gradient(['be brief'], 1 in all)"


def test_made_of_texts_too() -> None:
    assert Gradient("be brief") == Gradient(["be brief"]) == Gradient([Feedback("be brief")])
    assert as_gradient("be brief") == Gradient(["be brief"])
    gradient = Gradient(["be brief"])
    assert as_gradient(gradient) is gradient


def test_immutable() -> None:
    gradient = Gradient(["f"])
    with pytest.raises(TypeError):
        gradient[0] = Feedback("g")  # type: ignore[index]
    with pytest.raises(AttributeError):
        gradient[0].text = "g"  # type: ignore[misc]
    source = [Feedback("f")]
    taken = Gradient(source)
    source.append(Feedback("g"))
    assert len(taken) == 1


@pytest.mark.parametrize("wrong", [5, None, [5], [None], [["f"]]])
def test_wrong_types_are_usage_errors(wrong: Any) -> None:
    with pytest.raises(ta.errors.UsageError):
        Gradient(wrong)


@pytest.mark.parametrize("wrong", [5, None, ["f"], Feedback("f")])
def test_only_a_text_or_a_gradient_is_taken_for_one(wrong: Any) -> None:
    with pytest.raises(ta.errors.UsageError, match=type(wrong).__name__):
        as_gradient(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": "text"},
        {"inputs": [("q", "a")]},
        {"inputs": {3: "a"}},
        {"inputs": {"q": 3}},
        {"inputs": {"q": ta.TextVariable("a")}},
        {"output": 3},
        {"output": ta.TextVariable("a")},
    ],
)
def test_what_a_feedback_is_about_is_text(wrong: Any) -> None:
    with pytest.raises(ta.errors.UsageError, match="a feedback's"):
        ta.Feedback("text", **wrong)
    ta.Feedback("text", inputs={}, output="")


def test_a_feedback_is_a_text() -> None:
    with pytest.raises(ta.errors.UsageError, match="int"):
        Feedback(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Gradient(["f"]) + "g"  # type: ignore[operator]
