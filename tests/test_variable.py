"""Variables behave as PyTorch's tensors do, where a text can."""

import asyncio
import copy
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import textautograd as ta
from textautograd import Gradient, TextVariable, nn
from textautograd.engines import Reply, Request, Scripted
from textautograd.errors import EngineError, GraphError, ReplyError, UsageError


def leaf(text: str = "x", name: str | None = None) -> TextVariable:
    return TextVariable(text, requires_grad=True, name=name)


def texts(gradient: Gradient | None) -> list[str]:
    assert gradient is not None
    return [f.text for f in gradient]


def loss_of(output: TextVariable, target: str = "right") -> TextVariable:
    return nn.ExactMatchLoss()(output, target)  # type: ignore[no-any-return]


class Held:
    """An async engine that answers once it is told to."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.go = threading.Event()
        self.engine = Scripted(self.answer)

    async def answer(self, request: Request) -> str:
        import asyncio

        self.asked.set()
        await asyncio.to_thread(self.go.wait, 60)
        return "late"


# Leaves


def test_a_leaf() -> None:
    x = TextVariable("text", name="x")
    assert (x.data, str(x), x.name) == ("text", "text", "x")
    assert x.is_leaf and not x.requires_grad and x.grad is None and x.grad_fn is None
    assert leaf().requires_grad
    assert nn.Parameter("p").requires_grad
    assert not nn.Parameter("p", requires_grad=False).requires_grad


def test_requires_grad_is_inherited_and_a_node_recorded_only_then() -> None:
    x, constant = leaf(), TextVariable("c")
    y = x + constant
    assert y.requires_grad and not y.is_leaf and y.grad_fn is not None
    assert y.grad_fn.predecessors == (x, constant)
    z = constant + constant
    assert not z.requires_grad and z.is_leaf and z.grad_fn is None


def test_requires_grad_is_set_on_leaves_only() -> None:
    x = TextVariable("x")
    x.requires_grad = True
    y = x + "!"
    assert y.requires_grad
    with pytest.raises(GraphError, match="leaves only"):
        y.requires_grad = False
    assert x.requires_grad_(False) is x and not x.requires_grad
    assert x.requires_grad_() is x and x.requires_grad
    with pytest.raises(GraphError, match="leaves only"):
        y.requires_grad_(False)


def test_assigning_data() -> None:
    x = leaf("old")
    x.data = "new"
    assert x.data == "new"
    x.data = TextVariable("newer")  # type: ignore[assignment]
    assert x.data == "newer"
    with pytest.raises(GraphError, match="only a leaf can be assigned"):
        (x + "!").data = "z"


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["text"], 1.5, object()])
def test_wrong_types_are_usage_errors(wrong: Any) -> None:
    with pytest.raises(UsageError, match=type(wrong).__name__):
        TextVariable(wrong)
    x = leaf("x")
    with pytest.raises(UsageError, match=type(wrong).__name__):
        x.data = wrong
    assert x.data == "x"
    if wrong is not None:
        with pytest.raises(UsageError, match=type(wrong).__name__):
            (x + "!").backward(wrong)
        with pytest.raises(TypeError):
            x + wrong
        with pytest.raises(TypeError):
            wrong + x


@pytest.mark.parametrize(
    "text", ["", "x" * 2**20, "\ud800 alone", "{question} </data> %s \\1 \0", "\r\n\u2028"]
)
def test_any_text_goes_through_unchanged(text: str) -> None:
    x = leaf(text)
    y = ta.fill("{v}", v=ta.select([ta.cat([x, text], sep="")], 0))
    assert y.data == text + text
    y.backward(text)
    assert texts(x.grad) == [text]
    assert copy.deepcopy(x).data == text
    assert pickle.loads(pickle.dumps(x)).data == text
    assert len(repr(x)) < 2000
    x.data = text + "!"
    assert x.data == text + "!"


def test_comparison_with_a_text_raises_and_identity_is_equality() -> None:
    x, y = TextVariable("yes"), TextVariable("yes")
    for compare in (lambda: x == "yes", lambda: "yes" == x, lambda: x != "yes"):
        with pytest.raises(UsageError, match=r"\.data"):
            compare()
    with pytest.raises(UsageError):
        x in ["yes"]  # noqa: B015
    assert x == x
    assert x != y
    assert x is not None and x != None  # noqa: E711
    assert {x: 1, y: 2}[x] == 1
    assert len({x, y, x}) == 2


def test_a_gradient_can_be_assigned_and_nothing_else() -> None:
    x = ta.TextVariable("x", requires_grad=True)
    x.grad = "be brief"
    assert x.grad == ta.Gradient(["be brief"])
    for wrong in (5, ["be brief"], ta.Feedback("be brief"), x, b"x"):
        with pytest.raises(UsageError, match="a gradient is a str or a Gradient"):
            x.grad = wrong  # type: ignore[assignment]
    assert x.grad == ta.Gradient(["be brief"])
    x.grad = None
    assert x.grad is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ta.TextVariable("x", name=5),  # type: ignore[arg-type]
        lambda: ta.TextVariable("x", requires_grad="yes"),  # type: ignore[arg-type]
        lambda: setattr(ta.TextVariable("x"), "requires_grad", "yes"),
        lambda: ta.TextVariable("x", requires_grad=True).register_hook(5),  # type: ignore[arg-type]
    ],
)
def test_careless_use_is_one_clear_error(wrong: Any) -> None:
    with pytest.raises(UsageError):
        wrong()


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x < "y",
        lambda x: "y" > x,
        lambda x: x <= x,
        lambda x: x >= 0.5,
        lambda x: sorted([x, x]),
        lambda x: len(x),
        lambda x: x[0],
        lambda x: x[1:],
        lambda x: list(x),
        lambda x: [c for c in x],
        lambda x: "a" in x,
        lambda x: x == 0,
        lambda x: x != 0.5,
    ],
)
def test_what_only_its_text_or_number_can_do_says_where_that_is(use: Any) -> None:
    for x in (ta.TextVariable("a text"), nn.ExactMatchLoss()("a", "b")):
        with pytest.raises(UsageError, match=r"\.data.*\.item\(\)"):
            use(x)


@pytest.mark.parametrize("name", ["strip", "split", "lower"])
def test_what_a_str_has_says_where_that_is(name: str) -> None:
    x = ta.TextVariable("x")
    with pytest.raises(
        AttributeError, match=rf"no '{name}' of its own: use that of \.data"
    ) as told:
        getattr(x, name)
    assert told.value.name == name and told.value.obj is x
    assert not hasattr(x, name)
    with pytest.raises(AttributeError, match=r"a Parameter has no 'stripped'$"):
        getattr(nn.Parameter("x"), "stripped")  # noqa: B009


def test_sum_says_what_to_use() -> None:
    losses = [nn.ExactMatchLoss()("a", "b")] * 2
    with pytest.raises(UsageError, match=r"ta\.mean.*ta\.cat"):
        sum(losses)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        3 + losses[0]  # type: ignore[operator]


def test_formatting_is_the_texts_and_a_losss_is_the_numbers() -> None:
    x, loss = ta.TextVariable("abc"), nn.ExactMatchLoss()("a", "b")
    assert f"{x}|{x:>5}|{x!s:.1}" == "abc|  abc|a"
    assert f"{loss:.2f}" == "1.00" and f"{loss}" == str(loss)
    assert float(loss) == 1.0
    with pytest.raises(GraphError):
        float(x)


def test_a_loss_is_true_unless_it_is_0() -> None:
    assert [bool(nn.ExactMatchLoss()(x, "a")) for x in "ab"] == [False, True]
    assert str(nn.ExactMatchLoss()("a", "a"))


def test_truth_is_the_texts() -> None:
    assert TextVariable("no")
    assert not TextVariable("")


def test_item_is_for_losses() -> None:
    assert loss_of(leaf("right")).item() == 0.0
    assert loss_of(leaf("wrong")).item() == 1.0
    assert loss_of(leaf("wrong")).detach().item() == 1.0
    with pytest.raises(GraphError, match="'x' is no loss"):
        leaf(name="x").item()


# Adding


def test_adding_concatenates_and_reaches_both() -> None:
    x, y = leaf("x"), leaf("y")
    z = "<" + x + "," + y + ">"
    assert z.data == "<x,y>"
    z.backward("shorter")
    assert texts(x.grad) == texts(y.grad) == ["shorter"]


def test_x_plus_x_has_two_predecessors() -> None:
    x = leaf("x")
    y = x + x
    assert y.grad_fn is not None
    assert y.grad_fn.predecessors == (x, x)
    y.backward("f")
    assert texts(x.grad) == ["f", "f"]


def test_sixty_doublings() -> None:
    x = leaf("")
    y = x
    for _ in range(60):
        y = y + y
    y.backward("f")
    assert x.grad is not None
    assert len(x.grad) == 2**60


# Backward


def test_grad_accumulates_over_backwards_and_zero_grad_resets_it() -> None:
    module = nn.Sequential(nn.LLM("a"), nn.LLM("b"))
    first, second = module.parameters()
    for said in ("one", "two"):
        (first + second).backward(said)
    assert texts(first.grad) == texts(second.grad) == ["one", "two"]
    module.zero_grad()
    assert first.grad is None and second.grad is None


def test_a_non_leaf_keeps_its_grad_only_if_asked() -> None:
    x = leaf()
    y = x + "1"
    z = y + "2"
    y.retain_grad()
    z.backward("f")
    assert texts(y.grad) == texts(x.grad) == ["f"]
    assert z.grad is None
    with pytest.raises(GraphError, match="never gets one"):
        TextVariable("c").retain_grad()


def test_a_constant_gets_no_grad() -> None:
    x, constant = leaf(), TextVariable("c")
    (x + constant).backward("f")
    assert constant.grad is None


def test_backward_on_a_leaf_seeds_it() -> None:
    x = leaf()
    x.backward("f")
    assert texts(x.grad) == ["f"]


def test_backward_needs_a_seed_where_there_is_no_loss() -> None:
    x = leaf()
    with pytest.raises(GraphError, match="needs a seed"):
        (x + "!").backward()
    (x + "!").backward(Gradient(["f", "g"]))
    assert texts(x.grad) == ["f", "g"]


def test_a_loss_needs_no_seed_and_takes_one() -> None:
    x = leaf("wrong")
    loss_of(x).backward()
    assert texts(x.grad) == ['The expected output is: "right".']
    x.grad = None
    loss_of(x).backward("mind the case")
    assert texts(x.grad) == ['The expected output is: "right".', "mind the case"]


def test_at_a_minimum_there_is_no_gradient() -> None:
    x = leaf("right")
    loss_of(x).backward()
    assert x.grad is None


def test_backward_where_nothing_requires_grad_raises() -> None:
    with pytest.raises(GraphError, match="does not require grad"):
        loss_of(TextVariable("c")).backward()
    with ta.no_grad():
        loss = loss_of(leaf())
    with pytest.raises(GraphError, match="no_grad"):
        loss.backward()


def test_a_second_backward_raises_unless_the_graph_was_retained() -> None:
    x = leaf()
    y = x + "!"
    y.backward("one", retain_graph=True)
    y.backward("two")
    assert texts(x.grad) == ["one", "two"]
    with pytest.raises(GraphError, match=r"second time.*retain_graph=True"):
        y.backward("three")
    assert texts(x.grad) == ["one", "two"]


def test_a_part_of_the_graph_that_another_loss_freed_raises() -> None:
    x = leaf()
    shared = x + "shared"
    (shared + "1").backward("f")
    with pytest.raises(GraphError, match="retain_graph"):
        (shared + "2").backward("f")
    assert texts(x.grad) == ["f"]


def test_passes_that_have_begun_do_not_feel_what_another_frees() -> None:
    """Two losses that share a call, two threads: each rule goes on only when both were asked."""
    shared = nn.LLM("Do.", engine=Scripted(lambda request: "wrong"))(q=leaf("q"))
    both = threading.Barrier(2, timeout=30)
    seen: list[str] = []
    shared.register_hook(lambda gradient: seen.append(str(gradient)))

    def rule(node: Any, gradient: Gradient, engine: Any) -> list[Any]:
        both.wait()
        return [None, gradient]

    def backward(loss: TextVariable) -> list[str]:
        failures = loss.backward(rule=rule)
        return [str(failure) for failure in failures]

    losses = [loss_of(shared + mark, "right" + mark) for mark in "ab"]
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(backward, losses)] == [[], []]
    assert sorted(map(len, seen)) == [len('The expected output is: "righta".')] * 2
    with pytest.raises(GraphError, match="retain_graph"):
        loss_of(shared).backward()


def test_a_failure_at_a_call_that_another_pass_frees_meanwhile_is_told() -> None:
    shared = nn.LLM("Do.", engine=Scripted(lambda request: "wrong"))(q=leaf("q"))

    def fails(node: Any, gradient: Gradient, engine: Any) -> list[Any]:
        other = loss_of(shared + "b", "rightb")
        other.backward(rule=lambda node, gradient, engine: [None, gradient])
        raise ReplyError("no JSON")

    with pytest.raises(ReplyError, match="no JSON"):
        loss_of(shared + "a", "righta").backward(rule=fails)


@pytest.mark.parametrize(
    "scaled", [lambda loss: loss / 4, lambda loss: loss * 0.5, lambda loss: 0.5 * loss]
)
def test_a_loss_cannot_be_scaled_and_need_not_be(scaled: Any) -> None:
    with pytest.raises(UsageError, match="leave it out"):
        scaled(loss_of(leaf()))


def test_what_a_hook_frees_further_on_is_still_walked_hooks_and_all() -> None:
    x = leaf()
    first = x + "1"
    second = first + "2"
    seen: list[list[str]] = []
    first.register_hook(lambda gradient: seen.append(texts(gradient)))
    second.register_hook(lambda _: (first + "3").backward("inner") or None)
    second.backward("outer")
    assert seen == [["inner"], ["outer"]]
    assert texts(x.grad) == ["inner", "outer"]


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_hook_that_begins_its_own_pass_again_is_an_error(retain_graph: bool) -> None:
    x = leaf()
    y = x + "!"
    handle = y.register_hook(lambda _: y.backward("again", retain_graph=retain_graph))
    with pytest.raises(GraphError, match="called again by a hook or a rule of that same pass"):
        y.backward("f", retain_graph=retain_graph)
    assert x.grad is None
    handle.remove()
    y.backward("f")
    assert texts(x.grad) == ["f"]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_rule_that_begins_its_own_pass_again_is_an_error(is_async: bool) -> None:
    async def reply(request: Request) -> str:
        return "wrong"

    loss = loss_of(nn.LLM("Do.", engine=Scripted(reply if is_async else lambda _: "wrong"))(leaf()))
    loss.item()

    async def later(node: Any, gradient: Gradient, engine: Any) -> list[Any]:
        return await asyncio.to_thread(rule, node, gradient, engine)

    def rule(node: Any, gradient: Gradient, engine: Any) -> list[Any]:
        loss.backward(rule=later if is_async else rule)
        return [None, None]

    with pytest.raises(GraphError, match="called again by a hook or a rule of that same pass"):
        loss.backward(rule=later if is_async else rule)


def test_detach_cuts_the_tape() -> None:
    x = leaf("x", name="x")
    y = (x + "!").detach()
    assert y.is_leaf and not y.requires_grad and y.data == "x!"
    z = y + x
    z.backward("f")
    assert texts(x.grad) == ["f"]
    assert x.detach().name == "x"


def test_modified_after_it_was_used_names_the_parameter_and_both_places() -> None:
    x = leaf("x", name="solve.instruction")
    y = x + "!"  # here it is used
    x.data = "changed"  # here it is modified
    lines = {
        text.split("#")[1].strip(): number
        for number, text in enumerate(Path(__file__).read_text("utf-8").splitlines(), 1)
        if text.rstrip().endswith(("it is used", "it is modified"))
    }
    with pytest.raises(GraphError) as caught:
        y.backward("f")
    said = str(caught.value)
    assert "'solve.instruction' was modified after it was used" in said
    assert f"used in cat at {__file__}:{lines['here it is used']}" in said
    assert f"modified at {__file__}:{lines['here it is modified']}" in said
    assert x.grad is None
    (x + "!").backward("f")  # forward again, as the message says
    assert texts(x.grad) == ["f"]


def test_assigning_the_same_text_is_a_modification_too() -> None:
    x = leaf("x")
    y = x + "!"
    x.data = "x"
    with pytest.raises(GraphError, match="modified"):
        y.backward("f")


def test_a_modified_constant_counts() -> None:
    x, constant = leaf("x"), TextVariable("c", name="c")
    y = x + constant
    constant.data = "d"
    with pytest.raises(GraphError, match="'c' was modified"):
        y.backward("f")


def test_the_value_is_that_of_the_time_of_use() -> None:
    x = leaf("old")
    y = x + "!"
    x.data = "new"
    assert y.data == "old!"


def test_gradients_are_deterministic_in_the_order_of_the_program() -> None:
    x = leaf("wrong")
    losses = [loss_of(x, str(i)) for i in range(5)]
    ta.mean(losses).backward()
    assert texts(x.grad) == [f'The expected output is: "{i}".' for i in range(5)]


# Hooks


def test_hooks_run_in_order_and_may_replace() -> None:
    x = leaf()
    seen: list[Any] = []

    def log(tag: str, result: Any = None) -> Callable[[Gradient], Any]:
        def hook(gradient: Gradient) -> Any:
            seen.append((tag, str(gradient)))
            return result

        return hook

    x.register_hook(log("first"))
    x.register_hook(log("second", "replaced"))
    x.register_hook(log("third", Gradient(["again"])))
    (x + "!").backward("f")
    assert seen == [("first", "f"), ("second", "f"), ("third", "replaced")]
    assert texts(x.grad) == ["again"]


def test_a_hook_on_a_non_leaf_sees_the_whole_gradient_before_it_goes_on() -> None:
    x = leaf()
    y = x + "1"
    seen = []
    y.register_hook(lambda g: seen.append(texts(g)) or "less")
    ta.cat([y, y]).backward("f")
    assert seen == [["f", "f"]]
    assert texts(x.grad) == ["less"]


def test_a_removed_hook_does_not_run() -> None:
    x = leaf()
    seen: list[str] = []
    handle = x.register_hook(lambda g: seen.append("removed"))
    x.register_hook(lambda g: seen.append("kept"))
    handle.remove()
    handle.remove()
    x.backward("f")
    assert seen == ["kept"]


def test_hooks_of_leaves_stay_and_those_of_non_leaves_go() -> None:
    x, seen = leaf(), []
    x.register_hook(lambda g: seen.append("leaf"))
    for _ in range(2):
        y = x + "!"
        y.register_hook(lambda g: seen.append("non-leaf"))
        y.backward("f")
    assert seen == ["non-leaf", "leaf"] * 2


def test_a_hook_that_returns_something_else_is_a_usage_error() -> None:
    x = leaf()
    x.register_hook(lambda g: 5)  # type: ignore[arg-type,return-value]
    with pytest.raises(UsageError, match="int"):
        x.backward("f")
    assert x.grad is None


@pytest.mark.parametrize("hook", [lambda: None, lambda g, more: None, "no function"])
def test_a_hook_that_cannot_be_called_is_refused_when_it_is_registered(hook: Any) -> None:
    x = leaf()
    with pytest.raises(
        UsageError, match=r"hook (is called as \(gradient\), but|must be a function)"
    ):
        x.register_hook(hook)
    x.backward("f")
    assert x.grad is not None


def test_a_hook_where_no_gradient_will_come_raises() -> None:
    with pytest.raises(GraphError, match="never run"):
        TextVariable("c").register_hook(lambda g: None)


# Showing


def test_repr_of_known_values() -> None:
    assert repr(TextVariable("a")) == "TextVariable('a')"
    assert repr(leaf("a", name="n")) == "TextVariable('a', name='n', requires_grad=True)"
    assert repr(leaf("a") + "b") == "TextVariable('ab', grad_fn=<cat>)"
    assert repr(nn.Parameter("p")) == "Parameter('p', requires_grad=True)"
    assert repr(TextVariable("y" * 1000)) == f"TextVariable('{'y' * 200}'… 1000 characters)"
    assert repr(loss_of(TextVariable("w"))).startswith("TextVariable(1, 'The expected")


def test_repr_does_not_wait_and_reads_no_failure() -> None:
    held = Held()
    y = nn.LLM("i", engine=held.engine)("q")
    assert held.asked.wait(60)
    assert repr(y) == "TextVariable(<pending>, grad_fn=<complete>)"
    held.go.set()
    assert y.data == "late"
    assert repr(y) == "TextVariable('late', grad_fn=<complete>)"

    def fail(request: Request) -> Reply:
        raise EngineError("down")

    z = nn.LLM("i", engine=Scripted(fail))("q")
    assert repr(z) == "TextVariable(<failed: EngineError>, grad_fn=<complete>)"
    with pytest.raises(EngineError):
        z.data  # noqa: B018


# Copies


def test_copies_of_leaves() -> None:
    x = nn.Parameter("p", name="n")
    x.backward("f")
    for made in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert type(made) is nn.Parameter
        assert made is not x
        assert (made.data, made.name, made.requires_grad) == ("p", "n", True)
        made.data = "q"
        assert x.data == "p"
    shared = copy.deepcopy([x, x])
    assert shared[0] is shared[1]


def test_a_computed_variable_cannot_be_copied() -> None:
    y = leaf(name="x") + "!"
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UsageError, match="only leaves"):
            attempt(y)
    assert pickle.loads(pickle.dumps(y.detach())).data == "x!"


def test_a_pending_leaf_is_waited_for() -> None:
    held = Held()
    y = nn.LLM("i", engine=held.engine)("q").detach()
    threading.Timer(0.01, held.go.set).start()
    assert copy.deepcopy(y).data == "late"


# Nodes


def test_grad_fn_is_one_object() -> None:
    y = leaf() + "!"
    assert y.grad_fn is y.grad_fn
    assert weakref.ref(y.grad_fn)() is y.grad_fn


def test_a_losses_text_is_a_plain_str() -> None:
    assert type(str(loss_of(leaf("wrong")))) is str


def test_backwards_in_threads_lose_no_gradient() -> None:
    x = leaf()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        ta.map(lambda i: [(x + "!").backward(str(i)) for _ in range(100)], range(8))
    finally:
        sys.setswitchinterval(interval)
    assert sorted(texts(x.grad)) == sorted(str(i) for i in range(8) for _ in range(100))


def test_what_is_read_of_a_loss_is_a_plain_text() -> None:
    loss = nn.ExactMatchLoss()("a", "b")

    async def read() -> str:
        return await loss

    for text in (loss.data, str(loss), asyncio.run(read())):
        assert type(text) is str and text == 'The expected output is: "b".'
    assert ta.cat([loss.data, loss.data]).data.count("expected") == 2
    with pytest.raises(GraphError, match="is no loss"):
        ta.TextVariable(loss.data).item()


def test_a_detached_loss_keeps_its_number_when_it_is_copied() -> None:
    loss = nn.ExactMatchLoss()("a", "b").detach()
    for made in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert made.item() == 1.0 and made.data == loss.data
