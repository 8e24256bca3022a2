"""The walk, on its own: this file imports neither text nor numbers nor models.

Programs are lists of slots, drawn at random. Every oracle reads the program, never the tape.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textautograd.errors import GraphError
from textautograd.tape import Node, Walk, drive

Path = tuple[Any, ...]


class Var:
    """The least that the walk asks for; equal to nothing else and hashed as told."""

    def __init__(
        self, name: Any, grad_fn: Node | None = None, requires_grad: bool = True, salt: int = 0
    ) -> None:
        self.name = name
        self.grad_fn = grad_fn
        self.requires_grad = requires_grad
        self._salt = salt

    def __hash__(self) -> int:
        return hash((self._salt, id(self)))

    def __repr__(self) -> str:
        return f"v{self.name}"


class Op:
    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"op{index}"


@dataclass(frozen=True)
class Program:
    """`slots[i]` are the variables that variable i is made from, each less than i; none for a leaf.
    `wanted` are the leaves that want a gradient, `roots` the seeded variables (one may be seeded
    twice), `stops` the (variable, slot) pairs whose rule returns `None`."""

    slots: tuple[tuple[int, ...], ...]
    wanted: frozenset[int]
    roots: tuple[int, ...]
    stops: frozenset[tuple[int, int]]

    def requires_grad(self, i: int) -> bool:
        return i in self.wanted or any(map(self.requires_grad, self.slots[i]))

    def edges(self) -> list[tuple[int, int, int]]:
        """(from, slot, to), from the last variable to the first, where a gradient passes."""
        return [
            (i, slot, to)
            for i in reversed(range(len(self.slots)))
            for slot, to in enumerate(self.slots[i])
            if self.requires_grad(to) and (i, slot) not in self.stops
        ]

    def paths(self) -> dict[int, Counter[Path]]:
        """For each variable that wants a gradient: every path to it from every seed."""
        found: dict[int, Counter[Path]] = {}
        for seed, root in enumerate(self.roots):
            if self.requires_grad(root):
                found.setdefault(root, Counter())[("seed", seed)] += 1
        for i, slot, to in self.edges():
            for path, count in found.get(i, Counter()).items():
                found.setdefault(to, Counter())[(*path, (i, slot))] += count
        return found


@st.composite
def programs(draw: st.DrawFn) -> Program:
    leaves = draw(st.integers(1, 4))
    slots: list[tuple[int, ...]] = [()] * leaves
    for i in range(leaves, leaves + draw(st.integers(0, 8))):
        slots.append(tuple(draw(st.lists(st.integers(0, i - 1), min_size=1, max_size=3))))
    every = [(i, slot) for i, used in enumerate(slots) for slot in range(len(used))]
    return Program(
        tuple(slots),
        frozenset(draw(st.sets(st.integers(0, leaves - 1)))),
        tuple(draw(st.lists(st.integers(0, len(slots) - 1), min_size=1, max_size=3))),
        frozenset(draw(st.sets(st.sampled_from(every), max_size=2))) if every else frozenset(),
    )


def build(program: Program, rng: random.Random | None = None) -> list[Var]:
    """The program's variables; with `rng` made in another order and with other hashes."""
    made: dict[int, Var] = {}
    left = list(range(len(program.slots)))
    while left:
        possible = [i for i in left if all(p in made for p in program.slots[i])]
        i = rng.choice(possible) if rng else possible[0]
        left.remove(i)
        used = program.slots[i]
        node = Node(Op(i), tuple(made[p] for p in used)) if used else None
        salt = rng.getrandbits(60) if rng else 0
        made[i] = Var(i, node, program.requires_grad(i), salt)
    return [made[i] for i in range(len(program.slots))]


Paths = tuple[Path, ...]


def extend(program: Program, node: Node, gradient: Paths) -> list[Paths | None]:
    """The rule of the free algebra: a gradient is a list of paths, pulling adds an edge to each."""
    i = node.operation.index
    return [
        None if (i, slot) in program.stops else tuple((*path, (i, slot)) for path in gradient)
        for slot in range(len(program.slots[i]))
    ]


