"""Semantic backpropagation generalises reverse-mode differentiation: with vjps for rules, the walk
that carries words gives the derivatives of HIPS/autograd, and of central differences, on random
programs with shared values, fan-out, values used twice by one operation, unused inputs and several
roots. Each operation occurs in `EXAMPLES` programs of its own, and at random in the others'."""

import inspect
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numeric_programs import OPERATIONS, Numpy, Program, programs

from textautograd import numeric as tn
from textautograd.backward import backward
from textautograd.tape import Walk

EXAMPLES = 30
each_operation = pytest.mark.parametrize("name", OPERATIONS)


def ours(program: Program, *, one_pass: bool) -> dict[int, Any]:
    leaves = {i: tn.array(x, requires_grad=True) for i, x in program.leaves().items()}
    values = program.run(tn, leaves)
    for x, expected in zip(values, program.run(Numpy(np), {}), strict=True):
        value = x.data if isinstance(x, tn.Array) else x
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
        assert np.shape(value) == np.shape(expected)
    roots = [(values[root], seed) for root, seed in program.roots]
    roots = [(x, seed) for x, seed in roots if isinstance(x, tn.Array)]
    roots = [(x, seed) for x, seed in roots if x.requires_grad]
    if one_pass:
        backward(roots)
    else:
        for x, seed in roots:
            x.backward(seed, retain_graph=True)
    for leaf in leaves.values():
        assert leaf.grad is None or leaf.grad.shape == leaf.shape
    return {i: np.zeros(x.shape) if x.grad is None else x.grad for i, x in leaves.items()}


@each_operation
@settings(max_examples=EXAMPLES)
@given(data=st.data(), one_pass=st.booleans())
def test_agrees_with_autograd(name: str, data: st.DataObject, one_pass: bool) -> None:
    program = data.draw(programs(name))
    leaves, found = program.leaves(), ours(program, one_pass=one_pass)

    def result(values: list[Any]) -> Any:
        return program.result(Numpy(anp), dict(zip(leaves, values, strict=True)))

    expected = dict(zip(leaves, autograd.grad(result)(list(leaves.values())), strict=True))
    scale = max((np.max(np.abs(g), initial=1) for g in expected.values()), default=1)
    for i in leaves:
        np.testing.assert_allclose(found[i], expected[i], rtol=1e-9, atol=1e-13 * scale)


@each_operation
@settings(max_examples=5)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_agrees_with_central_differences(name: str, data: st.DataObject, seed: int) -> None:
    program, rng = data.draw(programs(name)), np.random.default_rng(seed)
    leaves, found = program.leaves(), ours(program, one_pass=True)
    directions = {i: rng.normal(size=x.shape) for i, x in leaves.items()}

    def along(h: float) -> float:
        moved = {i: x + h * directions[i] for i, x in leaves.items()}
        return float(program.result(Numpy(np), moved))

    expected = (along(1e-5) - along(-1e-5)) / 2e-5
    terms = [np.sum(found[i] * directions[i]) for i in leaves]
    scale = sum(np.sum(np.abs(found[i] * directions[i])) for i in leaves) + 1
    assert abs(sum(terms) - expected) <= 1e-6 * scale


def test_every_public_operation_is_among_them() -> None:
    functions = inspect.getmembers(tn, inspect.isfunction)
    own = {n for n, f in functions if f.__module__ in (tn.__name__, "numpy")}  # not imported ones
    public = {n for n in own if not n.startswith("_")}
    assert {"exp", "sum"} < public <= {*OPERATIONS, "array", "primitive"}


@each_operation
@settings(max_examples=10)
@given(data=st.data())
def test_gradients_pass_through_the_operation_that_is_asked_for(
    name: str, data: st.DataObject
) -> None:
    program = data.draw(programs(name))
    leaves = {i: tn.array(x, requires_grad=True) for i, x in program.leaves().items()}
    values = program.run(tn, leaves)
    roots = [values[root] for root, _ in program.roots]
    walk = Walk([(x, None) for x in roots if isinstance(x, tn.Array)])
    assert name in [x.grad_fn.operation.name for x in walk if x.grad_fn is not None]
