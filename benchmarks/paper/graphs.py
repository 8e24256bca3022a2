"""The paper's graphs as plain data, which the peers' scripts read as well, and as a module.

A node is `{"name", "instruction", "output_format", "inputs"}`; `inputs` maps a name in the prompt
to a field of the example, or to "@node" for another node's output. The last node's output is the
answer.

In the method's reference implementation (`statement.py`, commit aad0c72) each node of the BBH and
GSM8K graphs is asked to reason first and to end with a statement between tags; what stands there is
the node's value, which the next nodes see and the score compares. `reasoning=True` does that.
Without it a node's whole reply is its value, and hints are asked to be short: what small models on
small machines can do.
"""

from __future__ import annotations

from typing import Any

import textautograd as ta
from textautograd import nn

Node = dict[str, Any]

SHORT = "Use at most two short sentences."
STATE = (
    "Show your reasoning step by step. End with your output alone, wrapped by <output statement> "
    "and </output statement>."
)
HINT = "Work out an intermediate step that helps solve the problem."
ANALYSTS = {
    "statement": "Analyse the statement itself.",
    "party": "Say how the party that the speaker belongs to may feel about the statement.",
    "job_title": "Say whether the statement is in keeping with the speaker's job title.",
    "source": "Say why the statement may have been made there.",
    "state": "Say how people in the speaker's state may feel about the statement.",
}
DECIDE = "Decide whether the statement is true (Yes) or not (No)."


def two_hints(reasoning: bool) -> list[Node]:
    """Two parallel hints, then the answer: BBH and GSM8K."""
    form = STATE if reasoning else SHORT
    asked = {"question": "question"}
    hints = [node(f"hint_{i}", HINT, form, asked) for i in (1, 2)]
    seen = asked | {"hint_1": "@hint_1", "hint_2": "@hint_2"}
    return [*hints, node("solve", "Solve the problem.", STATE if reasoning else None, seen)]


def analysts() -> list[Node]:
    """LIAR: five analysts, then Yes or No; as in the reference, all see all fields."""
    fields = {"statement": "question"} | {name: name for name in list(ANALYSTS)[1:]}
    found = [node(name, text, SHORT, fields) for name, text in ANALYSTS.items()]
    hints = {f"on_{name}": f"@{name}" for name in ANALYSTS}
    return [*found, node("decide", DECIDE, "Answer Yes or No.", fields | hints)]


def node(name: str, instruction: str, output_format: str | None, inputs: dict[str, str]) -> Node:
    return {
        "name": name,
        "instruction": instruction,
        "output_format": output_format,
        "inputs": inputs,
    }


class Statement(ta.Function):
    """What stands between the last pair of tags; without any, the whole reply."""

    @staticmethod
    def forward(ctx: Any, *texts: str) -> str:
        found, rest = texts[0], texts[0]
        while "</output statement>" in (rest := rest.partition("<output statement>")[2]):
            found, _, rest = rest.partition("</output statement>")
        return found if found is texts[0] else found.strip()

    @staticmethod
    def backward(ctx: Any, grad: ta.Gradient) -> ta.Gradient:
        return grad


class Graph(nn.Module):
    """An agent made of such nodes: `instructions` are its `nn.LLM`s by name."""

    def __init__(self, nodes: list[Node], max_tokens: int) -> None:
        self.nodes = nodes
        self.parts = nn.ModuleDict(
            {
                each["name"]: nn.LLM(
                    each["instruction"],
                    output_format=each["output_format"],
                    max_tokens=max_tokens,
                )
                for each in nodes
            }
        )

    def forward(self, **fields: str) -> ta.TextVariable:
        values: dict[str, ta.TextVariable] = {}
        for each in self.nodes:
            inputs = {
                name: values[source[1:]] if source.startswith("@") else fields[source]
                for name, source in each["inputs"].items()
            }
            reply = self.parts[each["name"]](**inputs)
            states = each["output_format"] == STATE
            values[each["name"]] = Statement.apply(reply) if states else reply
        return values[self.nodes[-1]["name"]]

    def instructions(self) -> dict[str, str]:
        """By node, as they are now."""
        return {each["name"]: self.parts[each["name"]].instruction.data for each in self.nodes}