def seeds(program: Program, variables: list[Var]) -> list[tuple[Var, Paths]]:
    return [(variables[root], ((("seed", n)),)) for n, root in enumerate(program.roots)]


def walked(
    program: Program, variables: list[Var]
) -> tuple[dict[int, Paths], list[int], list[tuple[int, Paths]]]:
    """Gradients by variable, the sequence of pulls, and what was pulled."""
    gradients: dict[int, Paths] = {}
    pulls: list[tuple[int, Paths]] = []

    def pull(node: Node, gradient: Paths) -> list[Paths | None]:
        pulls.append((node.operation.index, gradient))
        return extend(program, node, gradient)

    def arrive(variable: Any, gradient: Paths) -> Paths:
        assert variable.name not in gradients, "a variable's gradient completed twice"
        gradients[variable.name] = gradient
        return gradient

    # a seed is a list of one path, and a path a tuple
    roots = [(v, (("seed", n),)) for n, (v, _) in enumerate(seeds(program, variables))]
    drive(Walk(roots), pull, arrive)
    return gradients, [i for i, _ in pulls], pulls


@given(programs())
def test_free_algebra_every_path_exactly_once(program: Program) -> None:
    gradients, _, _ = walked(program, build(program))
    assert {i: Counter(paths) for i, paths in gradients.items()} == program.paths()


@given(programs())
def test_a_variable_used_twice_fills_two_slots(program: Program) -> None:
    root = len(program.slots)
    doubled = Program((*program.slots, (0, 0)), program.wanted | {0}, (root,), frozenset())
    gradients, _, _ = walked(doubled, build(doubled))
    assert gradients[0] == (("seed", 0, (root, 0)), ("seed", 0, (root, 1)))


@given(programs())
def test_combined_first_then_pulled_once_after_all_successors(program: Program) -> None:
    gradients, order, pulls = walked(program, build(program))
    assert len(order) == len(set(order))
    assert set(order) == {i for i in program.paths() if program.slots[i]}
    for i, gradient in pulls:
        assert gradient == gradients[i]
    for i in order:
        for successor in order:
            if i in program.slots[successor] and (program.requires_grad(i)):
                assert order.index(successor) < order.index(i)


@given(programs())
def test_pruned_where_nothing_behind_wants_a_gradient(program: Program) -> None:
    gradients, order, _ = walked(program, build(program))
    assert all(program.requires_grad(i) for i in order)
    assert all(program.requires_grad(i) for i in gradients)
    visited = {v.name for v in Walk(seeds(program, build(program)))}
    assert all(program.requires_grad(i) for i in visited)


def test_a_rule_is_never_called_in_front_of_constants() -> None:
    program = Program(((), (), (0,), (1, 0), (2, 3)), frozenset({1}), (4,), frozenset())
    _, order, _ = walked(program, build(program))
    assert order == [4, 3]


@given(programs())
def test_none_stops(program: Program) -> None:
    stopped = Program(
        program.slots,
        program.wanted,
        program.roots,
        frozenset((i, slot) for i, used in enumerate(program.slots) for slot in range(len(used))),
    )
    gradients, order, _ = walked(stopped, build(stopped))
    wanted = {root for root in program.roots if program.requires_grad(root)}
    assert set(gradients) == wanted
    assert set(order) == {root for root in wanted if program.slots[root]}


@given(programs(), st.randoms(use_true_random=False))
def test_order_depends_on_the_graph_alone(program: Program, rng: random.Random) -> None:
    assert walked(program, build(program, rng)) == walked(program, build(program))


