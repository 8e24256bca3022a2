"""Checks for what users write themselves, as `torch.autograd.gradcheck` is one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from textautograd.backward import as_rule, grad
from textautograd.engines import use_engine
from textautograd.engines.base import Reply, Request
from textautograd.engines.scripted import Scripted
from textautograd.errors import CheckError, EngineError, ReplyError, UsageError
from textautograd.functional import call_tool, complete
from textautograd.grad_mode import no_grad
from textautograd.gradient import Gradient, as_gradient
from textautograd.numeric import Array, Value, array
from textautograd.rules import Rule
from textautograd.tape import Node
from textautograd.variable import TextVariable


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
    wanted = [which for which, leaf in enumerate(leaves) if leaf.requires_grad]
    if not wanted:
        raise UsageError("gradcheck has nothing to check: no input requires grad")
    outputs = _several(fn(*leaves))
    for output in outputs:
        if not isinstance(output, Array):
            raise UsageError(f"gradcheck's fn must return arrays, not {type(output).__name__}")
    jacobians = [_jacobian(output, [leaves[which] for which in wanted]) for output in outputs]

    def shifted(which: int, element: tuple[int, ...], by: float) -> list[Value]:
        moved = [leaf.data.copy() for leaf in leaves]
        moved[which][element] += by
        with no_grad():
            return [output.data for output in _several(fn(*map(array, moved)))]

    for column, which in enumerate(wanted):
        for element in np.ndindex(leaves[which].shape):
            pairs = zip(shifted(which, element, eps), shifted(which, element, -eps), strict=True)
            for k, (above, below) in enumerate(pairs):
                found = jacobians[k][column][(..., *element)]
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
        found = grad(output, leaves, seed, retain_graph=True, allow_unused=True)
        for rows, gradient in zip(jacobian, found, strict=True):
            if gradient is not None:
                rows[element] = gradient
    return jacobian


def check_rule(
    rule: Rule,
    *,
    reply: Callable[[Request], str | Reply] | None = None,
    calls: Callable[[int], int] | None = None,
) -> bool:
    """Checks a rule for `backward(rule=…)` on small graphs, with a scripted engine; returns True.

    A rule returns one str, `Gradient` or `None` for each predecessor, and the same for the same
    replies. Its instruction gets a gradient if it wants one; of the other predecessors that want
    one either all get their own, or none does. It asks the engine that it is given, no request
    twice, and nobody where there is nothing to ask: no feedback, or no input that wants any.

    Args:
        rule: the rule.
        reply: answers the rule's requests; by default with a text for each key of their schema, or
            one text where they have none.
        calls: how many calls the rule makes for a node, by the number of inputs that want a
            gradient; by default at most one for each of them.

    Raises:
        CheckError: the rule is wrong; says on which graph, for which node, and how.
        UsageError: it is no function.
    """
    as_rule(rule)
    for name, build in _GRAPHS.items():
        recorded = _Pass(rule, name, build, reply, calls)
        first, again = recorded.run("Make it better."), recorded.run("Make it better.")
        anew = _Pass(rule, name, build, reply, calls).run("Make it better.")
        for step in first:
            for other in (again[step], anew.get(step)):
                if first[step] != other:
                    raise CheckError(
                        f"on {name}, for the step with the inputs {step}: the rule is not "
                        f"deterministic: gradients and requests were {first[step]!r}, and then, "
                        f"for the same replies, {other!r}"
                    )
        recorded.run("")
    return True


class _Pass:
    """Backward passes of a rule through one graph."""

    def __init__(
        self, rule: Rule, graph: str, build: Callable[[], TextVariable], reply: Any, calls: Any
    ) -> None:
        self.rule, self.graph, self.calls = rule, graph, calls
        self.reply = reply or _change_each
        self.is_ours = reply is None
        self.is_recorded = False
        with use_engine(Scripted(self.forward)):
            self.output = build()
            str(self.output)
        self.is_recorded = True
        self.seen: dict[str, tuple[list[Gradient | None], list[str]]] = {}

    def forward(self, request: Request) -> str:
        if self.is_recorded:
            raise CheckError(
                f"on {self.graph}: the rule asked the engine of the forward call, not the one that "
                "it was given"
            )
        return f"What comes of: {request.messages[0]['content']}"

    def run(self, seed: str) -> dict[str, tuple[list[Gradient | None], list[str]]]:
        """What each step returned and asked, by its inputs."""
        self.seen = {}
        seed_gradient = Gradient([seed] if seed else [])
        with use_engine(Scripted(self.reply)):
            self.output.backward(seed_gradient, rule=self.watched, retain_graph=True)
        return self.seen

    def watched(self, node: Node, gradient: Gradient, engine: Any) -> Any:
        scripted = Scripted(self.reply)
        try:
            pulled = self.rule(node, gradient, scripted)
        except (EngineError, ReplyError) as error:
            raise self.wrong(node, f"raised {error!r}") from error
        if not inspect.isawaitable(pulled):
            return self.checked(node, gradient, pulled, scripted.calls)

        async def finished() -> Any:
            try:
                found = await pulled
            except (EngineError, ReplyError) as error:
                raise self.wrong(node, f"raised {error!r}") from error
            return self.checked(node, gradient, found, scripted.calls)

        return finished()

    def wrong(self, node: Node, what: str) -> CheckError:
        return CheckError(
            f"on {self.graph}, for {node} of {', '.join(node.operation.names)}: the rule {what}"
        )

    def checked(
        self, node: Node, gradient: Gradient, pulled: Any, calls: Sequence[Request]
    ) -> list[Gradient | None]:
        found = self.one_for_each(node, pulled)
        asked = [
            name
            for name, p in zip(node.operation.names, node.predecessors, strict=True)
            if p.requires_grad and name != "instruction"
        ]
        self.check_calls(node, calls, len(asked) if gradient else 0)
        if gradient:
            self.check_neighbours(node, dict(zip(node.operation.names, found, strict=True)), asked)
        requests = sorted(repr(request) for request in calls)
        self.seen[", ".join(map(repr, node.inputs))] = found, requests
        return found

    def one_for_each(self, node: Node, pulled: Any) -> list[Gradient | None]:
        names = node.operation.names
        if isinstance(pulled, (str, Gradient)) or not isinstance(pulled, Sequence):
            pulled = [pulled]
        if len(pulled) != len(names):
            raise self.wrong(
                node,
                f"returned {len(pulled)} gradients for {len(names)} predecessors: return one, or "
                "None, for each",
            )
        for name, item in zip(names, pulled, strict=True):
            if isinstance(item, str) and type(item) is not str:
                raise self.wrong(
                    node,
                    f"returned a {type(item).__name__} for {name!r}, which is more than its text: "
                    "return a plain str",
                )
            if item is not None and not isinstance(item, (str, Gradient)):
                raise self.wrong(
                    node,
                    f"returned a {type(item).__name__} for {name!r}: a gradient is a str, a "
                    "Gradient or None",
                )
        return [None if item is None else as_gradient(item) for item in pulled]

    def check_calls(self, node: Node, calls: Sequence[Request], asked: int) -> None:
        if any(request in calls[:i] for i, request in enumerate(calls)):
            raise self.wrong(node, "sent the same request twice")
        made, most = len(calls), asked
        if self.calls is not None and asked:
            most = self.calls(asked)
            if made < most:
                raise self.wrong(node, f"made {made} calls, and not {most}")
        if made > most:
            raise self.wrong(
                node, f"made {made} calls, where {asked} predecessors are to be asked about"
            )

    def check_neighbours(
        self, node: Node, found: Mapping[str, Gradient | None], asked: Sequence[str]
    ) -> None:
        wants = dict(zip(node.operation.names, node.predecessors, strict=True))
        if "instruction" in wants and wants["instruction"].requires_grad:
            if not found["instruction"]:
                raise self.wrong(
                    node,
                    "returned nothing for the instruction, so no optimizer could rewrite it: take "
                    "it from rules.none(node, gradient)",
                )
        told = [name for name in asked if found[name]]
        lost = [name for name in asked if not found[name]]
        if told and lost:
            raise self.wrong(node, f"lost {', '.join(lost)}: only {', '.join(told)} got a gradient")
        for name in told if self.is_ours else ():
            text = str(found[name])
            others = [other for other in asked if other != name and _change(other) in text]
            if others and _change(name) not in text:
                raise self.wrong(node, f"gave {name!r} the reply for {others[0]!r}")


def _change(name: str) -> str:
    return f"Change <{name}> so."


def _change_each(request: Request) -> str:
    if request.schema is None:
        return "Change it so."
    return json.dumps({name: _change(name) for name in request.schema["properties"]})


def _leaf(text: str) -> TextVariable:
    return TextVariable(text, requires_grad=True)


def _call(instruction: str, **inputs: TextVariable | str) -> TextVariable:
    return complete(_leaf(instruction), inputs)


def _two_hints() -> TextVariable:
    first, second = (_call(f"Give the {n} hint.", question="Why?") for n in ("first", "second"))
    return _call("Solve it.", question="Why?", first=first, second=second)


def _twice() -> TextVariable:
    x = _leaf("x")
    return _call("Compare.", a=x, b=x)


def _shorten(text: str, to: str) -> str:
    """Keeps the first words."""
    return " ".join(text.split()[: int(to)])


_GRAPHS: Mapping[str, Callable[[], TextVariable]] = {
    "a chain": lambda: _call("Then.", text=_call("First.", text=_leaf("Why?"))),
    "two hints and an answer": _two_hints,
    "one variable in two slots": _twice,
    "a call of constants": lambda: _call("Answer.", question="Why?"),
    "a constant instruction": lambda: complete("Answer.", {"question": _leaf("Why?")}),
    "a tool": lambda: call_tool(_shorten, text=_leaf("one two three"), to="2"),
    "twelve hints": lambda: _call(
        "Solve it.", **{f"hint{i}": _leaf(f"Hint number {i}.") for i in range(1, 13)}
    ),
}
