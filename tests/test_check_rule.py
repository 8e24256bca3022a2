"""`testing.check_rule` passes right rules and fails wrong ones, saying what is wrong with them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

import textautograd as ta
from textautograd import engines, errors, rules
from textautograd.engines import Request
from textautograd.testing import check_rule


def each(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    """A plain rule without calls."""
    return [f"{name}: {gradient}" for name in node.operation.names]


async def one_call(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    """A joint rule with a prompt of its own."""
    pulled = rules.none(node, gradient)
    asked = [
        slot
        for slot, (name, p) in enumerate(zip(node.operation.names, node.predecessors, strict=True))
        if p.requires_grad and name != "instruction" and gradient
    ]
    if asked:
        messages = [{"role": "user", "content": f"{node.inputs} {gradient}"}]
        reply = await engine.complete(Request(messages, purpose="backward"))
        for slot in asked:
            pulled[slot] = ta.Gradient([reply.text])
    return pulled


RIGHT = {
    "semantic": rules.semantic,
    "textgrad": rules.textgrad,
    "none": rules.none,
    "blind(semantic)": rules.blind(rules.semantic),
    "blind(textgrad)": rules.blind(rules.textgrad),
    "blind(a plain rule)": rules.blind(each),
    "a plain rule": each,
    "a rule with a prompt of its own": one_call,
}


@pytest.mark.parametrize("rule", RIGHT.values(), ids=RIGHT)
def test_right_rules_pass(rule: Any) -> None:
    assert check_rule(rule) is True


def joint(change: Callable[[Any, list[Any]], Any]) -> Any:
    """The semantic rule with something wrong about what it returns."""

    async def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        return change(node, await rules.semantic(node, gradient, engine))

    return rule


class Text(str):
    """More than a text."""


def without_the_last(node: Any, pulled: list[Any]) -> list[Any]:
    wanted = [i for i, g in enumerate(pulled) if g and node.operation.names[i] != "instruction"]
    return [None if len(wanted) > 1 and i == wanted[-1] else g for i, g in enumerate(pulled)]


def rotated(node: Any, pulled: list[Any]) -> list[Any]:
    slots = [i for i, g in enumerate(pulled) if g and node.operation.names[i] != "instruction"]
    turned = dict(zip(slots, slots[1:] + slots[:1], strict=True))
    return [pulled[turned.get(i, i)] for i in range(len(pulled))]


def as_texts(node: Any, pulled: list[Any]) -> list[Any]:
    return [None if g is None else Text(g) for g in pulled]


async def twice(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    await rules.semantic(node, gradient, engine)
    return await rules.semantic(node, gradient, engine)


async def twice_in_other_words(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    await rules.textgrad(node, gradient, engine)
    return await rules.semantic(node, gradient, engine)


async def also_of_nothing(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    return await rules.semantic(node, gradient or ta.Gradient(["?"]), engine)


async def own_engine(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    return await rules.semantic(node, gradient, node.operation.engine)


def failing(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    raise errors.ReplyError("no")


async def failing_later(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    raise errors.ReplyError("no")


counter = itertools.count()


def counting(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    return [f"{next(counter)}" for _ in node.inputs]


async def prompting_anew(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
    about = ta.Gradient([f"{f.text} ({random.random()})" for f in gradient])
    pulled = await rules.semantic(node, about, engine)
    return [a or b for a, b in zip(rules.none(node, gradient), pulled, strict=True)]


WRONG = {
    "one short": (joint(lambda node, pulled: pulled[:-1]), r"1 gradients for 2 predecessors"),
    "one more": (joint(lambda node, pulled: [*pulled, None]), r"3 gradients for 2 predecessors"),
    "nothing": (lambda node, gradient, engine: None, r"1 gradients for 2 predecessors"),
    "a neighbour dropped": (joint(without_the_last), r"lost second: only first got a gradient"),
    "neighbours exchanged": (joint(rotated), r"gave 'first' the reply for 'second'"),
    "nobody told": (lambda node, g, e: [None] * len(node.inputs), r"nothing for the instruction"),
    "a str subclass or None": (joint(as_texts), r"returned a Text for '.*', which is more"),
    "a number": (lambda node, g, e: [1] * len(node.inputs), r"returned a int for '.*': a gradient"),
    "nondeterministic": (counting, r"not deterministic: .*\['0'\].*, \(\[Gradient\(\['4'\]"),
    "nondeterministic requests": (prompting_anew, r"the rule is not deterministic"),
    "the same call twice": (twice, r"sent the same request twice"),
    "two calls": (twice_in_other_words, r"made 2 calls, where 1 predecessors are"),
    "a call without feedback": (also_of_nothing, r"made 1 calls, where 0 predecessors"),
    "another engine": (own_engine, r"asked the engine of the forward call"),
    "a failure": (failing, r"raised ReplyError\('no'\)"),
    "a failure later": (failing_later, r"raised ReplyError\('no'\)"),
}


@pytest.mark.parametrize("rule, said", WRONG.values(), ids=WRONG)
def test_wrong_rules_fail_and_are_told_what_is_wrong(rule: Any, said: str) -> None:
    with pytest.raises(errors.CheckError, match=said) as caught:
        check_rule(rule)
    assert str(caught.value).startswith("on ") and "the rule" in str(caught.value)


def test_what_a_rule_raises_on_purpose_of_its_own_is_raised() -> None:
    def rule(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        check_rule(rule)
    with pytest.raises(errors.UsageError, match="a rule is a function"):
        check_rule("semantic")  # type: ignore[arg-type]


def test_calls_says_how_many_there_should_be() -> None:
    assert check_rule(rules.semantic, calls=lambda asked: 1)
    assert check_rule(rules.textgrad, calls=lambda asked: asked)
    assert check_rule(rules.none, calls=lambda asked: 0)
    assert check_rule(twice_in_other_words, calls=lambda asked: asked + 1)
    with pytest.raises(errors.CheckError, match=r"on two hints.*made 2 calls"):
        check_rule(rules.textgrad, calls=lambda asked: 1)
    with pytest.raises(errors.CheckError, match=r"made 0 calls, and not 1"):
        check_rule(rules.none, calls=lambda asked: 1)


def test_reply_answers_a_rule_that_wants_replies_of_its_own_kind() -> None:
    def reply(request: Request) -> str:
        return json.dumps({"how": "better"})

    async def unpacking(node: Any, gradient: ta.Gradient, engine: Any) -> Any:
        names = node.operation.names
        pulled = await one_call(node, gradient, engine)
        return [
            g if g is None or name == "instruction" else json.loads(str(g))["how"]
            for name, g in zip(names, pulled, strict=True)
        ]

    assert check_rule(unpacking, reply=reply)
    with pytest.raises(json.JSONDecodeError):
        check_rule(unpacking)


def test_it_needs_no_model_and_leaves_the_context_alone() -> None:
    def never(request: Request) -> str:
        raise AssertionError("the user's engine was asked")

    with ta.use_engine(engines.Scripted(never)):
        assert check_rule(rules.semantic)
