"""`backward` and `grad`: one pass over the tape, from roots to what wants a gradient."""

from __future__ import annotations

import contextvars
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from textautograd import anomaly, dispatch
from textautograd.base import Variable
from textautograd.calling import mismatch
from textautograd.cancelling import cancel_scope
from textautograd.engines import as_engine
from textautograd.engines.ask import listening
from textautograd.errors import EngineError, GraphError, ReplyError, RunError, UsageError
from textautograd.grad_mode import is_anomaly_enabled
from textautograd.tape import Gradient, Node, Site, Walk, place


class BackwardWarning(UserWarning):
    """Nothing passed backward through some calls, because their rule failed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A node whose rule failed in a backward pass."""

    node: Node
    error: Exception

    @property
    def operation(self) -> str:
        """What the node did."""
        name: str = self.node.operation.name
        return name

    @property
    def site(self) -> Site | None:
        """Where in user code it was written."""
        return self.node.site

    def __str__(self) -> str:
        title = getattr(self.node.operation, "title", self.operation)
        return f"{type(self.error).__name__}: {self.error} ({title}, {place(self.site)})"


def backward(
    roots: Sequence[tuple[Variable, Gradient]],
    *,
    rule: Any = None,
    engine: Any = None,
    retain_graph: bool = False,
    all_may_fail: bool = False,
) -> list[Failure]:
    """`backward` of several roots at once, each with its seed; with `all_may_fail` it is no error
    that every rule failed."""
    walk = Walk(roots)
    wanted = lambda v: v.is_leaf or v._retains_grad  # noqa: E731
    reached, failures = _run(walk, roots, wanted, rule, engine, all_may_fail)
    with _accumulating:
        for variable, gradient in reached.items():
            variable.grad = gradient if variable._grad is None else variable._grad + gradient
    if not retain_graph:
        _free(walk)
    return failures


def grad(
    outputs: Variable | Sequence[Variable],
    inputs: Variable | Sequence[Variable],
    gradients: Any = None,
    *,
    rule: Any = None,
    engine: Any = None,
    retain_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Any, ...]:
    """The gradients of outputs with respect to inputs, leaving every `.grad` alone
    (`torch.autograd.grad`), for texts and for arrays.

    Only the part of the graph between them is walked, and paid for: no rule is called for what lies
    behind an input, or leads to none. An input may be a leaf or computed. Whatever else requires a
    gradient counts as a constant, so a joint rule is not asked about it.

    Args:
        outputs: one variable or several.
        inputs: one variable or several; of several, none may be a result whose graph was freed, as
            it is no longer known whether another lies behind it.
        gradients: a seed for the output, or a list with one, or `None`, for each of the outputs; a
            loss, or a single number, needs none.
        rule, engine, retain_graph: as for `backward`. Hooks run as there, and the gradients
            are what they returned.
        allow_unused: an input that no output depends on gets `None`; without it, it is an error,
            found before any rule is called.

    Returns:
        A tuple with one gradient for each input, also if there is but one. `None` where nothing
        arrived: the loss was 0, or the rule said "no change". Failures are as in `backward`.

    Raises:
        GraphError: as `backward`, or an input is unused or does not require grad.
    """
    roots = _seeded(outputs, gradients)
    wanted = _variables(inputs, "inputs")
    for variable in wanted:
        if not variable.requires_grad:
            raise GraphError(f"{variable._title()}, an input of grad, does not require grad")
    walk = Walk(roots, wanted)
    for variable in wanted:
        if variable not in walk and not allow_unused:
            raise GraphError(
                f"{variable._title()}, an input of grad, was not used for the outputs: "
                "pass allow_unused=True to get None for it"
            )
    ends = set(wanted)
    reached, failures = _run(walk, roots, lambda v: v in ends, rule, engine)
    if not retain_graph:
        _free(walk)
    warn(failures)
    return tuple(map(reached.get, wanted))


