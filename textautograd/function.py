"""`Function`: an operation with a forward and a backward of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textautograd.errors import UsageError
from textautograd.gradient import Gradient
from textautograd.operation import Operation
from textautograd.rules import checked
from textautograd.tape import Node
from textautograd.variable import TextVariable, apply, as_variable, overriding


class Context:
    """What `forward` leaves for `backward` (`ctx` in PyTorch): any attribute, or `saved`.

    `needs_input_grad` tells backward which inputs want a gradient.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved: tuple[Any, ...] = ()

    def save_for_backward(self, *values: Any) -> None:
        """Keeps values for backward, which finds them in `saved`."""
        self.saved = values


class Function:
    """Subclass with static `forward(ctx, *texts) -> str` and `backward(ctx, grad)`, which returns
    one `Gradient`, str or `None` per input; then call `MyFunction.apply(x, y)`.

    Both are user code: they run in the caller's thread where the inputs are known, else in a thread
    of their own, and may read any variable (`torch.autograd.Function`).
    """

    @staticmethod
    def forward(ctx: Any, *texts: str) -> str:
        """The value."""
        raise UsageError("a Function needs a static forward(ctx, *texts)")

    @staticmethod
    def backward(ctx: Any, grad: Gradient) -> Any:
        """One gradient or `None` per input."""
        raise UsageError("a Function needs a static backward(ctx, grad)")

    @classmethod
    def apply(cls, *inputs: TextVariable | str) -> TextVariable:
        """Runs and records the function."""
        variables = [
            as_variable(value, f"input {i} of {cls.__name__}") for i, value in enumerate(inputs)
        ]
        ctx = Context(tuple(overriding(v).requires_grad for v in variables))
        return apply(_Applied(cls, ctx, len(variables)), *variables)


class _Applied(Operation):
    __slots__ = ("ctx", "function")
    runs_user_code = True

    def __init__(self, function: type[Function], ctx: Context, count: int) -> None:
        super().__init__([f"input{i}" for i in range(count)])
        self.function = function
        self.ctx = ctx

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.function.__name__

    def forward(self, *texts: str) -> str:
        result = self.function.forward(self.ctx, *texts)
        if not isinstance(result, str):
            raise UsageError(
                f"{self.name}.forward returned {type(result).__name__}; it must return a str"
            )
        return result

    def backward(self, node: Node, gradient: Gradient) -> Sequence[Gradient | None]:
        return checked(self.function.backward(self.ctx, gradient), node)