@given(programs(), st.randoms(use_true_random=False))
def test_any_schedule_gives_the_same_gradients(program: Program, rng: random.Random) -> None:
    """Whatever runs when, and whoever is done first; also the order within a gradient."""
    expected, _, _ = walked(program, build(program))
    gradients: dict[int, Paths] = {}
    variables = build(program)
    walk = Walk([(variables[root], (("seed", n),)) for n, root in enumerate(program.roots)])
    handed_out: list[tuple[Any, Paths]] = []
    while walk.is_active():
        if not handed_out or rng.random() < 0.4:
            waiting = walk.is_waiting()
            found = walk.ready()
            assert not (waiting and found)
            assert found or handed_out or not walk.is_active()
            handed_out += found
        else:
            variable, gradient = handed_out.pop(rng.randrange(len(handed_out)))
            gradients[variable.name] = gradient
            node = variable.grad_fn
            walk.done(variable, extend(program, node, gradient) if node else ())
    assert not handed_out
    assert gradients == expected


# Numbers: the same walk with vjps, against forward mode.


def value_of(program: Program, leaves: dict[int, int], tangent: int | None = None) -> Any:
    """Values of the program where even variables are sums and odd ones products of their slots,
    and the derivatives of all of them with respect to variable `tangent`, by forward mode."""
    values, dots = [], []
    for i, used in enumerate(program.slots):
        if not used:
            value, dot = leaves[i], 0
        elif i % 2:
            value, dot = 1, 0
            for p in used:
                value, dot = value * values[p], dot * values[p] + value * dots[p]
        else:
            value, dot = sum(values[p] for p in used), sum(dots[p] for p in used)
        values.append(value)
        dots.append(1 if i == tangent else dot)
    return values, dots


@given(programs(), st.lists(st.integers(-3, 3), min_size=4, max_size=4))
def test_numbers_agree_with_forward_mode(program: Program, leaves: list[int]) -> None:
    program = Program(program.slots, program.wanted, program.roots, frozenset())
    at = dict(enumerate(leaves))
    values, _ = value_of(program, at)
    variables = build(program)
    gradients: dict[int, int] = {}

    def vjp(node: Node, gradient: int) -> list[int]:
        i = node.operation.index
        pulled = []
        for slot in range(len(program.slots[i])):
            factor = 1
            for other, p in enumerate(program.slots[i]):
                if i % 2 and other != slot:
                    factor *= values[p]
            pulled.append(gradient * factor)
        return pulled

    def arrive(variable: Any, gradient: int) -> int:
        gradients[variable.name] = gradient
        return gradient

    drive(Walk([(variables[r], n + 1) for n, r in enumerate(program.roots)]), vjp, arrive)
    for i in range(len(program.slots)):
        if not program.requires_grad(i):
            assert i not in gradients
            continue
        _, dots = value_of(program, at, tangent=i)
        assert gradients.get(i, 0) == sum((n + 1) * dots[r] for n, r in enumerate(program.roots))


def chain(
    length: int, pull: Callable[[Node, int], Sequence[int | None]], uses: int
) -> tuple[Any, list[int]]:
    leaf = last = Var(0)
    for i in range(1, length + 1):
        last = Var(i, Node(Op(i), (last,) * uses))
    arrived: dict[int, int] = {}
    calls: list[int] = []

    def counted(node: Node, gradient: int) -> Sequence[int | None]:
        calls.append(node.operation.index)
        return pull(node, gradient)

    def arrive(variable: Any, gradient: int) -> int:
        arrived[variable.name] = gradient
        return gradient

    drive(Walk([(last, 1)]), counted, arrive)
    return arrived[leaf.name], calls


def test_a_long_chain() -> None:
    gradient, calls = chain(20_000, lambda node, g: [g + 1], uses=1)
    assert gradient == 20_001
    assert calls == list(range(20_000, 0, -1))


def test_sixty_doublings_cost_sixty_pulls() -> None:
    gradient, calls = chain(60, lambda node, g: [g, g], uses=2)
    assert gradient == 2**60
    assert len(calls) == 60


def test_a_freed_graph_raises_and_says_how_to_keep_it() -> None:
    leaf = Var("x")
    middle = Var("m", Node(Op(1), (leaf,)))
    root = Var("r", Node(Op(2), (middle,)))
    assert middle.grad_fn is not None
    middle.grad_fn = middle.grad_fn.emptied()
    assert middle.grad_fn.predecessors == ()
    with pytest.raises(GraphError, match=r"op1.*retain_graph=True"):
        Walk([(root, 1)])


