"""Losses: modules whose output has a number. 0 is perfect, and then there is no gradient."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable, Sequence
from functools import partial

from textautograd.calling import unusable
from textautograd.engines import as_engine, default_engine
from textautograd.engines.base import Engine, Request
from textautograd.errors import UsageError
from textautograd.gradient import Feedback, Gradient
from textautograd.nn.module import Module
from textautograd.operation import Operation
from textautograd.prompts.form import fill_in
from textautograd.prompts.judge import FORM, judge
from textautograd.tape import Node
from textautograd.variable import Scored, TextVariable, apply, as_variable

LossFunction = Callable[[str, str], tuple[float, str]]


class Loss(Operation):
    """An operation with a number; its text is the feedback on its input."""

    __slots__ = ()

    def backward(self, node: Node, gradient: Gradient) -> list[Gradient | None]:
        value = node.output
        if value.loss == 0 or not value:
            return [None]
        return [Gradient([Feedback(str(value), output=str(node.inputs[0]))]) + gradient]


class ExactMatch(Loss):
    """0 if the output is the target."""

    __slots__ = ("extract", "target")
    name = "exact_match"

    def __init__(self, target: str, extract: Callable[[str], str] | None) -> None:
        super().__init__(["output"])
        self.target = target
        self.extract = extract

    @property
    def runs_user_code(self) -> bool:  # type: ignore[override]
        return self.extract is not None

    def forward(self, *texts: str) -> Scored:
        (output,) = texts
        answer = output if self.extract is None else self.extract(output)
        if not isinstance(answer, str | None):
            raise UsageError(f"extract must return a str or None; it returned {answer!r}")
        feedback = f'The expected output is: "{self.target}".'
        return Scored(feedback, 0.0 if answer == self.target else 1.0)


class ExactMatchLoss(Module):
    """0.0 if the whole output equals the target, else 1.0; no model is called.

    The feedback is the paper's: `The expected output is: "…".`

    Args:
        extract: a function of the output that finds the answer in it, or None; by default the
            output itself.
    """

    def __init__(self, extract: Callable[[str], str] | None = None) -> None:
        if extract is not None and not callable(extract):
            raise UsageError(f"extract must be a function, not {type(extract).__name__}")
        if extract is not None and (why := unusable(extract, "")):
            raise UsageError(f"extract is called as (output), but {why}")
        self.extract = extract

    def extra_repr(self) -> str:
        return "" if self.extract is None else f"extract={_called(self.extract)}"

    def forward(self, output: TextVariable | str, target: str) -> TextVariable:
        """The loss of one output."""
        if not isinstance(target, str):
            raise UsageError(f"the target must be a str, not {type(target).__name__}")
        return apply(ExactMatch(target, self.extract), as_variable(output, "the output"))


class Scoring(Loss):
    """A user's function of output and target."""

    __slots__ = ("function", "target")
    name = "loss"
    runs_user_code = True

    def __init__(self, function: LossFunction, target: str) -> None:
        super().__init__(["output"])
        self.function = function
        self.target = target

    def forward(self, *texts: str) -> Scored:
        result = self.function(texts[0], self.target)
        match result:
            case (bool(), _):
                raise UsageError(
                    "the loss function must return a number, of which 0 is perfect, and not a "
                    "bool, which may mean either: say 0.0 if output == target else 1.0"
                )
            case (int() | float() as loss, str(feedback)) if 0 <= loss < sys.float_info.max:
                return Scored(feedback, float(loss))
        raise UsageError(
            f"the loss function must return (loss, feedback), a finite number of at least 0 and a "
            f"str; it returned {reprlib.repr(result)}"
        )


class FunctionLoss(Module):
    """A loss of your own: `function(output, target) -> (loss, feedback)`.

    0 is perfect. The feedback says in words how the output should change: the more it says, the
    better the gradient; where it is empty there is none. It is user code, and may read anything.
    """

    def __init__(self, function: LossFunction) -> None:
        if not callable(function):
            raise UsageError(f"the loss must be a function, not {type(function).__name__}")
        if why := unusable(function, "", ""):
            raise UsageError(f"the loss is called as (output, target), but {why}")
        self.function = function

    def extra_repr(self) -> str:
        return _called(self.function)

    def forward(self, output: TextVariable | str, target: str) -> TextVariable:
        """The loss of one output."""
        return apply(Scoring(self.function, target), as_variable(output, "the output"))


def _called(function: Callable[..., object]) -> str:
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    return name


class Judge(Loss):
    """A model's score and feedback."""

    __slots__ = ("criterion", "engine", "target")
    name = "judge"

    def __init__(self, criterion: str, target: str | None, engine: Engine) -> None:
        super().__init__(["output"])
        self.criterion = criterion
        self.target = target
        self.engine = engine

    async def run(self, texts: Sequence[str]) -> Scored:
        parts = await fill_in(
            self.engine,
            FORM,
            lambda how: judge(self.criterion, texts[0], self.target, how),
            partial(Request, purpose="judge", temperature=0.0),
            lambda parts: (
                None if parts["feedback"] or parts["score"] == "1.0" else "'feedback' is empty"
            ),
        )
        return Scored(parts["feedback"] or "", 1 - float(parts["score"] or 0))


class JudgeLoss(Module):
    """A model judges the output: one call for a score in [0, 1] and feedback.

    `.item()` is 1 - score. Backward needs no further call: the feedback is known by then. Only a
    score of 1 may come without feedback.

    Args:
        criterion: what a good output is; may be completed per call by `loss_fn(output, target)`.
        engine: an engine or its name; by default the one that `.to()` sets, else the context's.
    """

    def __init__(self, criterion: str, *, engine: Engine | str | None = None) -> None:
        if not isinstance(criterion, str):
            raise UsageError(f"the criterion must be a str, not {type(criterion).__name__}")
        self.criterion = criterion
        self.engine: Engine | None = None if engine is None else as_engine(engine)

    def extra_repr(self) -> str:
        return reprlib.repr(self.criterion)

    def forward(self, output: TextVariable | str, target: str | None = None) -> TextVariable:
        """The loss of one output; a `target` is told to the judge as the expected output."""
        if target is not None and not isinstance(target, str):
            raise UsageError(f"the target must be a str, not {type(target).__name__}")
        operation = Judge(self.criterion, target, self.engine or default_engine())
        return apply(operation, as_variable(output, "the output"))
