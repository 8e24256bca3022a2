"""`LLM`: a model's call with an instruction that can be learnt."""

from __future__ import annotations

import reprlib

from textautograd.engines import as_engine
from textautograd.engines.base import Engine
from textautograd.errors import UsageError
from textautograd.functional import check_sampling, complete
from textautograd.nn.module import Module, Parameter
from textautograd.variable import TextVariable


class LLM(Module):
    """A model's call: `self.solve(question=q, hint=h)`.

    The instruction comes first, verbatim; the named inputs come last, as quoted data. One
    positional text is the input named `input`.

    Args:
        instruction: what the model should do; the `Parameter` attribute `instruction`.
        engine: an engine or its name; by default the one that `.to()` sets, else the context's.
        output_format: added below the instruction and never rewritten.
        max_tokens: of the reply; one that is cut off there is an error, not an output.
        temperature: 0 for the same reply each time.
    """

    def __init__(
        self,
        instruction: str | Parameter,
        *,
        engine: Engine | str | None = None,
        output_format: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
    ) -> None:
        if not isinstance(instruction, (str, TextVariable)):
            raise UsageError(f"the instruction must be a str, not {type(instruction).__name__}")
        check_sampling(output_format, max_tokens, temperature)
        if not isinstance(instruction, Parameter):
            instruction = Parameter(instruction)
        self.instruction = instruction
        self.engine: Engine | None = None if engine is None else as_engine(engine)
        self.output_format = output_format
        self.max_tokens = max_tokens
        self.temperature = temperature

    @property
    def instruction(self) -> Parameter:
        """What the model should do. Assign its `.data`, not the attribute, to give another text."""
        found: Parameter = vars(self)["instruction"]
        return found

    @instruction.setter
    def instruction(self, parameter: Parameter) -> None:
        if not isinstance(parameter, Parameter):
            raise UsageError(
                f"an LLM's instruction is a Parameter, not {type(parameter).__name__}: "
                "to give it another text, assign .instruction.data"
            )
        vars(self)["instruction"] = parameter

    def forward(self, /, *text: TextVariable | str, **inputs: TextVariable | str) -> TextVariable:
        """The model's reply, without the white space around it.

        Raises:
            UsageError: no input, two positional ones, one named `instruction`, or no text.
        """
        if len(text) > 1 or (text and "input" in inputs):
            raise UsageError("an LLM takes one positional text: name the others, hint=…")
        if text:
            inputs = {"input": text[0], **inputs}
        return complete(
            self.instruction,
            inputs,
            engine=self.engine,
            output_format=self.output_format,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def extra_repr(self) -> str:
        shown = [reprlib.repr(str(self.instruction))]
        if self.output_format is not None:
            shown.append(f"output_format={reprlib.repr(self.output_format)}")
        if self.max_tokens is not None:
            shown.append(f"max_tokens={self.max_tokens}")
        if self.temperature != 0:
            shown.append(f"temperature={self.temperature}")
        return ", ".join(shown)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"
