"""Numbers on the tape of text, against central differences."""

import copy
import re
import weakref
from collections.abc import Callable
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import numeric as tn
from textautograd.errors import GraphError, UsageError

PROGRAMS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y + 1.0,
    "sub": lambda x, y: 2.0 - x - y,
    "mul": lambda x, y: x * y * x,
    "div": lambda x, y: x / (y * y + 1.0) + 1.0 / (x * x + 2.0),
    "pow": lambda x, y: (x * x + 1.0) ** (y * 0.5),
    "square": lambda x, y: x**2 - -y,
    "matmul": lambda x, y: x @ tn.transpose(y),
    "vector": lambda x, y: x @ y[0],
    "vectors": lambda x, y: x[0] @ y[1],
    "exp log": lambda x, y: tn.log(tn.exp(x) + tn.exp(y)),
    "trigonometry": lambda x, y: tn.sin(x) * tn.cos(y) + tn.tanh(x * y),
    "kinks": lambda x, y: tn.relu(x) + tn.maximum(x, y),
    "axes": lambda x, y: tn.sum(x, axis=0) * tn.mean(y, axis=1, keepdims=True),
    "shapes": lambda x, y: tn.reshape(x, (3, 2)) @ tn.reshape(y, 6)[1:3],
    "broadcast": lambda x, y: x * y[0] + y[:, 1:2],
    "pick twice": lambda x, y: x[[0, 0, 1]] * 3.0,
    "join": lambda x, y: tn.concatenate([x, y, x], axis=1),
    "where": lambda x, y: tn.where(x.data > 0, x * y, y),
    "right operand": lambda x, y: np.ones((2, 3)) * x + y,
}


def total(program: Callable[[Any, Any], Any], x: Any, y: Any) -> float:
    return float(np.sum(np.cos(program(tn.array(x), tn.array(y)).data)))


