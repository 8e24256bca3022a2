"""The prompt of an agent's own call: instruction first and verbatim, inputs last as data."""

from collections.abc import Mapping

from textautograd.engines.base import Message
from textautograd.prompts.quote import quote


def forward(
    instruction: str, inputs: Mapping[str, str], output_format: str | None = None
) -> list[Message]:
    """Messages for one call; what stays the same from call to call comes first."""
    system = "\n\n".join([part for part in (instruction, output_format) if part])
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": quote(inputs)}]
