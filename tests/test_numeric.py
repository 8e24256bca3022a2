"""Numbers on the tape of text, against central differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import numeric as tn
from textautograd.errors import GraphError

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
