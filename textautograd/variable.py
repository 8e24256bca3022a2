"""`TextVariable`, a string with a tape behind it; `apply` records."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from textautograd import dispatch
from textautograd.anomaly import within
from textautograd.backward import Failure, backward, warn
from textautograd.base import Variable
from textautograd.call_site import call_site
from textautograd.cancelling import Cancelled
from textautograd.errors import GraphError, UsageError
from textautograd.grad_mode import is_grad_enabled
from textautograd.gradient import Gradient, as_gradient
from textautograd.operation import Join, Operation
from textautograd.pending import Pending
from textautograd.tape import Node, Site, place

_PLUS = Join(2, "")


class Scored(str):
    """The value of a loss: its feedback as text, with the number. 0 is perfect."""

    __slots__ = ("loss",)
    loss: float

    def __new__(cls, text: str, loss: float) -> Scored:
        self = super().__new__(cls, text)
        self.loss = loss
        return self

    def __getnewargs__(self) -> tuple[str, float]:  # type: ignore[override]
        return str.__str__(self), self.loss


class TextVariable(Variable):
    """A string on the tape (`torch.Tensor`).

    Args:
        data: the text.
        requires_grad: whether backward should reach it.
        name: what errors, prompts and diffs call it.

    Reading `.data`, `str(x)` or `.item()` waits for a value that is still being computed and
    raises what its computation raised; `await x` does so inside an event loop.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def grad(self) -> Gradient | None: ...
        @grad.setter
        def grad(self, gradient: Gradient | str | None) -> None: ...

    def __init__(self, data: str, *, requires_grad: bool = False, name: str | None = None) -> None:
        if type(data) is not str:
            data = _text(data, "data")
        if name is not None and not isinstance(name, str):
            raise UsageError(f"a variable's name must be a str, not {name!r}")
        if type(requires_grad) is not bool:
            raise UsageError(f"requires_grad must be True or False, not {requires_grad!r}")
        self._set(data, None, requires_grad, name)

    @property
    def data(self) -> str:
        """The text; waits if it is still being computed. Assignable on a leaf."""
        text = self._read()
        return str.__str__(text) if type(text) is Scored else text

    @data.setter
    def data(self, text: str) -> None:
        self._check_assignable()
        self._value = _text(text, "data")
        self._version += 1
        self._modified_at = call_site()

    def _check_assignable(self) -> None:
        if not self.is_leaf:
            raise GraphError(
                f"{self._title()} was computed, only a leaf can be assigned: use detach()"
            )
        if overriding(self) is not self:
            raise UsageError(
                f"{self._title()} reads as a candidate's text here and cannot be assigned: "
                "a gate's closure only evaluates"
            )

    def _read(self) -> str:
        """What is there now, a loss with its number."""
        variable = overriding(self)
        if not isinstance(variable._value, str):
            variable._value = dispatch.wait(variable._value)
        text: str = variable._value
        return text

    def item(self) -> float:
        """The number of a loss; 0 is perfect.

        Raises:
            GraphError: if this is no loss.
        """
        value = self._read()
        if not isinstance(value, Scored):
            raise GraphError(f"{self._title()} is no loss and has no number; its text is .data")
        return value.loss

    def detach(self) -> TextVariable:
        """A leaf with the same value, still pending perhaps, cut off from the tape."""
        return _made(overriding(self)._value, None, False, self.name)

    def backward(
        self,
        gradient: Gradient | str | None = None,
        *,
        rule: Any = None,
        engine: Any = None,
        retain_graph: bool = False,
    ) -> list[Failure]:
        """Semantic backpropagation from here to every leaf that requires grad, into its `.grad`.

        Args:
            gradient: seeds a variable that is no loss: how it should change.
            rule: how gradients pass through model calls and tools, `rules.semantic` by default.
            engine: answers the rule's calls; by default, for each node, the engine of its forward
                call.
            retain_graph: keeps what was saved, for another backward pass.

        Returns:
            The nodes whose rule failed, with the error of each: their inputs got nothing, their
            instructions what needs no rule (inputs, output and feedback). If there are any, there
            is a `BackwardWarning` too; if there are no others, the first error is raised and no
            `.grad` has changed.

        Raises:
            GraphError: a freed graph, a leaf modified since it was used, no seed, nothing that
                requires grad.
        """
        failures = backward(
            [(self, self._seed(gradient))], rule=rule, engine=engine, retain_graph=retain_graph
        )
        warn(failures)
        return failures

    def __add__(self, other: TextVariable | str) -> TextVariable:
        if not isinstance(other, (str, TextVariable)):
            return NotImplemented
        return apply(_PLUS, self, as_variable(other, "the right side of +"))

    def __radd__(self, other: str) -> TextVariable:
        if isinstance(other, int) and other == 0:
            raise UsageError(
                "sum() adds numbers: use ta.mean([…]) for losses, ta.cat([…]) for texts"
            )
        if not isinstance(other, str):
            return NotImplemented
        return apply(_PLUS, as_variable(other, "the left side of +"), self)

    def _is_not_scaled(self, _: object) -> NoReturn:
        raise UsageError(
            f"{self._title()} cannot be multiplied or divided: what gradients in words say depends "
            "on no factor, so leave it out; the number of a loss is its .item()"
        )

    __mul__ = __rmul__ = __truediv__ = _is_not_scaled

    def __await__(self) -> Generator[Any, None, str]:
        text: str = yield from dispatch.awaited(overriding(self)._value).__await__()
        return str.__str__(text) if type(text) is Scored else text

    def __str__(self) -> str:
        return self.data

    def __bool__(self) -> bool:
        value = self._read()
        return value.loss != 0 if isinstance(value, Scored) else bool(value)

    def __float__(self) -> float:
        return self.item()

    def __format__(self, spec: str) -> str:
        value = self._read()
        return format(value.loss if spec and isinstance(value, Scored) else str(self), spec)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (str, int, float)):
            raise UsageError(
                "a TextVariable is compared by identity, which is never equal to a "
                f"{type(other).__name__}: compare its .data, or the .item() of a loss; "
                "nn.FunctionLoss makes a loss of a function of texts"
            )
        return self is other

    def _is_not_text(self, *_: object) -> NoReturn:
        raise UsageError(
            "a TextVariable is neither a str nor a number: do this with its .data, or with the "
            ".item() of a loss"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _is_not_text
    __len__ = __getitem__ = __contains__ = _is_not_text
    __hash__ = object.__hash__

    if not TYPE_CHECKING:  # or no attribute would be missing to a type checker

        def __getattr__(self, name: str) -> NoReturn:
            text = " of its own: use that of .data, in a ta.Function if it is to be recorded"
            raise AttributeError(
                f"a {type(self).__name__} has no {name!r}{text if hasattr(str, name) else ''}",
                name=name,
                obj=self,
            )

    def __repr__(self) -> str:
        value = overriding(self)._value
        if not dispatch.is_ready(value):
            shown = "<pending>"
        elif isinstance(value, Pending) and value.exception() is not None:
            shown = f"<failed: {type(value.exception()).__name__}>"
        else:
            text = dispatch.wait(value)
            shown = repr(str(text[:200])) + (f"… {len(text)} characters" if len(text) > 200 else "")
            if isinstance(text, Scored):
                shown = f"{text.loss:g}, {shown}"
        parts = [shown]
        parts += [f"name={self.name!r}"] if self.name else []
        parts += [f"grad_fn={self.grad_fn}"] if self.grad_fn else []
        parts += ["requires_grad=True"] if self.is_leaf and self.requires_grad else []
        return f"{type(self).__name__}({', '.join(parts)})"

    def _as_gradient(self, value: Gradient | str) -> Gradient:
        return as_gradient(value)

    def _first_gradient(self) -> Gradient:
        if not isinstance(self._read(), Scored):
            raise GraphError(
                f"{self._title()} is no loss, so backward needs a seed that says how it should "
                'change: backward("make it shorter")'
            )
        return Gradient()

    def _flaw(self, gradient: Gradient) -> str:
        return "" if any(feedback.text.strip() for feedback in gradient.distinct()) else "is empty"


def apply(operation: Operation, *inputs: TextVariable) -> TextVariable:
    """Runs an operation on variables and records it if anything behind them requires grad.

    Texts, versions, grad mode, overrides and engines are read now, in the caller's context; a value
    that has to wait for a model is computed on the background loop.
    """
    if replacements := _overrides.get():
        inputs = tuple([replacements.get(x, x) for x in inputs])
    values = tuple([x._value for x in inputs])
    site = call_site()
    value = dispatch.start(_compute(operation, values, site))
    if isinstance(value, Pending) and dispatch.is_blocking():
        value = dispatch.wait(value)
    requires_grad = is_grad_enabled() and any([x._requires_grad for x in inputs])
    node = None
    if requires_grad:
        versions = tuple([x._version for x in inputs])
        node = Node(
            operation,
            inputs,
            inputs=values,
            output=value,
            versions=versions,
            site=site,
            within=within(),
        )
    return _made(value, node, requires_grad, None)


async def _compute(operation: Operation, values: Sequence[Any], site: Site | None) -> str:
    texts = await dispatch.arrived(values)
    try:
        return await operation.run(texts)
    except (Exception, Cancelled) as error:
        note = f"  in {operation.title}, called at {place(site)}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


_overrides: ContextVar[Mapping[TextVariable, TextVariable]]
_overrides = ContextVar("textautograd_overrides", default=MappingProxyType({}))


def overriding(variable: TextVariable) -> TextVariable:
    """What a parameter reads as in this context (`functional_call`, a gate): itself, elsewhere."""
    return _overrides.get().get(variable, variable)


@contextmanager
def overridden(replacements: Mapping[TextVariable, TextVariable]) -> Iterator[None]:
    """Within this context each of these parameters reads as another variable; one of those that
    itself reads as another here, as that."""
    around = _overrides.get()
    new = {parameter: around.get(value, value) for parameter, value in replacements.items()}
    token = _overrides.set({**around, **new})
    try:
        yield
    finally:
        _overrides.reset(token)


def as_variable(value: str | TextVariable, what: str) -> TextVariable:
    """A variable for an argument that may be a plain str."""
    if isinstance(value, TextVariable):
        return value
    return _made(_text(value, what), None, False, None)


def _text(value: object, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, TextVariable):
        return value.data
    raise UsageError(f"{what} must be a str or a TextVariable, not {type(value).__name__}")


def _made(value: Any, grad_fn: Node | None, requires_grad: bool, name: str | None) -> TextVariable:
    variable = TextVariable.__new__(TextVariable)
    variable._set(value, grad_fn, requires_grad, name)
    return variable