def as_rule(rule: Any) -> Any:
    """The rule, if it is one.

    Raises:
        UsageError: it is no function, or one of other arguments.
    """
    if not callable(rule) or isinstance(rule, type):
        raise UsageError(f"a rule is a function of (node, gradient, engine), not {rule!r}")
    if why := mismatch(rule, None, None, None):
        raise UsageError(f"a rule is called as (node, gradient, engine), but {why}")
    return rule


def warn(failures: Sequence[Failure]) -> None:
    """A `BackwardWarning`, at the line of the caller's caller, if there were failures."""
    if failures:
        warnings.warn(
            f"nothing passed backward through {len(failures)} of the calls; the first:"
            f" {failures[0]}; ta.detect_anomaly() tells on which data, and what was replied",
            BackwardWarning,
            stacklevel=3,
        )


_accumulating = threading.Lock()
_running: ContextVar[tuple[set[Variable], ...]]
_running = ContextVar("textautograd_running", default=())


@contextmanager
def _running_from(roots: Sequence[tuple[Variable, Gradient]]) -> Iterator[None]:
    """A pass, which its own hooks and rules cannot begin once more: they would without end.

    Raises:
        GraphError: this would.
    """
    around = _running.get()
    for root, _ in roots:
        if any(root in those for those in around):
            raise GraphError(
                f"backward from {root._title()} was called again by a hook or a rule of that same "
                "pass: call it when the pass is over"
            )
    own = {root for root, _ in roots}
    token = _running.set((*around, own))
    try:
        yield
    finally:
        own.clear()  # what was started in here, and lives on, is no part of the pass
        _running.reset(token)


def _run(
    walk: Walk,
    roots: Sequence[tuple[Variable, Gradient]],
    is_wanted: Callable[[Any], bool],
    rule: Any,
    engine: Any,
    all_may_fail: bool = False,
) -> tuple[dict[Any, Gradient], list[Failure]]:
    """The gradients of the wanted variables, and the nodes whose rule failed."""
    if rule is not None:
        as_rule(rule)
    if engine is not None:
        engine = as_engine(engine)
    for root, _ in roots:
        root.data  # noqa: B018  every value is there when rules run
    for variable in walk:
        node = walk.node(variable)
        if node is not None:
            _check_versions(node)
            _settle(node)
    # As they are now: another pass may free them, as it may the nodes.
    hooks = {variable: variable._hooks for variable in walk if variable._hooks}  # type: ignore[attr-defined]
    reached: dict[Any, Gradient] = {}
    failures: dict[Node, Failure] = {}
    passed: set[Node] = set()
    detects = is_anomaly_enabled()

    def arrive(variable: Any, gradient: Gradient) -> Gradient:
        for hook in list((variable._hooks or hooks.get(variable) or {}).values()):
            try:
                replaced = hook(variable._as_gradient(gradient))
                if replaced is not None:
                    gradient = variable._as_gradient(replaced)
            except Exception as error:
                error.add_note(f"  in a hook of {variable._title()}")
                if node := walk.node(variable):
                    explain(error, node, gradient, ())
                raise
        if is_wanted(variable):
            reached[variable] = variable._as_gradient(gradient)
        return gradient

    def explain(error: Exception, node: Node, gradient: Gradient, heard: Sequence[str]) -> None:
        note = anomaly.story(node, gradient, heard) if detects else anomaly.line(node)
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)

    async def ask(
        node: Node, gradient: Gradient, heard: Sequence[str]
    ) -> Sequence[Gradient | None]:
        try:
            pulled = await node.operation.pull(_as_asked(node, walk), gradient, rule, engine)
            if detects:
                node.check_arity(pulled)
                _refuse_flaws(node, gradient, pulled)
        except (EngineError, ReplyError) as error:
            explain(error, node, gradient, heard)
            if isinstance(error, RunError):
                raise
            failures[node] = Failure(node, error)
            return node.operation.without_rule(node, gradient)  # type: ignore[no-any-return]
        except Exception as error:
            explain(error, node, gradient, heard)
            raise
        passed.add(node)
        return pulled  # type: ignore[no-any-return]

    def pull(node: Node, gradient: Gradient) -> Any:
        if node.operation.is_opaque:
            if not detects:
                return dispatch.start(ask(node, gradient, ()))
            heard: list[str] = []
            context = contextvars.copy_context()
            context.run(listening.set, heard)
            return context.run(dispatch.start, ask(node, gradient, heard))
        try:
            pulled = node.operation.backward(_as_asked(node, walk), gradient)
            if detects:
                node.check_arity(pulled)
                _refuse_flaws(node, gradient, pulled)
        except Exception as error:
            explain(error, node, gradient, ())
            raise
        return pulled

    with _running_from(roots), cancel_scope():
        dispatch.drive(walk, pull, arrive)
    ordered = [failures[node] for v in walk if (node := walk.node(v)) in failures]
    if ordered and (detects or not (passed or all_may_fail)):
        raise ordered[0].error
    return reached, ordered


