"""Numbers on the tape of text: numpy's operations and their vector-Jacobian products.

The walk, the accumulation, hooks and the grad mode are those of text; this file adds vjps and
nothing else. That numbers come out right is what "generalises reverse-mode differentiation" means.
Names, arguments and broadcasting are numpy's; all arrays are of 64-bit floats. Where a derivative
does not exist, `relu` takes 0 at 0 (PyTorch); the rest is as in HIPS/autograd: equal elements share
the gradient of `maximum`, and for `x**y` the derivative by x is 0 where y is 0, and the one by y is
0 where x is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from textautograd.backward import backward
from textautograd.base import Variable
from textautograd.call_site import call_site
from textautograd.errors import GraphError, UsageError
from textautograd.grad_mode import is_grad_enabled
from textautograd.tape import Node

Value = npt.NDArray[np.float64]
Axis = int | tuple[int, ...] | None


class Operation:
    """A function of arrays, and a vjp (or `None`) for each of them; see `primitive`."""

    __slots__ = ("forward", "name", "vjps")
    is_opaque = False

    def __init__(self, name: str, forward: Callable[..., Any], vjps: Sequence[Any]) -> None:
        self.name = name
        self.forward = forward
        self.vjps = vjps

    def __call__(self, *inputs: Any) -> Array:
        if len(inputs) != len(self.vjps):
            raise UsageError(f"{self.name} takes {len(self.vjps)} arrays, not {len(inputs)}")
        arrays = tuple(x if isinstance(x, Array) else array(x) for x in inputs)
        values = tuple(x._value for x in arrays)
        try:
            value = _numbers(self.forward(*values), copy=None)
        except ValueError as error:
            shapes = ", ".join(str(x.shape) for x in values)
            raise UsageError(f"{self.name} of arrays of shape {shapes}: {error}") from error
        if not (is_grad_enabled() and any(x._requires_grad for x in arrays)):
            return _made(value)
        versions = tuple(x._version for x in arrays)
        site = call_site()
        node = Node(self, arrays, inputs=values, output=value, versions=versions, site=site)
        return _made(value, node)

    def backward(self, node: Node, gradient: Value) -> list[Value | None]:
        """The vjps, each summed over the axes along which its input was broadcast."""
        pulled: list[Value | None] = []
        for vjp, x, wanted in zip(self.vjps, node.inputs, node.predecessors, strict=True):
            if vjp is None or not wanted.requires_grad:
                pulled.append(None)
                continue
            g = _unbroadcast(np.asarray(vjp(gradient, node.output, *node.inputs)), x.shape)
            if g.shape != x.shape:
                raise GraphError(
                    f"vjp {len(pulled)} of {self.name} returned shape {g.shape} for an input of "
                    f"shape {x.shape}"
                )
            pulled.append(g)
        return pulled


def _unbroadcast(g: Value, shape: tuple[int, ...]) -> Value:
    extra = g.ndim - len(shape)
    if g.shape == shape or extra < 0:
        return g
    stretched = (extra + i for i, n in enumerate(shape) if n == 1)
    summed: Value = g.sum(axis=(*range(extra), *stretched), keepdims=True)
    return summed.reshape(summed.shape[extra:])


def primitive(
    forward: Callable[..., Any], *vjps: Any, name: str | None = None
) -> Callable[..., Array]:
    """An operation of your own: a function of numpy arrays, and a vjp for each of its arguments.

    `vjp(g, out, *inputs)` returns the gradient of its argument, given `g`, the gradient of the
    output; `None` in its place passes nothing back. Where an argument was broadcast, its gradient
    is summed as it has to be. `testing.gradcheck` tells whether a vjp is right
    (`autograd.extend.primitive` and `defvjp`).

        square = primitive(lambda x: x * x, lambda g, out, x: g * 2 * x, name="square")
    """
    operation = Operation(name or forward.__name__, forward, vjps)

    @wraps(forward)
    def call(*inputs: Any) -> Array:
        return operation(*inputs)

    call.__name__ = operation.name
    if isinstance(forward, np.ufunc):  # whose own text speaks of its options
        call.__doc__ = (
            f"numpy's {operation.name}, of arrays alone: without `out`, `where`, `dtype`."
        )
    return call


add = primitive(np.add, lambda g, out, a, b: g, lambda g, out, a, b: g)
subtract = primitive(np.subtract, lambda g, out, a, b: g, lambda g, out, a, b: -g)
multiply = primitive(np.multiply, lambda g, out, a, b: g * b, lambda g, out, a, b: g * a)
divide = primitive(np.divide, lambda g, out, a, b: g / b, lambda g, out, a, b: -g * a / b**2)
power = primitive(
    np.power,
    lambda g, out, a, b: g * b * a ** np.where(b == 0, 1.0, b - 1),
    lambda g, out, a, b: g * out * np.log(np.where(a == 0, 1.0, a)),
)
negative = primitive(np.negative, lambda g, out, x: -g)
exp = primitive(np.exp, lambda g, out, x: g * out)
log = primitive(np.log, lambda g, out, x: g / x)
sin = primitive(np.sin, lambda g, out, x: g * np.cos(x))
cos = primitive(np.cos, lambda g, out, x: -g * np.sin(x))
tanh = primitive(np.tanh, lambda g, out, x: g * (1 - out**2))
relu = primitive(lambda x: np.maximum(x, 0), lambda g, out, x: g * (x > 0), name="relu")
relu.__doc__ = "The larger of x and 0; at 0 its gradient is 0."
maximum = primitive(
    np.maximum,
    lambda g, out, a, b: g * ((a > b) + 0.5 * (a == b)),
    lambda g, out, a, b: g * ((b > a) + 0.5 * (a == b)),
)
where = primitive(
    lambda condition, a, b: np.where(condition != 0, a, b),
    None,
    lambda g, out, condition, a, b: np.where(condition != 0, g, 0.0),
    lambda g, out, condition, a, b: np.where(condition != 0, 0.0, g),
    name="where",
)
where.__doc__ = "Of a where the condition is not 0, else of b."


def _matmul_left(g: Value, out: Value, a: Value, b: Value) -> Value:
    if b.ndim == 1:
        return g[..., None] * b
    return (g if a.ndim > 1 else g[..., None, :]) @ b.swapaxes(-1, -2)


def _matmul_right(g: Value, out: Value, a: Value, b: Value) -> Value:
    if b.ndim == 1:
        return g[..., None] * a
    return a[:, None] * g[..., None, :] if a.ndim == 1 else a.swapaxes(-1, -2) @ g


matmul = primitive(np.matmul, _matmul_left, _matmul_right)


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Sum over axes."""
    spread = _spread(axis, keepdims)
    return Operation("sum", lambda x: np.sum(x, axis=axis, keepdims=keepdims), [spread])(x)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Array:
    """Mean over axes."""
    spread = _spread(axis, keepdims)
    return Operation(
        "mean",
        lambda x: np.mean(x, axis=axis, keepdims=keepdims),
        [lambda g, out, x: spread(g, out, x) * out.size / x.size],
    )(x)


