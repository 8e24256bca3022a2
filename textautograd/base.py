"""`Variable`: what a text and an array have in common as values on the tape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from textautograd.calling import unusable
from textautograd.errors import GraphError, UsageError
from textautograd.tape import Gradient, Node, Site


class Variable:
    """A leaf, or what a recorded operation made; `backward` brings its gradient.

    A kind of variable says what its gradients are: `_as_gradient` checks one that a user or a rule
    gave, `_first_gradient` is the one that a loss needs no seed for.
    """

    __slots__ = (
        "__weakref__",
        "_grad",
        "_hooks",
        "_modified_at",
        "_requires_grad",
        "_retains_grad",
        "_value",
        "_version",
        "grad_fn",
        "name",
    )

    grad_fn: Node | None
    name: str | None

    def _set(self, value: Any, grad_fn: Node | None, requires_grad: bool, name: str | None) -> None:
        self._value = value
        self._requires_grad = requires_grad
        self._retains_grad = False
        self._hooks: dict[object, Callable[[Any], Any]] | None = None
        self._version = 0
        self._modified_at: Site | None = None
        self._grad: Any = None
        self.grad_fn = grad_fn
        self.name = name

    @property
    def data(self) -> Any:
        """The value; waits if it is still being computed."""
        raise NotImplementedError

    def _read(self) -> Any:
        """The value with all that belongs to it."""
        return self.data

    @property
    def grad(self) -> Any:
        """The gradient that backward has accumulated, or `None`. Assignable."""
        return self._grad

    @grad.setter
    def grad(self, gradient: Any) -> None:
        self._grad = None if gradient is None else self._as_gradient(gradient)

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient is wanted for this variable or for anything behind it."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not self.is_leaf:
            raise GraphError(
                f"{self._title()} was computed: requires_grad can be set on leaves only; "
                "detach() gives a leaf"
            )
        if type(value) is not bool:
            raise UsageError(f"requires_grad must be True or False, not {value!r}")
        self._requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Sets `requires_grad` of a leaf, and returns it."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user rather than by a recorded operation."""
        return self.grad_fn is None

    def retain_grad(self) -> None:
        """Keeps `.grad` of a variable that is no leaf."""
        if not self.requires_grad:
            raise GraphError(f"{self._title()} does not require grad: it never gets one")
        self._retains_grad = True

    def register_hook(self, hook: Callable[[Any], Any]) -> RemovableHandle:
        """Calls `hook(gradient)` when this variable's gradient is complete; what it returns, unless
        `None`, replaces the gradient. Hooks run in the order of registration.

        Raises:
            GraphError: no gradient will come. UsageError: it is no function of one argument.
        """
        if not self.requires_grad:
            raise GraphError(f"{self._title()} does not require grad: its hook would never run")
        if self._hooks is None:
            self._hooks = {}
        return RemovableHandle(self._hooks, hook, "gradient")

    def _seed(self, gradient: Any) -> Gradient:
        """What a backward pass starts with here."""
        if not self.requires_grad:
            raise GraphError(
                f"{self._title()} does not require grad: no parameter lies behind it, or it was "
                "computed under no_grad(), or of what was read (.data, str() and f-strings take a "
                "text off the tape; ta.cat and ta.fill do not)"
            )
        return self._first_gradient() if gradient is None else self._as_gradient(gradient)

    def _as_gradient(self, value: Any) -> Gradient:
        raise NotImplementedError

    def _first_gradient(self) -> Gradient:
        raise NotImplementedError

    def _flaw(self, gradient: Gradient) -> str:
        """What is wrong with a gradient though it is one; `detect_anomaly` raises it."""
        return ""

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.is_leaf:
            raise UsageError(
                f"{self._title()} was computed: only leaves can be copied or pickled; "
                "to send its value, as out of another process, return str(x) or x.data"
            )
        return _rebuild, (type(self), self._read(), self.requires_grad, self.name)

    def _title(self) -> str:
        return f"variable {self.name!r}" if self.name else f"this {type(self).__name__}"


class RemovableHandle:
    """What registering a hook returns; `remove()` takes the hook away again."""

    def __init__(self, hooks: dict[object, Any], hook: Any, *arguments: str) -> None:
        if not callable(hook):
            raise UsageError(f"a hook must be a function, not {hook!r}")
        if why := unusable(hook, *arguments):
            raise UsageError(f"this hook is called as ({', '.join(arguments)}), but {why}")
        self._hooks = hooks
        self._key = object()  # not the handle, which would close a cycle
        hooks[self._key] = hook

    def remove(self) -> None:
        self._hooks.pop(self._key, None)


def _rebuild(kind: Any, data: Any, requires_grad: bool, name: str | None) -> Variable:
    variable: Variable = kind.__new__(kind)
    variable._set(data, None, requires_grad, name)
    return variable
