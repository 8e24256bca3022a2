"""`backward`: one pass over the tape, from roots to the leaves that require grad."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from textautograd import dispatch
from textautograd.base import Variable
from textautograd.errors import EngineError, GraphError, ReplyError
from textautograd.tape import Gradient, Node, Site, Walk


class BackwardWarning(UserWarning):
    """Nothing passed backward through some calls, because their rule failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node whose rule failed in a backward pass."""

    operation: str
    site: Site | None
    error: Exception

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {self.error} ({self.operation}, {place(self.site)})"


def backward(
    roots: Sequence[tuple[Variable, Gradient]],
    *,
    rule: Any = None,
    engine: Any = None,
    retain_graph: bool = False,
) -> list[Failure]:
    """`backward` of several roots at once, each with its seed."""
    for root, _ in roots:
        root.data  # noqa: B018  every value is there when rules run
    walk = Walk(roots)
    for variable in walk:
        _check_versions(variable)
        if variable.grad_fn is not None:
            _settle(variable.grad_fn)
    reached: list[tuple[Variable, Gradient]] = []
    failures: dict[Node, Failure] = {}
    passed: set[Node] = set()

    def arrive(variable: Any, gradient: Gradient) -> Gradient:
        for hook in list((variable._hooks or {}).values()):
            replaced = hook(gradient)
            if replaced is not None:
                gradient = variable._as_gradient(replaced)
        if variable.is_leaf or variable._retains_grad:
            reached.append((variable, variable._as_gradient(gradient)))
        return gradient

    async def ask(node: Node, gradient: Gradient) -> Sequence[Gradient | None]:
        try:
            pulled = await node.operation.pull(node, gradient, rule, engine)
        except (EngineError, ReplyError) as error:
            failures[node] = Failure(node.operation.name, node.site, error)
            return node.operation.without_rule(node, gradient)  # type: ignore[no-any-return]
        passed.add(node)
        return pulled  # type: ignore[no-any-return]

    def pull(node: Node, gradient: Gradient) -> Any:
        if node.operation.is_opaque:
            return dispatch.start(ask(node, gradient))
        return node.operation.backward(node, gradient)

    dispatch.drive(walk, pull, arrive)
    ordered = [failures[v.grad_fn] for v in walk if v.grad_fn in failures]
    if ordered and not passed:
        first = ordered[0]
        first.error.add_note(f"  in backward through {first.operation}, at {place(first.site)}")
        raise first.error
    with _accumulating:
        for variable, gradient in reached:
            variable.grad = gradient if variable.grad is None else variable.grad + gradient
    if not retain_graph:
        for variable in list(walk):
            if variable.grad_fn is not None:
                variable.grad_fn.free()
                variable._hooks = None  # type: ignore[attr-defined]
    return ordered


_accumulating = threading.Lock()


def place(site: Site | None) -> str:
    """A line of user code, for errors."""
    return f"{site[0]}:{site[1]}, in {site[2]}" if site else "an unknown place"


def _settle(node: Node) -> None:
    node.inputs = tuple(map(dispatch.wait, node.inputs))
    node.output = dispatch.wait(node.output)


def _check_versions(variable: Any) -> None:
    node = variable.grad_fn
    for used, version in zip(node.predecessors, node.versions, strict=True) if node else ():
        if used._version != version:
            _raise_modified(used, node)


def _raise_modified(used: Variable, node: Node) -> NoReturn:
    raise GraphError(
        f"{used._title()} was modified after it was used, so the graph no longer tells how its "
        f"value came about: used in {node.operation.name} at {place(node.site)}; modified at "
        f"{place(used._modified_at)}. Call backward() before the change, or forward again after it"
    )