def _spread(axis: Axis, keepdims: bool) -> Callable[[Value, Value, Value], Value]:
    def vjp(g: Value, out: Value, x: Value) -> Value:
        if axis is not None and not keepdims:
            g = np.expand_dims(g, axis)
        return np.broadcast_to(g, x.shape)

    return vjp


def reshape(x: Any, shape: int | tuple[int, ...]) -> Array:
    """The same elements in another shape."""
    return Operation("reshape", lambda x: x.reshape(shape), [lambda g, out, x: g.reshape(x.shape)])(
        x
    )


def transpose(x: Any, axes: Sequence[int] | None = None) -> Array:
    """The axes in another order, reversed by default."""

    def back(g: Value, out: Value, x: Value) -> Value:
        inverse = None if axes is None else np.argsort([axis % x.ndim for axis in axes])
        return np.transpose(g, inverse)

    return Operation("transpose", lambda x: np.transpose(x, axes), [back])(x)


def concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Array:
    """Joins arrays along an axis."""
    if axis is None:
        return concatenate([reshape(x, -1) for x in arrays])

    def piece(i: int) -> Callable[..., Value]:
        def vjp(g: Value, out: Value, *xs: Value) -> Value:
            start = int(np.sum([x.shape[axis] for x in xs[:i]]))
            return np.split(g, [start, start + xs[i].shape[axis]], axis)[1]

        return vjp

    vjps = [piece(i) for i in range(len(arrays))]
    return Operation("concatenate", lambda *xs: np.concatenate(xs, axis), vjps)(*arrays)


def _getitem(x: Any, index: Any) -> Array:
    def scatter(g: Value, out: Value, x: Value) -> Value:
        whole = np.zeros(x.shape)
        np.add.at(whole, index, g)  # an element picked twice gets both
        return whole

    return Operation("getitem", lambda x: x[index], [scatter])(x)


def _swapped(operation: Callable[..., Array]) -> Any:
    return lambda self, other: operation(other, self)


