"""The tape and the walk: reverse mode as a plain state machine, for any kind of gradient.

With this file alone one can record operations (`Node`), walk them from a root back to the leaves
(`Walk`, shaped like `graphlib.TopologicalSorter`) and drive that walk (`drive`). It knows nothing
of text, numbers or models: a gradient is anything with `+`, a rule is any function that returns
one gradient or `None` per predecessor. So the predecessors that share a successor are one group by
construction, and what several successors send is added up once, in a fixed order, before the node
is pulled: for text a rule is not linear, so *combine first, pull once* is part of the meaning.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import add, itemgetter
from typing import Any, Protocol

from textautograd.errors import GraphError

Gradient = Any
Site = tuple[str, int, str]
"""Where in user code an operation was written: file, line, function."""


def place(site: Site | None) -> str:
    """A line of user code, for errors."""
    return f"{site[0]}:{site[1]}, in {site[2]}" if site else "an unknown place"


class Node:
    """One recorded operation: what it was, what it used (a slot per use) and what came out.

    `versions` holds the predecessors' versions at the time of use; `freed` says that a backward
    pass without `retain_graph` has dropped what was saved here. `within` are the modules whose
    calls it was made in, outermost first, where anomalies are looked for.
    """

    __slots__ = (
        "__weakref__",
        "freed",
        "inputs",
        "operation",
        "output",
        "predecessors",
        "site",
        "versions",
        "within",
    )

    def __init__(
        self,
        operation: Any,
        predecessors: tuple["Vertex", ...],
        *,
        inputs: Sequence[Any] = (),
        output: Any = None,
        versions: tuple[int, ...] = (),
        site: Site | None = None,
        within: tuple[Any, ...] = (),
    ) -> None:
        self.operation = operation
        self.predecessors = predecessors
        self.inputs = inputs
        self.output = output
        self.versions = versions
        self.site = site
        self.within = within
        self.freed = False

    def emptied(self) -> "Node":
        """What takes this node's place once it is freed: without predecessors, so that the tape
        behind can go, and without all that was saved; of the operation, which may have saved values
        too, its name is left. The node itself stays whole for a pass that is at it."""
        left = Node(getattr(self.operation, "name", self.operation), (), site=self.site)
        left.freed = True
        return left

    def check_arity(self, pulled: Sequence[Gradient | None]) -> None:
        """Raises `GraphError` unless there is one gradient or `None` per predecessor."""
        if len(pulled) != len(self.predecessors):
            raise GraphError(
                f"the rule for {self} returned {len(pulled)} gradients for its "
                f"{len(self.predecessors)} predecessors: return one, or None, for each (the call "
                f"at {place(self.site)})"
            )

    def __repr__(self) -> str:
        return f"<{getattr(self.operation, 'name', self.operation)}>"


class Vertex(Protocol):
    """What the walk asks of a variable: the node that made it (`None` for a leaf), and whether a
    gradient is wanted for it or for anything behind it."""

    @property
    def grad_fn(self) -> Node | None: ...
    @property
    def requires_grad(self) -> bool: ...


class Walk:
    """The order of one backward pass.

    `ready()` hands out the variables whose gradient is complete, each with that gradient, in an
    order that depends on the graph alone; `done(variable, pulled)` takes what its rule returned.
    What no gradient reaches is skipped, and what does not require one is never visited; with
    `towards`, neither is what leads to none of these variables. The graph is the one there was at
    the start, whatever another pass frees meanwhile.

    Raises:
        GraphError: if a part of the graph was freed by an earlier backward pass.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[Vertex, Gradient]],
        towards: Iterable[Vertex] | None = None,
    ) -> None:
        ends = None if towards is None else frozenset(towards)
        self._nodes = order = _successors_first([variable for variable, _ in seeds], ends)
        self._index = {variable: i for i, variable in enumerate(order)}
        self._waiting = waiting = dict.fromkeys(order, 0)
        for node in order.values():
            for predecessor in node.predecessors if node else ():
                if predecessor in waiting:
                    waiting[predecessor] += 1
        for variable in ends or ():  # one that leads to no other is not pulled
            node = order.get(variable)
            if node and not any([p in waiting for p in node.predecessors]):
                order[variable] = None
        self._contributions: dict[Vertex, list[tuple[int, int, Gradient]]] = defaultdict(list)
        for slot, (variable, gradient) in enumerate(seeds):
            if variable in order:
                self._contributions[variable].append((-1, slot, gradient))
        self._complete = [variable for variable, count in waiting.items() if not count]
        self._handed_out: set[Vertex] = set()

    def node(self, variable: Vertex) -> Node | None:
        """What is to be pulled for a variable: nothing for a leaf, nor where the walk ends."""
        return self._nodes[variable]

    def is_active(self) -> bool:
        """Whether there is anything left to hand out or to be done."""
        return bool(self._complete or self._handed_out)

    def is_waiting(self) -> bool:
        """Whether `ready` has nothing to hand out until something more is done."""
        return bool(self._handed_out) and not self._complete

    def ready(self) -> list[tuple[Vertex, Gradient]]:
        """The variables whose gradient has become complete since the last call."""
        found = []
        while self._complete:
            variable = self._complete.pop()
            contributions = self._contributions.pop(variable, None)
            if contributions is None:
                self._release(self._nodes[variable])
            else:
                found.append((variable, _added_up(contributions)))
                self._handed_out.add(variable)
        if len(found) > 1:
            found.sort(key=lambda pair: self._index[pair[0]])
        return found

    def done(self, variable: Vertex, pulled: Sequence[Gradient | None]) -> None:
        """Takes one gradient or `None` per predecessor of a variable that `ready` handed out.

        Raises:
            GraphError: if there are more or fewer than its predecessors, or it was not handed out.
        """
        if variable not in self._handed_out:
            raise GraphError(f"{variable!r} was not handed out, or is done already")
        node = self._nodes[variable]
        if node:
            node.check_arity(pulled)
            index = self._index[variable]
            for slot, (predecessor, gradient) in enumerate(
                zip(node.predecessors, pulled, strict=True)
            ):
                if gradient is not None and predecessor in self._index:
                    self._contributions[predecessor].append((index, slot, gradient))
        self._handed_out.remove(variable)
        self._release(node)

    def _release(self, node: Node | None) -> None:
        waiting = self._waiting
        for predecessor in node.predecessors if node else ():
            if predecessor in waiting:
                waiting[predecessor] -= 1
                if not waiting[predecessor]:
                    self._complete.append(predecessor)

    def __contains__(self, variable: Vertex) -> bool:
        return variable in self._index

    def __iter__(self) -> Iterator[Vertex]:
        """Every variable that the walk visits, successors first."""
        return iter(self._index)