@pytest.mark.parametrize("name", PROGRAMS)
@given(seed=st.integers(0, 10**6))
def test_agrees_with_central_differences(name: str, seed: int) -> None:
    program, rng = PROGRAMS[name], np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    a, b = tn.array(x, requires_grad=True), tn.array(y, requires_grad=True)
    tn.sum(tn.cos(program(a, b))).backward()
    for which, leaf in enumerate((a, b)):
        direction, h = rng.normal(size=(2, 3)), 1e-6
        shifted = [[x, y], [x, y]]
        shifted[0][which] = shifted[0][which] + h * direction
        shifted[1][which] = shifted[1][which] - h * direction
        expected = (total(program, *shifted[0]) - total(program, *shifted[1])) / (2 * h)
        found = 0.0 if leaf.grad is None else float(np.sum(leaf.grad * direction))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_it_is_the_tape_of_text() -> None:
    x = tn.array(2.0, requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2.0**60
    with pytest.raises(GraphError, match="second time"):
        y.backward()
    with ta.no_grad():
        assert not (x * x).requires_grad


def test_seeds() -> None:
    x = tn.array([1.0, 2.0], requires_grad=True)
    with pytest.raises(GraphError, match="seed"):
        (x * x).backward()
    with pytest.raises(GraphError, match="shape"):
        (x * x).backward([1.0])
    (x * x).backward([1.0, 10.0])
    assert x.grad is not None and x.grad.tolist() == [2.0, 40.0]
    with pytest.raises(ta.Error):
        tn.array("words")


def gradient(fn: Callable[..., Any], *values: Any) -> list[Any]:
    """By each input of the sum of fn's result."""
    leaves = [tn.array(value, requires_grad=True) for value in values]
    found = ta.grad(tn.sum(fn(*leaves)), leaves, allow_unused=True)
    for leaf, by in zip(leaves, found, strict=True):
        assert isinstance(by, np.ndarray) and by.shape == leaf.shape and by.dtype == float
    return [by.tolist() for by in found]


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("maximum", 1.0, 1.0),
        ("maximum", [1.0, 2.0, 2.0], 2.0),
        ("maximum", [np.inf, np.nan], [np.inf, 0.0]),
        ("power", 0.0, 0.0),
        ("power", 0.0, 2.0),
        ("power", [0.0, 0.0], [1.0, 3.0]),
        ("power", -2.0, 0.0),
        ("power", [-2.0, 3.0], 2.0),
        ("divide", 0.0, 2.0),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_a_derivative_must_be_chosen_it_is_autograd_s(name: str, a: Any, b: Any) -> None:
    def theirs(values: Any) -> Any:
        return anp.sum(getattr(anp, name)(*values))

    expected = autograd.grad(theirs)([np.array(a, dtype=float), np.array(b, dtype=float)])
    for found, by in zip(gradient(getattr(tn, name), a, b), expected, strict=True):
        np.testing.assert_array_equal(found, by)


def test_the_chosen_derivatives_are_those_of_the_docstring() -> None:
    assert gradient(tn.relu, [-1.0, 0.0, 1.0]) == [[0.0, 0.0, 1.0]]
    assert gradient(tn.maximum, 2.0, 2.0) == [0.5, 0.5]
    assert gradient(lambda x: x**0, [0.0, -1.0]) == [[0.0, 0.0]]
    assert gradient(lambda x, y: x**y, 0.0, 0.0) == [0.0, 0.0]
    assert gradient(lambda x, y: x**y, 0.0, 2.0) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: np.array([1.0, 2.0]) + x, 2.0),
        (lambda x: np.array([1.0, 2.0]) - x, -2.0),
        (lambda x: np.array([1.0, 2.0]) * x, 3.0),
        (lambda x: np.array([1.0, 2.0]) / x, -0.75),
        (lambda x: np.array([1.0, 2.0]) ** x, 4 * np.log(2)),
        (lambda x: np.float64(3) * x, 3.0),
        (lambda x: np.int32(3) - x, -1.0),
        (lambda x: np.True_ + x, 1.0),
        (lambda x: 3 * x + True, 3.0),
        (lambda x: 1 / x, -0.25),
        (lambda x: 2**x, 4 * np.log(2)),
        (lambda x: [1, 2] * x, 3.0),
        (lambda x: np.array([[1, 2]]) @ tn.reshape(x + np.zeros(2), (2, 1)), 3.0),
        (lambda x: np.exp(x), np.exp(2.0)),
        (lambda x: np.maximum(np.array([1, 3]), x), 1.0),
        (lambda x: np.negative(np.multiply(x, x)), -4.0),
    ],
)
def test_it_mixes_with_numpy_and_with_plain_numbers(fn: Any, expected: float) -> None:
    x = tn.array(2, requires_grad=True)
    y = fn(x)
    assert isinstance(y, tn.Array) and y.data.dtype == float
    (found,) = ta.grad(y, x, np.ones(y.shape))
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: np.sqrt(x),
        lambda x: np.add.reduce(x),
        lambda x: np.add(x, 1.0, out=np.zeros(2)),
        lambda x: np.mean(x),
        lambda x: np.asarray(x),
        lambda x: np.linalg.norm(x),
        lambda x: np.array([1.0, 2.0]) > x,
        lambda x: tn.array([x, x]),
        lambda x: x + "1",
        lambda x: x * 1j,
        lambda x: x * np.array([1, None]),
        lambda x: x + None,
        lambda x: tn.array("1.5"),
        lambda x: tn.array([1.0, [2.0]]),
        lambda x: tn.array(np.array([1j])),
        lambda x: tn.array(np.array([1.0], dtype=object)),
        lambda x: tn.array(np.datetime64("2020-01-01")),
        lambda x: tn.where("yes", x, x),
        lambda x: (x * x).backward([1j, 1.0]),
        lambda x: (x * x).backward("more"),
        lambda x: setattr(x, "data", "words"),
        lambda x: setattr(x, "data", [1.0]),
    ],
)
def test_what_would_lose_the_gradient_or_is_no_number_is_one_clear_error(use: Any) -> None:
    with pytest.raises(UsageError) as caught:
        use(tn.array([1.0, 2.0], requires_grad=True))
    assert re.search(r"numbers|\.data|of shape", str(caught.value))


@pytest.mark.parametrize("shape", [(0,), (2, 0), (), (1, 1)])
def test_empty_and_single_arrays(shape: tuple[int, ...]) -> None:
    x = np.ones(shape)
    assert gradient(lambda x: tn.exp(x) * 0 + x * 3.0, x) == [(3 * x).tolist()]
    assert gradient(lambda x: tn.reshape(x, -1)[x.data.ravel() > 0], x) == [x.tolist()]
    assert gradient(lambda x: tn.concatenate([x, x], axis=None), x) == [(2 * x).tolist()]
    (found,) = ta.grad(tn.sum(y := tn.array(x, requires_grad=True)), y)
    assert found.shape == shape


def test_gradients_are_arrays_of_one_s_own() -> None:
    """`x + y` passes the same gradient to both, and a sum passes a read-only view."""
    x, y = (tn.array([1.0, 2.0], requires_grad=True) for _ in range(2))
    seed = np.ones(2)
    (x + y).backward(seed)
    tn.sum(y).backward()
    x.grad *= 10
    assert x.grad.tolist() == [10, 10] and y.grad.tolist() == [2, 2] and seed.tolist() == [1, 1]
    z = tn.array([1.0, 2.0], requires_grad=True)
    tn.sum(z).backward()
    z.grad *= 10
    assert z.grad.tolist() == [10, 10]


