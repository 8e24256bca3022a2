"""Exact operations: what they compute, and that each passes the feedback on to its parts."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import Gradient, TextVariable, nn
from textautograd.errors import UsageError

anything = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("{}abxy\\1<>%")))
names = st.sampled_from(["a", "b", "ab", "template", "self", "values", "a.b", "a|b", "x*"])


def leaf(text: str = "x") -> TextVariable:
    return TextVariable(text, requires_grad=True)


def texts(gradient: Gradient | None) -> list[str]:
    assert gradient is not None
    return [f.text for f in gradient]


@given(st.lists(anything, min_size=1, max_size=5), anything)
def test_cat_is_join_and_reaches_every_part(parts: list[str], sep: str) -> None:
    leaves = [leaf(part) for part in parts]
    y = ta.cat(leaves, sep=sep)
    assert y.data == sep.join(parts)
    y.backward("f")
    assert [texts(part.grad) for part in leaves] == [["f"]] * len(leaves)


@given(anything, anything, anything)
def test_plus_is_concatenation_on_either_side(a: str, b: str, c: str) -> None:
    x = leaf(b)
    y = a + x + c
    assert y.data == a + b + c
    y.backward("f")
    assert texts(x.grad) == ["f"]
    assert (leaf(a) + leaf(b)).data == a + b


def test_cat_mixes_texts_and_variables_and_refuses_the_rest() -> None:
    assert ta.cat(["a", leaf("b"), "c"], sep="-").data == "a-b-c"
    for wrong in ("ab", leaf(), [], [leaf(), 5], [None]):
        with pytest.raises(UsageError):
            ta.cat(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sep"):
        ta.cat(["a", "b"], sep=5)  # type: ignore[arg-type]


def filled(template: str, values: dict[str, str]) -> str:
    """An oracle that goes through the template from left to right."""
    out, rest = "", template
    while rest:
        for name, value in values.items():
            if rest.startswith("{" + name + "}"):
                out, rest = out + value, rest[len(name) + 2 :]
                break
        else:
            out, rest = out + rest[0], rest[1:]
    return out


@given(
    st.lists(st.one_of(anything, names.map("{{{}}}".format))).map("".join),
    st.dictionaries(names, st.one_of(anything, names.map("{{{}}}".format)), max_size=4),
)
@example("{a}{b}", {"a": "{b}", "b": "{a}"})
@example("{{a}} {a!r} {a.b} {} {0} {ab} {a", {"a": r"\1\g<0>"})
@example("{template}{self}", {"template": "t", "self": "s"})
def test_fill_replaces_declared_names_literally_and_nothing_else(
    template: str, values: dict[str, str]
) -> None:
    assert ta.fill(TextVariable(template), **values).data == filled(template, values)


def test_fill_reaches_the_template_and_every_value() -> None:
    template, q, unused = leaf("Q: {q} {q}"), leaf("why?"), leaf("u")
    y = ta.fill(template, q=q, unused=unused)
    assert y.data == "Q: why? why?"
    y.backward("f")
    assert texts(template.grad) == texts(q.grad) == ["f"]


def test_fill_refuses_a_name_that_a_known_template_lacks_and_what_is_no_text() -> None:
    with pytest.raises(UsageError, match=re.escape("no {hint} to fill")):
        ta.fill("Q: {q}", q="q", hint="h")
    with pytest.raises(UsageError, match="q= of fill"):
        ta.fill("Q: {q}", q=5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="template"):
        ta.fill(5, q="q")  # type: ignore[arg-type]
    assert ta.fill("{q}").data == "{q}"


@given(st.lists(anything, min_size=1, max_size=5), st.data())
def test_select_is_indexing_and_only_the_chosen_one_gets_a_gradient(
    options: list[str], data: st.DataObject
) -> None:
    index = data.draw(st.integers(-len(options), len(options) - 1))
    leaves = [leaf(option) for option in options]
    y = ta.select(leaves, index)
    assert y.data == options[index]
    y.backward("f")
    chosen = leaves[index]
    assert texts(chosen.grad) == ["f"]
    assert all(other.grad is None for other in leaves if other is not chosen)


def test_select_refuses_what_cannot_be_chosen_from() -> None:
    for options, index in (([], 0), (["a"], 1), (["a"], -2), ("abc", 0), (leaf("abc"), 0)):
        with pytest.raises(UsageError):
            ta.select(options, index)  # type: ignore[arg-type]


@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_mean_of_losses_reaches_each_that_is_not_zero(right: list[bool]) -> None:
    outputs = [leaf("yes" if r else "no") for r in right]
    loss = ta.mean([nn.ExactMatchLoss()(output, "yes") for output in outputs])
    assert loss.item() == pytest.approx(right.count(False) / len(right))
    loss.backward()
    for output, r in zip(outputs, right, strict=True):
        assert (output.grad is None) == r
        if not r:
            assert texts(output.grad) == ['The expected output is: "yes".']


def test_a_mean_of_means_is_a_loss() -> None:
    loss = nn.ExactMatchLoss()(leaf("no"), "yes")
    assert ta.mean([ta.mean([loss]), ta.mean([loss, loss])]).item() == 1.0


def test_mean_refuses_what_is_no_loss() -> None:
    loss = nn.ExactMatchLoss()(leaf(), "y")
    for wrong in ([], [5], [loss, "text"], loss):
        with pytest.raises(UsageError):
            ta.mean(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="this is none"):
        ta.mean([loss, leaf("text")]).item()


# Tools


def lookup(name: str, place: str) -> str:
    """Finds a thing."""
    return f"{name} in {place}"


def test_call_tool_calls_with_named_texts_and_takes_a_rule() -> None:
    x = leaf("key")
    y = ta.call_tool(lookup, name=x, place="box")
    assert y.data == "key in box"
    seen: list[Any] = []

    def rule(node: Any, gradient: Gradient, engine: Any) -> Any:
        seen.append((node.operation.names, node.inputs, node.output, str(gradient)))
        return ["look elsewhere", "ignored"]

    y.backward("wrong key", rule=rule)
    assert seen == [(("name", "place"), ("key", "box"), "key in box", "wrong key")]
    assert texts(x.grad) == ["look elsewhere"]


def test_the_semantic_rule_is_told_the_tools_name_and_docstring() -> None:
    requests = []

    def answer(request: Any) -> str:
        requests.append(request)
        return '{"name": "another"}'

    x = leaf("key")
    engine = ta.engines.Scripted(answer)
    ta.call_tool(lookup, name=x, place="box").backward("wrong key", engine=engine)
    assert texts(x.grad) == ["another"]
    said = "".join(m["content"] for m in requests[0].messages)
    assert "lookup" in said and "Finds a thing." in said and "box" in said


def test_a_tools_errors_surface_where_the_value_is_read() -> None:
    def breaks(name: str) -> str:
        raise KeyError(name)

    y = ta.call_tool(breaks, name="k")
    with pytest.raises(KeyError, match="k") as caught:
        y.data  # noqa: B018
    assert any("in breaks, called at" in note for note in caught.value.__notes__)
    z = ta.call_tool(lambda a: 5, a="a")  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="returned int"):
        z.data  # noqa: B018
    with pytest.raises(UsageError, match="input 'a'"):
        ta.call_tool(lookup, a=5)  # type: ignore[arg-type]


def test_an_async_tool_is_refused_at_once() -> None:
    async def fetch(url: str) -> str:
        return url

    with pytest.raises(UsageError, match=r"the tool fetch is an async function: .*asyncio\.run"):
        ta.call_tool(fetch, url="u")  # type: ignore[arg-type]


def test_losses_are_not_joined_as_texts() -> None:
    loss_fn = ta.nn.ExactMatchLoss()
    total = loss_fn("a", "b") + loss_fn("a", "a")
    with pytest.raises(ta.Error, match=r"ta\.mean"):
        total.item()
