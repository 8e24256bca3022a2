"""`gradcheck` passes right vjps, fails wrong ones and says where."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import textautograd as ta
from textautograd import numeric as tn
from textautograd.errors import CheckError, GraphError, UsageError
from textautograd.testing import gradcheck

rng = np.random.default_rng(0)


def leaf(*shape: int) -> tn.Array:
    return tn.array(rng.normal(size=shape), requires_grad=True)


softplus = tn.primitive(
    lambda x: np.log1p(np.exp(x)), lambda g, out, x: g / (1 + np.exp(-x)), name="softplus"
)
outer = tn.primitive(np.outer, lambda g, out, a, b: g @ b, lambda g, out, a, b: a @ g)


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (softplus, [(2, 3)]),
        (outer, [(2,), (3,)]),
        (tn.primitive(np.multiply, lambda g, o, a, b: g * b, lambda g, o, a, b: g * a), [(3,), ()]),
        (lambda x, y: x @ y, [(4, 2, 3), (3, 2)]),
        (lambda x, y: x @ y, [(3,), (2, 3, 2)]),
        (lambda x, y: x @ y, [(2, 2, 3), (3,)]),
        (lambda x, y: [x * y, tn.sum(y), tn.array(1.0)], [(2, 1), (3,)]),
        (lambda x: tn.mean(x, axis=(0, -1)), [(2, 3, 2)]),
        (lambda x: tn.transpose(x, (-1, 0, 1)), [(2, 3, 4)]),
        (lambda x: x[[0, 1, 0], ::2], [(2, 3)]),
        (lambda x: softplus(x) * x, [(0, 3)]),
    ],
)
def test_right_vjps_pass(fn: Callable[..., Any], shapes: list[tuple[int, ...]]) -> None:
    assert gradcheck(fn, [leaf(*shape) for shape in shapes]) is True


WRONG = {
    "a factor is missing": (tn.primitive(np.square, lambda g, o, x: g * x), [(2, 3)]),
    "the sum over a broadcast axis is missing": (
        tn.primitive(np.add, lambda g, o, a, b: g, lambda g, o, a, b: g[0]),
        [(2, 3), (3,)],
    ),
    "transposed": (
        tn.primitive(np.matmul, lambda g, o, a, b: g @ b, lambda g, o, a, b: a.T @ g),
        [(2, 2), (2, 2)],
    ),
    "the second use is dropped": (
        (lambda dropped: lambda x: dropped(x, x))(
            tn.primitive(np.multiply, lambda g, o, a, b: g * b, None)
        ),
        [(3,)],
    ),
    "the sign": (tn.primitive(np.cos, lambda g, o, x: g * np.sin(x)), [()]),
    "overwritten where it must add": (
        tn.primitive(lambda x: x[[0, 0, 1]], lambda g, o, x: np.array([g[1], g[2], 0.0])),
        [(3,)],
    ),
    "not a number": (tn.primitive(np.exp, lambda g, o, x: g * np.nan), [(2,)]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_vjps_fail(name: str) -> None:
    fn, shapes = WRONG[name]
    with pytest.raises(CheckError, match="backward says"):
        gradcheck(fn, [leaf(*shape) for shape in shapes])


def test_it_says_which_element_differs() -> None:
    wrong = tn.primitive(np.multiply, lambda g, o, a, b: g * b, lambda g, o, a, b: g * 2, name="m")
    a, b = tn.array([1.0, 2.0, 3.0]), tn.array([1.0, 1.0, 1.0], requires_grad=True)
    with pytest.raises(CheckError) as caught:
        gradcheck(lambda a, b: (a + b, wrong(a, b)), (a, b))
    assert str(caught.value) == (
        "output 1, element [0], by input 1, element [0]: backward says 2, central differences 1"
    )
    assert isinstance(caught.value, ta.Error) and isinstance(caught.value, AssertionError)


def test_inputs_that_want_no_gradient_are_not_checked() -> None:
    only_left = tn.primitive(np.multiply, lambda g, o, a, b: g * b, lambda g, o, a, b: g * np.nan)
    assert gradcheck(only_left, [leaf(2), np.ones(2)])


def test_it_leaves_its_inputs_alone() -> None:
    x = leaf(2)
    x.grad, before = np.ones(2), x.data.copy()
    assert gradcheck(lambda x: x * x, x)
    assert (x.data == before).all() and (x.grad == 1).all()


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(UsageError, match="no input requires grad"):
        gradcheck(tn.exp, np.ones(2))
    with pytest.raises(UsageError, match="must return arrays, not ndarray"):
        gradcheck(lambda x: np.ones(2), leaf(2))


def test_an_operation_of_one_s_own() -> None:
    x = tn.array([0.0, 1.0], requires_grad=True)
    y = softplus(x)
    assert repr(y.grad_fn) == "<softplus>" and softplus.__name__ == "softplus"
    tn.sum(y).backward()
    np.testing.assert_allclose(x.grad, 1 / (1 + np.exp(-x.data)))
    with pytest.raises(UsageError, match="softplus takes 1 arrays, not 2"):
        softplus(x, x)
    with pytest.raises(UsageError, match="complex"):
        tn.primitive(lambda x: x * 1j, None, name="turn")(x)
    for vjp in (lambda g, o, x: g[:1], lambda g, o, x: 1.0, lambda g, o, x: g[:, None]):
        with pytest.raises(GraphError, match="vjp 0 of square returned shape"):
            tn.primitive(np.square, vjp)(x).backward([1.0, 1.0])
