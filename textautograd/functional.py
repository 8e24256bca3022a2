"""Differentiable operations on texts: exact ones, which know their gradient, and opaque ones."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from textautograd import rules
from textautograd.calling import is_async
from textautograd.checking import quantity, whole
from textautograd.engines import as_engine, default_engine
from textautograd.engines.ask import ask
from textautograd.engines.base import Engine, Request
from textautograd.errors import UsageError
from textautograd.gradient import Gradient
from textautograd.operation import Join, Operation
from textautograd.prompts.forward import forward as forward_prompt
from textautograd.tape import Node
from textautograd.variable import Scored, TextVariable, apply, as_variable


def _several(values: object, what: str) -> list[Any]:
    """The items of a sequence of texts or losses, and of nothing that merely has items."""
    if not isinstance(values, Iterable) or isinstance(
        values, (str, bytes, Mapping, set, frozenset)
    ):
        shown = "one" if isinstance(values, (str, TextVariable)) else type(values).__name__
        raise UsageError(f"{what}, not {shown}")
    return list(values)


def cat(parts: Sequence[TextVariable | str], sep: str = "\n") -> TextVariable:
    """Joins texts (`torch.cat`); each part gets the feedback on the whole.

    Raises:
        UsageError: if there are no parts, or one is no text.
    """
    texts = _several(parts, "cat takes a list of texts, cat([x, y])")
    if not isinstance(sep, str):
        raise UsageError(f"cat's sep must be a str, not {type(sep).__name__}")
    variables = [as_variable(part, f"part {i} of cat") for i, part in enumerate(texts)]
    if not variables:
        raise UsageError("cat needs at least one part")
    return apply(Join(len(variables), sep), *variables)


class Fill(Operation):
    """A template with declared names replaced, literally."""

    __slots__ = ()
    name = "fill"

    def forward(self, *texts: str) -> str:
        template, *values = texts
        table = dict(zip(self.names[1:], values, strict=True))
        pattern = "|".join(re.escape("{" + name + "}") for name in table)
        return re.sub(pattern, lambda m: table[m[0][1:-1]], template) if table else template


def fill(template: TextVariable | str, /, **values: TextVariable | str) -> TextVariable:
    """Replaces `{name}` for each declared name, once, and nothing else.

    Other braces stay as they are, and what is filled in is never searched for names.

    Raises:
        UsageError: if a name does not occur in a template that is a str. One that is a variable may
            be any text, as optimizers rewrite it; what it does not name is left out.
    """
    variable = as_variable(template, "the template of fill")
    for name in values:
        if isinstance(template, str) and "{" + name + "}" not in template:
            raise UsageError(f"the template has no {{{name}}} to fill: {template[:80]!r}")
    slots = [as_variable(value, f"{name}= of fill") for name, value in values.items()]
    return apply(Fill(["template", *values]), variable, *slots)


class Select(Operation):
    """One of several texts."""

    __slots__ = ("index",)
    name = "select"

    def __init__(self, count: int, index: int) -> None:
        super().__init__([f"option{i}" for i in range(count)])
        self.index = index

    def forward(self, *texts: str) -> str:
        return texts[self.index]

    def backward(self, node: Node, gradient: Gradient) -> list[Gradient | None]:
        return [gradient if i == self.index else None for i in range(len(node.predecessors))]


def select(options: Sequence[TextVariable | str], index: int) -> TextVariable:
    """The option at `index`; the others get no gradient (`torch.select`).

    Raises:
        UsageError: no list of texts, or no index of it.
    """
    texts = _several(options, "select takes a list of texts, select([x, y], 0)")
    variables = [as_variable(text, f"option {i} of select") for i, text in enumerate(texts)]
    try:
        index = operator.index(index)
    except TypeError:
        raise UsageError(f"select's index must be an int, not {type(index).__name__}") from None
    if not -len(variables) <= index < len(variables):
        raise UsageError(f"index {index} is out of range for {len(variables)} options")
    return apply(Select(len(variables), index % len(variables)), *variables)


class Mean(Operation):
    """The mean of losses."""

    __slots__ = ()
    name = "mean"

    def forward(self, *texts: str) -> str:
        for text in texts:
            if not isinstance(text, Scored):
                raise UsageError(f"mean takes losses, and this is none: {text[:80]!r}")
        losses = [text.loss for text in texts if isinstance(text, Scored)]
        value = sum(losses) / len(losses)
        return Scored(f"mean of {len(losses)} losses: {value:g}", value)


def mean(losses: Sequence[TextVariable]) -> TextVariable:
    """The mean of losses; its backward reaches each of them.

    Raises:
        UsageError: if there are none, or one is no loss (at once, or where its value is read).
    """
    losses = _several(losses, "mean takes a list of losses, mean([loss])")
    if not losses:
        raise UsageError("mean of no losses: the batch is empty")
    for loss in losses:
        if not isinstance(loss, TextVariable):
            raise UsageError(f"mean takes losses, not {type(loss).__name__}")
    return apply(Mean([f"loss{i}" for i in range(len(losses))]), *losses)


class Opaque(Operation):
    """What has no gradient of its own: backward takes a rule."""

    __slots__ = ("engine",)
    is_opaque = True
    output_format: str | None = None
    task = ""

    def __init__(self, names: Sequence[str], engine: Engine | None) -> None:
        super().__init__(names)
        self.engine = engine

    def pull(
        self, node: Node, gradient: Gradient, rule: rules.Rule | None, engine: Engine | None
    ) -> Coroutine[Any, Any, rules.Pulled]:
        """As `backward`, by a rule."""
        return rules.follow(rule or rules.semantic, node, gradient, engine or self.engine)

    def without_rule(self, node: Node, gradient: Gradient) -> list[Gradient | None]:
        """What passes back where the rule failed."""
        return rules.none(node, gradient)


class Complete(Opaque):
    """A model's call."""

    __slots__ = ("max_tokens", "module", "output_format", "temperature")
    name = "complete"

    def __init__(
        self,
        names: Sequence[str],
        engine: Engine,
        output_format: str | None,
        max_tokens: int | None,
        temperature: float | None,
        module: str,
    ) -> None:
        super().__init__(names, engine)
        self.module = module
        self.output_format = output_format
        self.max_tokens = max_tokens
        self.temperature = temperature

    @property
    def title(self) -> str:
        return f"the LLM call {self.module!r}" if self.module else "an LLM call"

    async def run(self, texts: Sequence[str]) -> str:
        instruction, *inputs = texts
        request = Request(
            forward_prompt(
                instruction, dict(zip(self.names[1:], inputs, strict=True)), self.output_format
            ),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
        )
        assert self.engine is not None
        return (await ask(self.engine, request)).text.strip()


