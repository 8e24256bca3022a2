"""`Function`: a user's own forward and backward, as `torch.autograd.Function`."""

import re
from typing import Any

import pytest

import textautograd as ta
from textautograd import Function, Gradient, TextVariable, nn
from textautograd.errors import GraphError, UsageError


def leaf(text: str = "x") -> TextVariable:
    return TextVariable(text, requires_grad=True)


def texts(gradient: Gradient | None) -> list[str]:
    assert gradient is not None
    return [f.text for f in gradient]


class Between(Function):
    @staticmethod
    def forward(ctx: Any, left: str, middle: str, right: str) -> str:
        ctx.save_for_backward(left, right)
        ctx.length = len(middle)
        return left + middle + right

    @staticmethod
    def backward(ctx: Any, grad: Gradient) -> Any:
        left, right = ctx.saved
        return f"{left}: {grad}", None, Gradient([f"{right}, not {ctx.length}: {grad}", "more"])


def test_forward_and_backward_share_a_context() -> None:
    a, b, c = leaf("a"), leaf("b"), leaf("c")
    y = Between.apply(a, b, c)
    assert y.data == "abc"
    assert repr(y.grad_fn) == "<Between>"
    y.backward("f")
    assert texts(a.grad) == ["a: f"]
    assert b.grad is None
    assert texts(c.grad) == ["c, not 1: f", "more"]


def test_each_call_has_its_own_context() -> None:
    a = leaf("a")
    first, second = Between.apply(a, "1", "2"), Between.apply("z", "12", a)
    second.backward("f")
    first.backward("g")
    assert texts(a.grad) == ["a, not 2: f", "more", "a: g"]


def test_texts_are_taken_as_constants() -> None:
    y = Between.apply("a", "b", "c")
    assert y.data == "abc" and not y.requires_grad


class Upper(Function):
    @staticmethod
    def forward(ctx: Any, text: str) -> str:
        return text.upper()

    @staticmethod
    def backward(ctx: Any, grad: Gradient) -> Any:
        return grad


def test_one_input_may_take_its_gradient_bare() -> None:
    x = leaf()
    Upper.apply(x).backward("f")
    assert texts(x.grad) == ["f"]

    class Says(Upper):
        @staticmethod
        def backward(ctx: Any, grad: Gradient) -> Any:
            return "lower"

    Says.apply(x).backward("f")
    assert texts(x.grad) == ["f", "lower"]

    class Stops(Upper):
        @staticmethod
        def backward(ctx: Any, grad: Gradient) -> Any:
            return None

    Stops.apply(x).backward("f")
    assert texts(x.grad) == ["f", "lower"]


@pytest.mark.parametrize("pulled", [(), ("f",), ("f", None, "f"), "f", None])
def test_wrong_arity_names_the_function(pulled: Any) -> None:
    class Careless(Function):
        @staticmethod
        def forward(ctx: Any, a: str, b: str) -> str:
            return a + b

        @staticmethod
        def backward(ctx: Any, grad: Gradient) -> Any:
            return pulled

    x = leaf()
    count = len(pulled) if isinstance(pulled, tuple) else 1
    with pytest.raises(GraphError, match=rf"Careless.* {count} gradients for its 2 predecessors"):
        Careless.apply(x, "b").backward("f")
    assert x.grad is None


def test_a_gradient_of_another_type_names_the_function() -> None:
    class Counts(Upper):
        @staticmethod
        def backward(ctx: Any, grad: Gradient) -> Any:
            return [5]

    with pytest.raises(GraphError, match=r"Counts.*int"):
        Counts.apply(leaf()).backward("f")


def test_a_value_of_another_type_surfaces_where_it_is_read() -> None:
    class Lengthy(Upper):
        @staticmethod
        def forward(ctx: Any, text: str) -> Any:
            return len(text)

    y = Lengthy.apply(leaf())
    with pytest.raises(UsageError, match=r"Lengthy\.forward returned int"):
        y.data  # noqa: B018


def test_an_input_of_another_type_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match=r"input 1 of Between.*int"):
        Between.apply("a", 5, "c")  # type: ignore[arg-type]


def test_what_is_not_written_is_named() -> None:
    class Nothing(Function):
        pass

    with pytest.raises(UsageError, match="forward"):
        Nothing.apply("a").data  # noqa: B018

    class Half(Function):
        @staticmethod
        def forward(ctx: Any, text: str) -> str:
            return text

    with pytest.raises(UsageError, match="backward"):
        Half.apply(leaf()).backward("f")


class Asks(Function):
    seen: tuple[bool, ...] = ()

    @staticmethod
    def forward(ctx: Any, *inputs: str) -> str:
        Asks.seen = ctx.needs_input_grad
        return "".join(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Gradient) -> Any:
        return [grad if needed else None for needed in ctx.needs_input_grad]


def test_needs_input_grad() -> None:
    Asks.apply(leaf(), "c", TextVariable("c"), leaf() + "!").data  # noqa: B018
    assert Asks.seen == (True, False, False, True)


def test_needs_input_grad_is_asked_of_what_a_parameter_reads_as() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            self.p = nn.Parameter("p")

        def forward(self) -> TextVariable:
            return Asks.apply(self.p)

    agent = Agent()
    assert ta.functional_call(agent, {"p": "constant"}).data == "constant"
    assert Asks.seen == (False,)
    replacement = leaf("r")
    y = ta.functional_call(agent, {"p": replacement})
    assert Asks.seen == (True,)
    y.backward("f")
    assert texts(replacement.grad) == ["f"]
    assert agent.p.grad is None


def test_a_gradient_for_a_constant_goes_nowhere() -> None:
    constant, x = TextVariable("c"), leaf()
    Between.apply(constant, x, constant).backward("f")
    assert constant.grad is None and x.grad is None


def test_an_error_in_user_code_is_raised_as_it_is() -> None:
    class Breaks(Upper):
        @staticmethod
        def backward(ctx: Any, grad: Gradient) -> Any:
            raise KeyError("mine")

    x = leaf()
    with pytest.raises(KeyError, match="mine"):
        Breaks.apply(x).backward("f")
    assert x.grad is None


def test_retain_graph_keeps_what_was_saved() -> None:
    a = leaf("a")
    y = Between.apply(a, "b", "c")
    y.backward("f", retain_graph=True)
    y.backward("g")
    assert [t for t in texts(a.grad) if re.match("a: ", t)] == ["a: f", "a: g"]