def drive(
    walk: Walk,
    pull: Callable[[Node, Gradient], Sequence[Gradient | None]],
    arrive: Callable[[Vertex, Gradient], Gradient],
) -> None:
    """The synchronous driver: pulls each node as its gradient completes.

    `arrive(variable, gradient)` sees every complete gradient first and returns the one to go on
    with (hooks, accumulation).
    """
    while walk.is_active():
        for variable, gradient in walk.ready():
            gradient = arrive(variable, gradient)
            node = walk.node(variable)
            walk.done(variable, pull(node, gradient) if node else ())


def _added_up(contributions: list[tuple[int, int, Gradient]]) -> Gradient:
    """What (index of a successor, slot, gradient) come to, in program order."""
    if len(contributions) > 1:
        contributions.sort(key=itemgetter(0, 1))
    return reduce(add, [gradient for _, _, gradient in contributions])


def _live(node: Node | None) -> Sequence[Vertex]:
    """The slots of a node that want a gradient; a predecessor used twice comes twice."""
    return [p for p in node.predecessors if p.requires_grad] if node else ()


def _successors_first(
    roots: Sequence[Vertex], ends: frozenset[Vertex] | None
) -> dict[Vertex, Node | None]:
    """Reverse post-order from the roots, without recursion, each variable with its node. Last slots
    go first, so that in the reverse what comes first in the program comes first. With `ends`, only
    what leads to one."""
    # Nothing is wanted behind the only end: it is not pulled, so it may have been freed.
    only_end = next(iter(ends)) if ends and len(ends) == 1 else None
    nodes: dict[Vertex, Node | None] = {}  # each read once: another pass may free it meanwhile
    found: dict[Vertex, Node | None] = {}
    stack: list[tuple[Vertex, Iterator[Vertex] | None]]
    stack = [(root, None) for root in dict.fromkeys(roots) if root.requires_grad]
    while stack:
        variable, rest = stack.pop()
        if rest is None:
            if variable in nodes:
                continue
            node = nodes[variable] = variable.grad_fn
            if node is not None and node.freed and variable is not only_end:
                raise GraphError(
                    f"backward a second time through {node}, whose saved values were "
                    "freed by the first: pass retain_graph=True to the first backward()"
                )
            rest = iter(()) if variable is only_end else reversed(_live(node))
        for predecessor in rest:
            if predecessor not in nodes:
                stack += [(variable, rest), (predecessor, None)]
                break
        else:
            node = nodes[variable]
            if ends is None or variable in ends or any(p in found for p in _live(node)):
                found[variable] = node
    return {variable: found[variable] for variable in reversed(found)}