def complete(
    instruction: TextVariable | str,
    inputs: Mapping[str, TextVariable | str],
    *,
    engine: Engine | str | None = None,
    output_format: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = 0.0,
) -> TextVariable:
    """One call of a model: the instruction first and verbatim, the inputs last, as quoted data.

    Args:
        inputs: name → text; the names appear in prompts, "instruction" is reserved.
        engine: an engine or its name; the context's default engine if `None`.
        output_format: appended to the instruction, never rewritten by an optimizer.
        max_tokens: of the reply; a reply that is cut off there is an error.

    Returns:
        The reply without the white space around it; still pending, most likely.

    Raises:
        UsageError: an argument that cannot work, before anything is spent.
    """
    if not isinstance(inputs, Mapping):
        raise UsageError(f"a model's inputs are a dict of name → text, not {inputs!r}")
    if not inputs:
        raise UsageError("a model's call needs at least one input")
    variables = _named(inputs)
    check_sampling(output_format, max_tokens, temperature)
    resolved = default_engine() if engine is None else as_engine(engine)
    variable = as_variable(instruction, "the instruction")
    module = (variable.name or "").rpartition(".")[0]
    names = ["instruction", *inputs]
    operation = Complete(names, resolved, output_format, max_tokens, temperature, module)
    return apply(operation, variable, *variables)


def check_sampling(
    output_format: str | None, max_tokens: int | None, temperature: float | None
) -> None:
    """Raises `UsageError` where a model's call cannot be made with these."""
    if output_format is not None and not isinstance(output_format, str):
        raise UsageError(f"output_format must be a str, not {type(output_format).__name__}")
    if max_tokens is not None:
        whole("max_tokens", max_tokens)
    if temperature is not None and quantity(temperature) is None:
        raise UsageError(f"temperature must be a number of at least 0, not {temperature!r}")


def _named(inputs: Mapping[str, TextVariable | str]) -> list[TextVariable]:
    for name in inputs:
        if not isinstance(name, str):
            raise UsageError(f"an input's name must be a str, not {name!r}")
    if "instruction" in inputs:
        raise UsageError('an input cannot be named "instruction": the name is reserved')
    return [as_variable(text, f"input {name!r}") for name, text in inputs.items()]


class CallTool(Opaque):
    """A user's function of texts."""

    __slots__ = ("function", "task")
    runs_user_code = True

    def __init__(self, function: Callable[..., str], names: Sequence[str]) -> None:
        super().__init__(names, None)
        self.function = function
        self.task = f"The tool {getattr(function, '__name__', 'function')}. " + (
            function.__doc__ or ""
        )

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.function, "__name__", "tool")

    def forward(self, *texts: str) -> str:
        result = self.function(**dict(zip(self.names, texts, strict=True)))
        if not isinstance(result, str):
            raise UsageError(f"the tool {self.name} returned {type(result).__name__}, not a str")
        return result


def call_tool(function: Callable[..., str], **inputs: TextVariable | str) -> TextVariable:
    """Calls a tool, any function of texts, with named inputs; backward takes a rule.

    The function's name and docstring tell the rule what it does. It runs at once where its inputs
    are known, else in a thread of its own.

    Raises:
        UsageError: an async function; what it returns is no str (where the value is read).
    """
    if not callable(function):
        raise UsageError(f"a tool is a function, not {type(function).__name__}")
    if is_async(function):
        raise UsageError(
            f"the tool {getattr(function, '__name__', type(function).__name__)} is an async "
            "function: give a plain one that runs it, as by asyncio.run, or by "
            "run_coroutine_threadsafe on the loop that its client lives on"
        )
    return apply(CallTool(function, list(inputs)), *_named(inputs))
