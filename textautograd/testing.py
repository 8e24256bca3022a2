"""Checks for what users write themselves, as `torch.autograd.gradcheck` is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from textautograd.errors import CheckError, UsageError
from textautograd.grad_mode import no_grad
from textautograd.numeric import Array, Value, array


def gradcheck(
    fn: Callable[..., Any],
    inputs: Any,
    *,
    eps: float = 1e-6,
    rtol: float = 1e-3,
    atol: float = 1e-5,
) -> bool:
    """Checks backward through `fn` against central differences, each element of each output by each
    element of each input that requires grad; returns True (`torch.autograd.gradcheck`).

    `fn` takes arrays and returns one or a sequence of them; `inputs` is one or a sequence. It is
    called with copies, near the inputs: keep away from points without a derivative.

    Raises:
        CheckError: for the first element that differs by more than `atol + rtol * |difference|`.
        UsageError: no input requires grad, or `fn` does not return arrays.
    """
    leaves = [array(x, requires_grad=getattr(x, "requires_grad", False)) for x in _several(inputs)]
    if not any(leaf.requires_grad for leaf in leaves):
        raise UsageError("gradcheck has nothing to check: no input requires grad")
    outputs = _several(fn(*leaves))
    for output in outputs:
        if not isinstance(output, Array):
            raise UsageError(f"gradcheck's fn must return arrays, not {type(output).__name__}")
    jacobians = [_jacobian(output, leaves) for output in outputs]

    def shifted(which: int, element: tuple[int, ...], by: float) -> list[Value]:
        moved = [leaf.data.copy() for leaf in leaves]
        moved[which][element] += by
        with no_grad():
            return [output.data for output in _several(fn(*map(array, moved)))]

    for which, leaf in enumerate(leaves):
        for element in np.ndindex(leaf.shape) if leaf.requires_grad else ():
            pairs = zip(shifted(which, element, eps), shifted(which, element, -eps), strict=True)
            for k, (above, below) in enumerate(pairs):
                found = jacobians[k][which][(..., *element)]
                expected = (above - below) / (2 * eps)
                for at in np.argwhere(~np.isclose(found, expected, rtol, atol)).tolist():
                    raise CheckError(
                        f"output {k}, element {at}, by input {which}, element {list(element)}: "
                        f"backward says {found[tuple(at)]:.8g}, central differences "
                        f"{expected[tuple(at)]:.8g}"
                    )
    return True


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Sequence) else [value]


def _jacobian(output: Array, leaves: Sequence[Array]) -> list[Value]:
    """By backward: for each leaf an array of shape (*output.shape, *leaf.shape)."""
    jacobian = [np.zeros(output.shape + leaf.shape) for leaf in leaves]
    for element in np.ndindex(output.shape) if output.requires_grad else ():
        seed = np.zeros(output.shape)
        seed[element] = 1.0
        for leaf in leaves:
            leaf.grad = None
        output.backward(seed, retain_graph=True)
        for rows, leaf in zip(jacobian, leaves, strict=True):
            if leaf.grad is not None:
                rows[element] = leaf.grad
    return jacobian