class Array(Variable):
    """An array on the tape; see `array`. It may stand where numpy's functions above take one."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def grad(self) -> Value | None: ...
        @grad.setter
        def grad(self, gradient: Any) -> None: ...

    @property
    def data(self) -> Value:
        """The numbers. Assignable on a leaf; writing into single elements goes unnoticed."""
        value: Value = self._value
        return value

    @data.setter
    def data(self, value: Any) -> None:
        if not self.is_leaf:
            raise GraphError(
                f"{self._title()} was computed, only a leaf can be assigned: use detach()"
            )
        numbers = _numbers(value)
        if numbers.shape != self.shape:
            raise UsageError(f"an array of shape {self.shape} cannot become one of {numbers.shape}")
        self._value = numbers
        self._version += 1
        self._modified_at = call_site()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def item(self) -> float:
        """The number of an array with one element."""
        return float(self.data.item())

    def detach(self) -> Array:
        """A leaf with the same numbers, cut off from the tape."""
        return _made(self._value)

    def backward(self, gradient: Any = None, *, retain_graph: bool = False) -> None:
        """Adds the gradient of this array to `.grad` of every leaf that requires it.

        Raises:
            GraphError: nothing requires grad, the graph was freed, a leaf was modified since it was
                used, or a seed is missing (only a single number needs none) or of another shape.
        """
        backward([(self, self._seed(gradient))], retain_graph=retain_graph)

    def _as_gradient(self, value: Any) -> Value:
        gradient = _numbers(value)  # a copy: `x + y` gives x and y the same one
        if gradient.shape != self.shape:
            raise GraphError(
                f"a gradient of shape {gradient.shape} for an array of shape {self.shape}"
            )
        return gradient

    def _first_gradient(self) -> Value:
        if self.data.size != 1:
            raise GraphError(f"an array of shape {self.shape} needs a seed: backward(gradient)")
        return np.ones(self.shape)

    def _flaw(self, gradient: Value) -> str:
        return "holds NaN" if np.isnan(gradient).any() else ""

    __add__ = __radd__ = add
    __sub__, __rsub__ = subtract, _swapped(subtract)
    __mul__ = __rmul__ = multiply
    __truediv__, __rtruediv__ = divide, _swapped(divide)
    __pow__, __rpow__ = power, _swapped(power)
    __matmul__, __rmatmul__ = matmul, _swapped(matmul)
    __neg__ = negative
    __getitem__ = _getitem

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        operation = _UFUNCS.get(ufunc)
        if operation is None or method != "__call__" or options:
            raise UsageError(
                f"there is no vjp for this use of np.{ufunc.__name__}: see numeric's functions, "
                "define a numeric.primitive, or take the numbers alone with .data"
            )
        return operation(*inputs)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise UsageError(
            "numpy would cut this array off the tape: see numeric's functions, or take the numbers "
            "alone with .data"
        )

    def __bool__(self) -> bool:
        return bool(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __format__(self, spec: str) -> str:
        return format(self.item() if spec else str(self), spec)

    def __repr__(self) -> str:
        parts = [np.array2string(self.data, separator=", ", prefix="array(")]
        parts += [f"grad_fn={self.grad_fn}"] if self.grad_fn else []
        parts += ["requires_grad=True"] if self.is_leaf and self.requires_grad else []
        return f"array({', '.join(parts)})"


_UFUNCS = {
    np.add: add,
    np.subtract: subtract,
    np.multiply: multiply,
    np.divide: divide,
    np.power: power,
    np.negative: negative,
    np.matmul: matmul,
    np.exp: exp,
    np.log: log,
    np.sin: sin,
    np.cos: cos,
    np.tanh: tanh,
    np.maximum: maximum,
}


def array(value: Any, *, requires_grad: bool = False) -> Array:
    """An array variable: a copy of the value, as 64-bit floats (`torch.tensor`).

    Raises:
        UsageError: if the value is no array of real numbers.
    """
    made = _made(_numbers(value))
    made.requires_grad = requires_grad
    return made


def _made(value: Value, node: Node | None = None) -> Array:
    made = Array.__new__(Array)
    made._set(value, node, node is not None, None)
    return made


def _numbers(value: Any, copy: bool | None = True) -> Value:
    """The value as 64-bit floats, if it is numbers."""
    if isinstance(value, Array):
        value = value.data
    try:
        numbers = np.array(value, copy=copy)
    except (TypeError, ValueError) as error:
        raise UsageError(f"this is no array of numbers: {error}") from None
    if numbers.dtype.kind not in "biuf":
        raise UsageError(f"this is no array of real numbers but of {numbers.dtype}: {value!r:.80}")
    return numbers.astype(float, copy=False)