def test_a_leaf_is_a_copy_and_is_assigned_whole() -> None:
    numbers = np.ones(2)
    x = tn.array(numbers, requires_grad=True)
    scaled = x * numbers
    numbers[:] = 7
    assert x.data.tolist() == [1, 1]
    scaled.backward([1, 1])
    assert x.grad is not None and x.grad.tolist() == [1, 1]
    y = x * x
    x.data = [3, 4]
    with pytest.raises(
        GraphError, match=r"modified after it was used.*used in multiply at .*test_"
    ):
        y.backward([1, 1])
    with pytest.raises(GraphError, match="only a leaf"):
        y.data = [1, 1]
    assert x.detach().data.tolist() == [3, 4] and not x.detach().requires_grad
    assert copy.deepcopy(x).data is not x.data and copy.deepcopy(x).requires_grad


def test_hooks_and_retain_grad_are_those_of_text() -> None:
    x = tn.array([1.0, 2.0], requires_grad=True)
    y = x * x
    y.retain_grad()
    y.register_hook(lambda g: g * 10)
    tn.sum(y).backward()
    assert y.grad.tolist() == [10, 10] and x.grad.tolist() == [20, 40]
    z = x * x
    z.register_hook(lambda g: g[:1])
    with pytest.raises(GraphError, match=r"gradient of shape \(1,\) for an array of shape \(2,\)"):
        tn.sum(z).backward()


def test_backward_drops_what_was_saved() -> None:
    x = tn.array(np.ones(10), requires_grad=True)
    hidden = tn.exp(x)
    seen = weakref.ref(hidden.data)
    loss = tn.sum(hidden * hidden)
    del hidden
    assert seen() is not None
    loss.backward()
    assert seen() is None and loss.grad_fn is not None


def test_a_leaf_and_its_truth_read_as_numpy_s() -> None:
    assert repr(tn.array([1, 2], requires_grad=True)) == "array([1., 2.], requires_grad=True)"
    assert repr(tn.array(1.0, requires_grad=True) * 2) == "array(2., grad_fn=<multiply>)"
    assert len(repr(tn.array(np.ones(10**5)))) < 100
    assert not tn.array(0.0) and tn.array(2.0)
    assert [row.item() for row in tn.array([1.0, 2.0])] == [1, 2]
    assert len(tn.array(np.ones((3, 2)))) == 3
    assert f"{tn.array(2.0):.2f} {tn.array(2.0)}" == "2.00 array(2.)"
    with pytest.raises(TypeError, match="unsized"):
        len(tn.array(2.0))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda x: x + np.ones(4), r"add of arrays of shape \(2, 3\), \(4,\): .*broadcast"),
        (lambda x: x @ x, r"matmul of arrays of shape \(2, 3\), \(2, 3\): "),
        (lambda x: tn.sum(x, axis=5), r"sum of arrays of shape \(2, 3\): axis 5"),
        (lambda x: tn.reshape(x, (4,)), r"reshape of arrays of shape \(2, 3\): "),
        (lambda x: tn.transpose(x, (0, 0)), r"transpose of arrays of shape \(2, 3\): "),
        (lambda x: tn.concatenate([x, np.ones((1, 2))]), r"concatenate of arrays of shape .*1, 2"),
    ],
)
def test_shapes_that_do_not_fit_are_one_error_that_names_them(wrong: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        wrong(tn.array(np.ones((2, 3)), requires_grad=True))


def test_an_index_out_of_range_stays_an_index_error() -> None:
    assert len([*tn.array([1.0, 2.0])]) == 2  # which iteration ends with


def test_a_gradient_is_an_array_however_often_it_is_added_to() -> None:
    x = tn.array(2.0, requires_grad=True)
    seen: list[type] = []
    x.register_hook(lambda g: seen.append(type(g)))
    for _ in range(3):
        (x * x + x).backward()
        assert type(x.grad) is np.ndarray and x.grad.shape == ()
    assert seen == [np.ndarray] * 3 and x.grad == 15


def test_docstrings_promise_no_options_of_numpys() -> None:
    for operation in (tn.exp, tn.maximum, tn.relu, tn.where, tn.matmul):
        assert operation.__doc__ and "out=" not in operation.__doc__
        assert len(operation.__doc__) < 100
