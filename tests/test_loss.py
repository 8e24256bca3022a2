"""Losses: a number, its feedback, and no gradient at the minimum."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import errors, nn
from textautograd.engines import Reply, Request, Scripted

LEAF = "some output"


def leaf(text: str = LEAF) -> ta.TextVariable:
    return ta.TextVariable(text, requires_grad=True)


# ExactMatchLoss


@given(st.text(), st.text())
def test_exact_match_is_equality_of_the_whole_text(output: str, target: str) -> None:
    x = leaf(output)
    loss = nn.ExactMatchLoss()(x, target)
    loss.backward()
    if output == target:
        assert loss.item() == 0.0 and x.grad is None
    else:
        assert loss.item() == 1.0
        said = f'The expected output is: "{target}".'
        assert x.grad == ta.Gradient([ta.Feedback(said, output=output)])


def test_exact_match_does_not_forgive_white_space_or_case() -> None:
    loss = nn.ExactMatchLoss()
    assert [loss(x, "Yes").item() for x in ("Yes", "yes", "Yes ", "Yes.")] == [0, 1, 1, 1]


def test_extract_finds_the_answer() -> None:
    loss = nn.ExactMatchLoss(extract=lambda text: text.split()[-1])
    x = leaf("so it is 4")
    assert loss(x, "4").item() == 0
    wrong = loss(x, "5")
    wrong.backward()
    assert str(x.grad) == 'The expected output is: "5".'
    assert x.grad is not None and x.grad[0].output == "so it is 4"


def test_extract_that_finds_nothing_is_a_wrong_answer() -> None:
    loss: Any = nn.ExactMatchLoss(extract=lambda text: None)  # type: ignore[arg-type,return-value]
    assert loss("4", "4").item() == 1.0


def test_extract_never_runs_on_the_loop() -> None:
    async def answer(request: Request) -> str:
        threads["loop"] = threading.current_thread()
        await asyncio.sleep(0)
        return "4"

    threads: dict[str, threading.Thread] = {}
    other = nn.LLM("Say it.").to(Scripted(answer))

    def extract(text: str) -> str:
        threads["extract"] = threading.current_thread()
        return str(other(text))  # reads a pending value, which the loop must be free to compute

    output = nn.LLM("Solve it.").to(Scripted(answer))("why?")
    assert nn.ExactMatchLoss(extract)(output, "4").item() == 0
    assert threads["extract"] is not threads["loop"]


def test_what_extract_raises_surfaces_where_the_loss_is_read() -> None:
    def extract(text: str) -> str:
        raise KeyError("no answer in there")

    loss = nn.ExactMatchLoss(extract)(leaf(), "4")
    with pytest.raises(KeyError, match="no answer in there") as caught:
        loss.item()
    assert any(__file__ in note for note in caught.value.__notes__)


@pytest.mark.parametrize(("output", "target"), [("a", 4), ("a", None), (4, "4"), (None, "4")])
def test_exact_match_takes_texts(output: Any, target: Any) -> None:
    with pytest.raises(errors.UsageError):
        nn.ExactMatchLoss()(output, target)


# JudgeLoss


def judging(*replies: str | Reply) -> Scripted:
    left = iter(replies)
    return Scripted(lambda request: next(left))


def verdict(score: Any, feedback: Any = "be shorter") -> str:
    return json.dumps({"feedback": feedback, "score": score})


@given(st.floats(0, 1))
def test_one_call_gives_score_and_feedback_and_backward_needs_no_other(score: float) -> None:
    engine = judging(verdict(score))
    x = leaf()
    loss = nn.JudgeLoss("Be brief.", engine=engine)(x)
    assert loss.item() == 1 - score
    loss.backward()
    (call,) = engine.calls
    assert (call.purpose, call.temperature) == ("judge", 0.0)
    if 1 - score == 0:
        assert x.grad is None
    else:
        assert x.grad == ta.Gradient([ta.Feedback("be shorter", output=LEAF)])


def test_the_judge_sees_criterion_target_and_output() -> None:
    engine = judging(verdict(0))
    nn.JudgeLoss("Be brief.", engine=engine)("the output", "the target").item()
    system, user = (message["content"] for message in engine.calls[0].messages)
    assert system.endswith("The criterion:\nBe brief.")
    assert user.startswith(
        "<expected>\nthe target\n</expected>\n\n<output>\nthe output\n</output>\n\n"
        "Reply with one JSON object."
    )
    assert engine.calls[0].schema is not None
    assert list(engine.calls[0].schema["properties"]) == ["feedback", "score"]


BAD = [
    verdict(1.5),
    verdict(-1),
    verdict("good"),
    verdict(True),
    verdict(None),
    verdict(0.5, ""),
    verdict(0.5, None),
    '{"score": 0.5}',
    '{"feedback": "x", "score": NaN}',
    "8/10, nice",
    "",
    Reply(verdict(0.5), finish_reason="length"),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_score_is_repaired_once(bad: str | Reply) -> None:
    engine = judging(bad, verdict(0.25))
    assert nn.JudgeLoss("Be brief.", engine=engine)(leaf()).item() == 0.75
    assert "This reply cannot be used" in engine.calls[1].messages[-1]["content"]

    engine = judging(bad, bad)
    loss = nn.JudgeLoss("Be brief.", engine=engine)(leaf())
    with pytest.raises(errors.ReplyError, match="judge reply cannot be used"):
        loss.item()
    assert len(engine.calls) == 2


@pytest.mark.parametrize("feedback", ["", "  ", None])
@pytest.mark.parametrize("score", [1, 1.0, "1"])
def test_a_perfect_score_needs_no_feedback(feedback: Any, score: Any) -> None:
    engine, x = judging(verdict(score, feedback)), leaf()
    loss = nn.JudgeLoss("Be brief.", engine=engine)(x)
    loss.backward()
    assert loss.item() == 0 and x.grad is None and len(engine.calls) == 1


def test_a_judge_without_schemas_answers_between_tags() -> None:
    engine = judging("Hm.\n<feedback>be shorter</feedback>\n<score> 0.5 </score>")
    engine.structured = "tagged"  # type: ignore[attr-defined]
    assert nn.JudgeLoss("Be brief.", engine=engine)(leaf()).item() == 0.5


def test_a_judge_takes_the_contexts_engine() -> None:
    engine = judging(verdict(1))
    with ta.use_engine(engine):
        assert nn.JudgeLoss("Be brief.")(leaf()).item() == 0
    assert len(engine.calls) == 1


def test_judges_of_a_batch_run_together() -> None:
    together = asyncio.Barrier(3)

    async def answer(request: Request) -> str:
        async with asyncio.timeout(60):
            await together.wait()
        return verdict(0)

    loss = nn.JudgeLoss("Be brief.", engine=Scripted(answer))
    assert ta.mean([loss(leaf(str(i))) for i in range(3)]).item() == 1


# FunctionLoss


@pytest.mark.parametrize("right", [True, False])
def test_a_bool_is_no_loss(right: bool) -> None:
    loss = nn.FunctionLoss(lambda output, target: (right, "feedback"))("a", "a")
    with pytest.raises(errors.UsageError, match="0 is perfect"):
        loss.item()


@pytest.mark.parametrize("loss", [0, 0.5, 3, 1e300])
def test_a_function_gives_a_number_and_says_why(loss: Any) -> None:
    found = nn.FunctionLoss(lambda output, target: (loss, f"{output}, {target}"))("a", "b")
    assert found.item() == loss and str(found) == "a, b"


@pytest.mark.parametrize(
    "returned",
    [
        (10**400, "x"),
        (-(10**400), "x"),
        (float("nan"), "x"),
        (float("inf"), "x"),
        (-0.1, "x"),
        ("0", "x"),
        (None, "x"),
        (0.5, None),
        (0.5, b"x"),
        (0.5,),
        (0.5, "x", "y"),
        0.5,
        None,
        "0.5, x",
        {"loss": 0.5},
    ],
)
def test_a_function_that_returns_something_else_is_told_what_it_must(returned: Any) -> None:
    loss = nn.FunctionLoss(lambda output, target: returned)("a", "b")
    with pytest.raises(errors.UsageError, match=r"must return \(loss, feedback\), a finite number"):
        loss.item()


def test_losses_show_what_they_are_made_of() -> None:
    def short(output: str, target: str) -> tuple[float, str]:
        return 0, ""

    assert repr(nn.FunctionLoss(short)).endswith(".<locals>.short)")
    assert repr(nn.JudgeLoss("Be brief.")) == "JudgeLoss('Be brief.')"
    assert repr(nn.ExactMatchLoss()) == "ExactMatchLoss()"
    assert repr(nn.ExactMatchLoss(str.strip)) == "ExactMatchLoss(extract=str.strip)"


# The mean


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_a_mean_is_the_mean_and_reaches_each_loss_above_0(scores: list[float]) -> None:
    leaves = [leaf() for _ in scores]
    losses = [
        nn.JudgeLoss("Be brief.", engine=judging(verdict(s)))(x)
        for s, x in zip(scores, leaves, strict=True)
    ]
    mean = ta.mean(losses)
    assert mean.item() == pytest.approx(sum(1 - s for s in scores) / len(scores))
    mean.backward()
    reached = [x.grad is not None for x in leaves]
    assert reached == [1 - score > 0 for score in scores]


@pytest.mark.parametrize("losses", [[], [1.0], ["text"], [leaf()]])
def test_a_mean_takes_losses(losses: Any) -> None:
    with pytest.raises(errors.UsageError, match="mean"):
        ta.mean(losses).item()


def test_a_text_is_no_loss() -> None:
    with pytest.raises(errors.GraphError, match="is no loss"):
        leaf().item()


@pytest.mark.parametrize("function", [lambda output: (0.0, ""), lambda: 0, len])
def test_a_function_that_does_not_take_output_and_target_is_refused(function: Any) -> None:
    with pytest.raises(ta.Error, match=r"called as \(output, target\)"):
        nn.FunctionLoss(function)


def test_an_extract_that_takes_or_returns_something_else_is_refused() -> None:
    with pytest.raises(ta.Error, match=r"extract is called as \(output\)"):
        nn.ExactMatchLoss(extract=lambda a, b: a)  # type: ignore[arg-type,misc]
    loss = nn.ExactMatchLoss(extract=lambda text: [text])  # type: ignore[arg-type,return-value]
    with pytest.raises(ta.Error, match="extract must return a str or None"):
        loss("4", "4").item()
