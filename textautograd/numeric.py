"""Numbers on the same tape: arrays whose operations know their vector-Jacobian products.

The walk, the accumulation and the grad mode are those of text; this file adds vjps and nothing
else. That numbers come out right is what "generalises reverse-mode differentiation" means here.
Names, arguments and broadcasting are numpy's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from textautograd.errors import GraphError, UsageError
from textautograd.grad_mode import is_grad_enabled
from textautograd.tape import Node, Walk, drive

Value = npt.NDArray[np.float64]
Vjp = Callable[[Value], Value]
Axis = int | tuple[int, ...] | None


class Array:
    """An array variable; see `array`."""

    __slots__ = ("__weakref__", "data", "grad", "grad_fn", "requires_grad")
    __array_ufunc__ = None  # so that numpy's operators leave ours alone

    def __init__(self, data: Value, requires_grad: bool, grad_fn: Node | None = None) -> None:
        self.data = data
        self.requires_grad = requires_grad
        self.grad_fn = grad_fn
        self.grad: Value | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user rather than by a recorded operation."""
        return self.grad_fn is None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def item(self) -> float:
        """The number of an array with one element."""
        return float(self.data.item())

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Adds the gradient of this array to `.grad` of every leaf that requires it.

        Raises:
            GraphError: nothing requires grad, the graph was freed, or a seed is missing (only a
                single number needs none) or of another shape.
        """
        if not self.requires_grad:
            raise GraphError("this array does not require grad")
        if gradient is None:
            if self.data.size != 1:
                raise GraphError(f"an array of shape {self.shape} needs a seed: backward(gradient)")
            gradient = np.ones_like(self.data)
        seed = np.asarray(gradient, dtype=float)
        if seed.shape != self.shape:
            raise GraphError(f"the seed has shape {seed.shape}, the array {self.shape}")
        walk = Walk([(self, seed)])

        def arrive(variable: Any, gradient: Value) -> Value:
            if variable.is_leaf:
                variable.grad = gradient if variable.grad is None else variable.grad + gradient
            return gradient

        drive(walk, lambda node, g: node.operation.pull(node, g), arrive)
        if not retain_graph:
            for variable in list(walk):
                if variable.grad_fn is not None:
                    variable.grad_fn.free()

    def __add__(self, other: Any) -> Array:
        return _binary("add", self, other, np.add, lambda g, a, b: g, lambda g, a, b: g)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Array:
        return _binary("sub", self, other, np.subtract, lambda g, a, b: g, lambda g, a, b: -g)

    def __rsub__(self, other: Any) -> Array:
        difference: Array = -self + other
        return difference

    def __mul__(self, other: Any) -> Array:
        return _binary(
            "mul", self, other, np.multiply, lambda g, a, b: g * b, lambda g, a, b: g * a
        )

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Array:
        return _binary(
            "div", self, other, np.divide, lambda g, a, b: g / b, lambda g, a, b: -g * a / b**2
        )

    def __rtruediv__(self, other: Any) -> Array:
        return _array(other) / self

    def __pow__(self, other: Any) -> Array:
        return _binary(
            "pow",
            self,
            other,
            np.power,
            lambda g, a, b: g * b * a ** np.where(b == 0, 1.0, b - 1),
            lambda g, a, b: g * np.log(np.where(a > 0, a, 1.0)) * a**b,
        )

    def __neg__(self) -> Array:
        return _unary("neg", self, -self.data, lambda g: -g)

    def __matmul__(self, other: Any) -> Array:
        other = _array(other)
        a = self.data[None, :] if self.data.ndim == 1 else self.data
        b = other.data[:, None] if other.data.ndim == 1 else other.data
        inner = (a @ b).shape

        def left(g: Value) -> Value:
            return _summed(g.reshape(inner) @ b.swapaxes(-1, -2), a.shape).reshape(self.shape)

        def right(g: Value) -> Value:
            return _summed(a.swapaxes(-1, -2) @ g.reshape(inner), b.shape).reshape(other.shape)

        return _apply("matmul", self.data @ other.data, [self, other], [left, right])

    def __getitem__(self, index: Any) -> Array:
        def scattered(g: Value) -> Value:
            whole = np.zeros(self.shape)
            np.add.at(whole, index, g)
            return whole

        return _unary("getitem", self, self.data[index], scattered)

    def __repr__(self) -> str:
        made = f", grad_fn={self.grad_fn}" if self.grad_fn else ""
        leaf = ", requires_grad=True" if self.is_leaf and self.requires_grad else ""
        return f"array({self.data.tolist()}{made}{leaf})"


def array(value: Any, *, requires_grad: bool = False) -> Array:
    """An array variable of 64-bit floats (`torch.tensor`).

    Raises:
        UsageError: if the value is no array of numbers.
    """
    try:
        data = np.array(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise UsageError(f"this is no array of numbers: {error}") from None
    return Array(data, bool(requires_grad))


def exp(x: Any) -> Array:
    """Elementwise e**x."""
    x = _array(x)
    value = np.exp(x.data)
    return _unary("exp", x, value, lambda g: g * value)


def log(x: Any) -> Array:
    """Elementwise natural logarithm."""
    x = _array(x)
    return _unary("log", x, np.log(x.data), lambda g: g / x.data)


def sin(x: Any) -> Array:
    """Elementwise sine."""
    x = _array(x)
    return _unary("sin", x, np.sin(x.data), lambda g: g * np.cos(x.data))


def cos(x: Any) -> Array:
    """Elementwise cosine."""
    x = _array(x)
    return _unary("cos", x, np.cos(x.data), lambda g: -g * np.sin(x.data))


def tanh(x: Any) -> Array:
    """Elementwise hyperbolic tangent."""
    x = _array(x)
    value = np.tanh(x.data)
    return _unary("tanh", x, value, lambda g: g * (1 - value**2))


def relu(x: Any) -> Array:
    """Elementwise max(x, 0); its derivative at 0 is 0."""
    x = _array(x)
    return _unary("relu", x, np.maximum(x.data, 0), lambda g: g * (x.data > 0))


def maximum(a: Any, b: Any) -> Array:
    """Elementwise maximum; equal elements share the gradient."""
    return _binary(
        "maximum",
        a,
        b,
        np.maximum,
        lambda g, a, b: g * ((a > b) + 0.5 * (a == b)),
        lambda g, a, b: g * ((b > a) + 0.5 * (a == b)),
    )


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum over axes."""
    x = _array(x)

    def spread(g: Value) -> Value:
        if axis is not None and not keepdims:
            g = np.expand_dims(g, axis)
        return np.broadcast_to(g, x.shape)

    return _unary("sum", x, np.asarray(np.sum(x.data, axis=axis, keepdims=keepdims)), spread)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Mean over axes."""
    x = _array(x)
    total = sum(x, axis, keepdims)
    average: Array = total * (total.data.size / x.data.size)
    return average


def reshape(x: Any, shape: int | tuple[int, ...]) -> Array:
    """The same elements in another shape."""
    x = _array(x)
    return _unary("reshape", x, x.data.reshape(shape), lambda g: g.reshape(x.shape))


def transpose(x: Any, axes: Sequence[int] | None = None) -> Array:
    """The axes in another order, reversed by default."""
    x = _array(x)
    back = None if axes is None else np.argsort(axes)
    return _unary("transpose", x, np.transpose(x.data, axes), lambda g: np.transpose(g, back))


def concatenate(arrays: Sequence[Any], axis: int = 0) -> Array:
    """Joins arrays along an axis."""
    parts = [_array(part) for part in arrays]
    ends = np.cumsum([part.shape[axis] for part in parts])

    def piece(i: int) -> Vjp:
        return lambda g: np.split(g, ends[:-1], axis)[i]

    value = np.concatenate([part.data for part in parts], axis)
    return _apply("concatenate", value, parts, [piece(i) for i in range(len(parts))])


def where(condition: Any, a: Any, b: Any) -> Array:
    """Elements of `a` where the condition holds, else of `b`."""
    holds = np.asarray(condition.data if isinstance(condition, Array) else condition, dtype=bool)
    return _binary(
        "where",
        a,
        b,
        lambda a, b: np.where(holds, a, b),
        lambda g, a, b: g * holds,
        lambda g, a, b: g * ~holds,
    )


class _Operation:
    __slots__ = ("name", "vjps")

    def __init__(self, name: str, vjps: Sequence[Vjp]) -> None:
        self.name = name
        self.vjps = vjps

    def pull(self, node: Node, gradient: Value) -> list[Value | None]:
        pairs = zip(self.vjps, node.predecessors, strict=True)
        return [vjp(gradient) if p.requires_grad else None for vjp, p in pairs]


def _apply(name: str, value: Value, inputs: Sequence[Array], vjps: Sequence[Vjp]) -> Array:
    requires_grad = is_grad_enabled() and any(x.requires_grad for x in inputs)
    node = Node(_Operation(name, vjps), tuple(inputs)) if requires_grad else None
    return Array(np.asarray(value, dtype=float), requires_grad, node)


def _unary(name: str, x: Array, value: Value, vjp: Vjp) -> Array:
    return _apply(name, value, [x], [vjp])


def _binary(
    name: str,
    a: Any,
    b: Any,
    value: Callable[[Value, Value], Value],
    left: Callable[[Value, Value, Value], Value],
    right: Callable[[Value, Value, Value], Value],
) -> Array:
    a, b = _array(a), _array(b)
    x, y = a.data, b.data
    return _apply(
        name,
        value(x, y),
        [a, b],
        [lambda g: _summed(left(g, x, y), x.shape), lambda g: _summed(right(g, x, y), y.shape)],
    )


def _summed(g: Value, shape: tuple[int, ...]) -> Value:
    """A gradient summed over the axes along which its operand was broadcast."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return np.asarray(g.sum(axis=axes, keepdims=True)) if axes else np.asarray(g)


def _array(value: Any) -> Array:
    return value if isinstance(value, Array) else array(value)
