"""Random programs over arrays, as data: run by numpy, by textautograd and by HIPS/autograd.

Values stay moderate and clear of kinks, so that every derivative is well-conditioned.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

LARGEST = 5  # what is larger is scaled, and not used itself
SHAPES = [(), (3,), (2, 3), (2, 1), (1, 3), (2, 2, 3), (1,), (0,), (2, 0)]

# What an instruction runs: `m` is numpy, autograd.numpy or textautograd.numeric.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": lambda m, a, b: a + b,
    "subtract": lambda m, a, b: a - b,
    "multiply": lambda m, a, b: a * b,
    "divide": lambda m, a, b: a / b,
    "power": lambda m, a, b: a**b,
    "matmul": lambda m, a, b: a @ b,
    "negative": lambda m, x: -x,
    "getitem": lambda m, x, index: x[index],
    "concatenate": lambda m, *xs, axis: m.concatenate(xs, axis),
} | {
    name: lambda m, *xs, name=name, **options: getattr(m, name)(*xs, **options)
    for name in "exp log sin cos tanh relu maximum sum mean reshape transpose where".split()
}


class Slot(int):
    """An operand that is an earlier value; a plain int is a constant."""

    def __repr__(self) -> str:
        return f"Slot({int(self)})"


@dataclass
class Program:
    """`instructions[i]` makes value i: a leaf (its numbers, whether it requires grad), or an
    operation on earlier values and constants. The result is the sum of seed * root."""

    instructions: list[tuple[Any, ...]] = field(default_factory=list)
    roots: list[tuple[int, Any]] = field(default_factory=list)

    def leaves(self) -> dict[int, Any]:
        """The numbers of the leaves that require grad."""
        return {i: x[1] for i, x in enumerate(self.instructions) if x[0] == "leaf" and x[2]}

    def run(self, m: Any, leaves: dict[int, Any]) -> list[Any]:
        """All values, with these leaves in place of its own."""
        values: list[Any] = []
        for i, (name, *rest) in enumerate(self.instructions):
            if name == "leaf":
                values.append(leaves.get(i, rest[0]))
            else:
                operands, options = rest
                known = [values[x] if isinstance(x, Slot) else x for x in operands]
                values.append(OPERATIONS[name](m, *known, **options))
        return values

    def result(self, m: Any, leaves: dict[int, Any]) -> Any:
        values = self.run(m, leaves)
        return sum(m.sum(seed * values[root]) for root, seed in self.roots)


class Numpy:
    """numpy, or autograd's, with a relu and without two defects of autograd 1.9.1: `where` does not
    sum over broadcast axes, and `transpose` mistakes negative axes."""

    def __init__(self, numpy: Any) -> None:
        self.numpy = numpy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.numpy, name)

    def relu(self, x: Any) -> Any:
        return self.numpy.where(x > 0, x, 0.0 * x)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        zeros = np.zeros(np.broadcast_shapes(*map(np.shape, (condition, a, b))))
        return self.numpy.where(condition, a + zeros, b + zeros)

    def transpose(self, x: Any, axes: Any) -> Any:
        return self.numpy.transpose(x, axes and [axis % x.ndim for axis in axes])


class Builder:
    """Draws instructions that fit the values so far, which it computes as it goes."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        self.program = Program()
        self.values: list[Any] = []
        self.live: list[bool] = []  # whether a leaf that requires grad lies behind
        self.only_live = True

    def leaf(self, shape: tuple[int, ...] | None = None) -> int:
        shape = self.one_of(SHAPES) if shape is None else shape
        value = self.rng.uniform(-2, 2, shape)
        self.live.append(self.only_live or self.draw(st.booleans()))
        self.program.instructions.append(("leaf", value, self.live[-1]))
        self.values.append(value)
        return Slot(len(self.values) - 1)

    def emit(self, name: str, *operands: Any, **options: Any) -> int:
        known = [self.values[x] if isinstance(x, Slot) else x for x in operands]
        self.live.append(any(isinstance(x, Slot) and self.live[x] for x in operands))
        self.program.instructions.append((name, operands, options))
        self.values.append(np.asarray(OPERATIONS[name](Numpy(np), *known, **options)))
        largest = np.max(np.abs(self.values[-1]), initial=0)
        slot = Slot(len(self.values) - 1)
        return self.emit("multiply", slot, 4 / float(largest)) if largest > LARGEST else slot

    def one_of(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(list(choices)))

    def pick(self, fits: Callable[[Any], bool] = lambda value: True) -> int | None:
        slots = [
            Slot(i)
            for i, value in enumerate(self.values)
            if fits(value) and np.max(np.abs(value), initial=0) <= LARGEST  # else it was scaled
        ]
        slots = [i for i in slots if self.live[i] or not self.only_live]
        return self.one_of(slots) if slots else None

    def partner(self, shape: tuple[int, ...]) -> int:
        """A value that broadcasts with this shape: an earlier one, maybe the same, or a leaf."""

        def fits(value: Any) -> bool:
            try:
                return bool(np.prod(np.broadcast_shapes(value.shape, shape)) <= 48)
            except ValueError:
                return False

        if self.draw(st.booleans()) or (slot := self.pick(fits)) is None:
            kept = shape[self.draw(st.integers(0, len(shape))) :]
            slot = self.leaf(tuple(self.one_of([n, n, 1]) for n in kept))
        return slot

    def positive(self, slot: int) -> int:
        if np.min(self.values[slot], initial=1) >= 0.3:
            return slot
        return self.emit("add", self.emit("multiply", slot, slot), 0.5)

    def clear_of_zero(self, slot: int, distances: Any) -> int:
        """The value moved by a constant, so that no distance is close to 0."""
        shift = max(np.linspace(0, 1, 97), key=lambda s: np.min(np.abs(distances + s), initial=9))
        return self.emit("add", slot, float(shift))

    def step(self, name: str) -> None:
        getattr(self, name, lambda: self.unary(name))()

    def unary(self, name: str) -> None:
        slot = self.pick()
        if name == "log":
            slot = self.positive(slot)
        if name == "relu":
            slot = self.clear_of_zero(slot, self.values[slot])
        self.emit(name, slot)

    def binary(self, name: str) -> None:
        a: Any = self.pick()
        b: Any = a if self.one_of([0, 0, 0, 1]) else self.partner(self.values[a].shape)
        if name == "divide":
            b = self.positive(b)
        if name == "power":
            a, b = self.positive(a), self.emit("sin", b)
        if name == "maximum" and a != b:
            b = self.clear_of_zero(b, self.values[b] - self.values[a])
        if name == "maximum" and a == b:
            self.emit(name, a, b)  # a tie, which must stay one
            return
        constant = self.one_of([None, None, 0, 1])  # one of them, but not both, is plain numbers
        if constant == 0:
            a = self.plain(a)
        if constant == 1:
            b = self.plain(b)
        self.emit(name, a, b)

    def plain(self, slot: int) -> Any:
        value = self.values[slot]
        return float(value.flat[0]) if value.size == 1 else np.array(value)

    def add(self) -> None:
        self.binary("add")

    def subtract(self) -> None:
        self.binary("subtract")

    def multiply(self) -> None:
        self.binary("multiply")

    def divide(self) -> None:
        self.binary("divide")

    def maximum(self) -> None:
        self.binary("maximum")

    def power(self) -> None:
        if self.draw(st.booleans()):
            return self.binary("power")
        exponent = self.one_of([2, 3, 1, 0, -1, 0.5, np.array(2)])
        base = self.pick()
        self.emit("power", self.positive(base) if exponent in (-1, 0.5) else base, exponent)

    def matmul(self) -> None:
        a = self.pick(lambda value: value.ndim > 0)
        a = self.leaf((2, 3)) if a is None else a
        *batch, n = self.values[a].shape
        batch = batch[:-1] if batch else [2]
        shapes = [(n,), (n, 2), (n, 1), (*batch, n, 2), (1, n, 2)]
        b: Any = self.pick(lambda value: value.shape in shapes)
        if b is None or self.draw(st.booleans()):
            b = self.leaf(self.one_of(shapes))
        constant = self.one_of([None, None, 0, 1])
        self.emit(
            "matmul",
            np.array(self.values[a]) if constant == 0 else a,
            np.array(self.values[b]) if constant == 1 else b,
        )

    def sum(self) -> None:
        self.reduce("sum", self.pick())

    def mean(self) -> None:
        slot = self.pick(lambda value: value.size > 0)
        self.reduce("mean", self.leaf((2, 3)) if slot is None else slot)

    def reduce(self, name: str, slot: int | None) -> None:
        ndim = self.values[slot].ndim
        axes = self.draw(st.lists(st.integers(0, ndim - 1), unique=True)) if ndim else []
        signed = tuple(axis - self.one_of([0, ndim]) for axis in axes)
        axis = self.one_of([None, signed, signed[0] if len(signed) == 1 else signed])
        self.emit(name, slot, axis=axis, keepdims=self.draw(st.booleans()))

    def reshape(self) -> None:
        slot = self.pick()
        shape = self.values[slot].shape
        choices = [-1, shape[::-1], (1, *shape), (*shape, 1), (-1, 1), self.values[slot].size]
        self.emit("reshape", slot, shape=self.one_of(choices))

    def transpose(self) -> None:
        slot = self.pick() if self.draw(st.booleans()) else self.leaf((2, 2, 3))
        ndim = self.values[slot].ndim
        order = self.draw(st.permutations(range(ndim)))
        signed = tuple(axis - self.one_of([0, ndim]) for axis in order)
        self.emit("transpose", slot, axes=self.one_of([None, signed]))

    def getitem(self) -> None:
        slot = self.pick()
        value = self.values[slot]
        choices: list[Any] = [..., None, value > 0]
        if value.ndim:  # autograd fails at a number's [()]
            choices += [(), slice(1, None), slice(None, None, -1), (None, ..., slice(0, 2))]
        if value.ndim and len(value):
            choices += [0, -1, [0, -1, 0], np.array([[0, 0], [-1, 0]]), np.arange(len(value)) > 0]
        if value.ndim > 1 and value.size:
            choices += [([0, -1, 0], [0, -1, 0]), (slice(None), [0, 0]), (0, slice(None, None, 2))]
            choices += [(value[:, 0] > 0, 0)] if value.ndim == 2 else []
        index = self.draw(st.integers(0, len(choices) - 1))
        self.emit("getitem", slot, index=choices[index])

    def concatenate(self) -> None:
        first = self.pick(lambda value: value.ndim > 0)
        first = self.leaf((2, 3)) if first is None else first
        shape = self.values[first].shape
        axis = self.draw(st.integers(0, len(shape) - 1))

        def fits(value: Any) -> bool:
            others = (*value.shape[:axis], *value.shape[axis + 1 :])
            return value.ndim == len(shape) and others == (*shape[:axis], *shape[axis + 1 :])

        parts: list[Any] = [first, *(self.pick(fits) for _ in range(self.draw(st.integers(0, 2))))]
        if self.draw(st.booleans()):
            parts.insert(0, np.ones(shape))
        self.emit("concatenate", *parts, axis=axis - self.one_of([0, len(shape)]))

    def where(self) -> None:
        a = self.pick()
        b = self.partner(self.values[a].shape)
        shape = self.values[self.partner((self.values[a] + self.values[b]).shape)].shape
        try:
            np.broadcast_shapes(shape, self.values[a].shape, self.values[b].shape)
        except ValueError:
            shape = ()
        self.emit("where", self.rng.random(shape) < 0.5, a, b)


@st.composite
def programs(draw: Any, name: str) -> Program:
    """A program in which the gradient of some leaf passes through this operation."""
    builder = Builder(draw)
    for _ in range(draw(st.integers(1, 3))):
        builder.leaf()
        builder.only_live = False
    names = draw(st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=8))
    at = draw(st.integers(0, len(names)))
    for each in names[:at]:
        builder.step(each)
    builder.only_live = True
    builder.step(name)
    builder.only_live = False
    roots = {len(builder.values) - 1}
    for each in names[at:]:
        builder.step(each)
    roots |= {*draw(st.lists(st.integers(0, len(builder.values) - 1), max_size=2))}
    for root in sorted(roots):
        seed = builder.rng.normal(size=builder.values[root].shape)
        builder.program.roots.append((root, seed))
    return builder.program