def test_a_freed_part_that_wants_no_gradient_is_not_looked_at() -> None:
    leaf = Var("x")
    constant = Var("c", Node(Op(1), ()), requires_grad=False)
    assert constant.grad_fn is not None
    constant.grad_fn = constant.grad_fn.emptied()
    root = Var("r", Node(Op(2), (constant, leaf)))
    assert [v for v in Walk([(root, 1)])] == [root, leaf]


@pytest.mark.parametrize("pulled", [(), (1,), (1, 2, 3)])
def test_wrong_arity_names_the_node(pulled: tuple[int, ...]) -> None:
    x, y = Var("x"), Var("y")
    root = Var("r", Node(Op(7), (x, y)))
    walk = Walk([(root, 1)])
    assert walk.ready() == [(root, 1)]
    with pytest.raises(GraphError, match=rf"op7.*returned {len(pulled)} gradients.*2 predecessors"):
        walk.done(root, pulled)
    walk.done(root, (1, 2))  # nothing of the wrong answer was taken
    assert walk.ready() == [(x, 1), (y, 2)]


def test_a_constant_root_is_not_walked() -> None:
    assert not Walk([(Var("c", requires_grad=False), 1)]).is_active()


def test_done_is_taken_once_and_only_for_what_was_handed_out() -> None:
    x = Var("x")
    root = Var("r", Node(Op(1), (x,)))
    walk = Walk([(root, 1)])
    with pytest.raises(GraphError, match="handed out"):
        walk.done(x, ())
    walk.ready()
    walk.done(root, (5,))
    with pytest.raises(GraphError, match="handed out"):
        walk.done(root, (5,))
    assert walk.ready() == [(x, 5)]


def test_hooks_of_a_driver_go_on_with_what_they_return() -> None:
    x = Var("x")
    middle = Var("m", Node(Op(1), (x,)))
    root = Var("r", Node(Op(2), (middle,)))
    seen = []

    def arrive(variable: Any, gradient: int) -> int:
        seen.append((variable, gradient))
        return gradient * 10

    drive(Walk([(root, 1)]), lambda node, g: [g], arrive)
    assert seen == [(root, 1), (middle, 10), (x, 100)]


def test_contributions_are_combined_seeds_first_then_in_the_order_of_successors() -> None:
    program = Program(((), (0,), (0,), (2, 1), (1, 3, 2)), frozenset({0}), (4, 1), frozenset())
    gradients, order, _ = walked(program, build(program))
    assert order[0] == 4
    assert gradients[1] == (("seed", 1), ("seed", 0, (4, 0)), ("seed", 0, (4, 1), (3, 1)))


def test_who_is_done_first_does_not_come_first() -> None:
    program = Program(((), (0,), (0,), (1, 2)), frozenset({0}), (3,), frozenset())
    x, first, second, root = build(program)
    walk = Walk([(root, (("seed",),))])
    assert [variable for variable, _ in walk.ready()] == [root]
    walk.done(root, ((("to first",),), (("to second",),)))
    assert [variable for variable, _ in walk.ready()] == [first, second]
    walk.done(second, ((("second",),),))
    walk.done(first, ((("first",),),))
    assert walk.ready() == [(x, (("first",), ("second",)))]


def test_what_comes_first_in_the_program_comes_first_in_the_walk() -> None:
    program = Program(((), (0,), (0,), (0,), (1, 2, 3)), frozenset({0}), (4,), frozenset())
    gradients, order, _ = walked(program, build(program))
    assert order == [4, 1, 2, 3]
    assert gradients[0] == tuple(("seed", 0, (4, slot), (slot + 1, 0)) for slot in range(3))


def test_roots_are_walked_and_seeds_combined_in_the_order_given() -> None:
    program = Program(((), (0,), (0,)), frozenset({0}), (2, 1, 2), frozenset())
    gradients, order, _ = walked(program, build(program))
    assert order == [2, 1]
    assert gradients[2] == (("seed", 0), ("seed", 2))