def _seeded(outputs: Any, gradients: Any) -> list[tuple[Variable, Gradient]]:
    roots = _variables(outputs, "outputs")
    if isinstance(outputs, Variable):
        seeds = [gradients]
    elif gradients is None:
        seeds = [None] * len(roots)
    elif isinstance(gradients, (list, tuple)) and len(gradients) == len(roots):
        seeds = list(gradients)
    else:
        raise UsageError(f"gradients must be a list of {len(roots)} seeds, one for each output")
    return [(root, root._seed(seed)) for root, seed in zip(roots, seeds, strict=True)]


def _variables(given: Any, what: str) -> list[Variable]:
    variables = [given] if isinstance(given, Variable) else given
    if not isinstance(variables, (list, tuple)):
        try:
            variables = list(variables)
        except TypeError:
            variables = [variables]
    for variable in variables:
        if not isinstance(variable, Variable):
            raise UsageError(f"the {what} of grad are variables, not {type(variable).__name__}")
    if not variables:
        raise UsageError(f"grad needs {what}, and there are none")
    return list(variables)


def _free(walk: Walk) -> None:
    for variable in list(walk):
        node = walk.node(variable)
        if node is not None:
            variable.grad_fn = node.emptied()  # type: ignore[misc]
            variable._hooks = None  # type: ignore[attr-defined]


def _as_asked(node: Node, walk: Walk) -> Node:
    """The node as its rule sees it: what this walk does not lead to is a constant."""
    slots = node.predecessors
    if not [p for p in slots if p not in walk and p.requires_grad]:
        return node
    slots = tuple(p if p in walk else p.detach() for p in slots)  # type: ignore[attr-defined]
    return Node(
        node.operation,
        slots,
        inputs=node.inputs,
        output=node.output,
        versions=node.versions,
        site=node.site,
        within=node.within,
    )


def _refuse_flaws(node: Node, gradient: Gradient, pulled: Sequence[Gradient | None]) -> None:
    """Raises where a sound gradient becomes an unsound one."""
    for slot, (predecessor, passed_on) in enumerate(zip(node.predecessors, pulled, strict=True)):
        kind: Any = predecessor
        if passed_on is None or kind._flaw(gradient) or not (flaw := kind._flaw(passed_on)):
            continue
        names = getattr(node.operation, "names", None)
        which = repr(names[slot]) if names else f"predecessor {slot}"
        raise GraphError(f"the rule for {node} returned a gradient for {which} that {flaw}")


def _settle(node: Node) -> None:
    node.inputs = tuple(map(dispatch.wait, node.inputs))
    node.output = dispatch.wait(node.output)


def _check_versions(node: Node) -> None:
    used: Any
    for used, version in zip(node.predecessors, node.versions, strict=True):
        if used._version != version:
            _raise_modified(used, node)


def _raise_modified(used: Variable, node: Node) -> NoReturn:
    raise GraphError(
        f"{used._title()} was modified after it was used, so the graph no longer tells how its "
        f"value came about: used in {node.operation.name} at {place(node.site)}; modified at "
        f"{place(used._modified_at)}. Call backward() before the change, or forward again after it"
    )
