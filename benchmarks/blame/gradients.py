"""One forward pass by rule, one backward pass by the model: what every node was told."""

from __future__ import annotations

import re
import time
from typing import Any

import textautograd as ta
from benchmarks.blame.cases import Case, execute
from textautograd import nn, rules
from textautograd.engines import Engine, Request, Scripted
from textautograd.errors import (
    ContentFilterError,
    ContextOverflowError,
    EngineError,
    IncompleteReplyError,
    ReplyError,
    UsageError,
)

RULES: dict[str, Any] = {
    "semantic": rules.semantic,
    "textgrad": rules.textgrad,
    "blind": rules.blind(rules.semantic),
}
UNUSABLE = (ReplyError, IncompleteReplyError, ContextOverflowError, ContentFilterError)


class Agent(nn.Module):
    """The nodes of a case, each shown the question and its predecessors' outputs."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.nodes = nn.ModuleDict({n: nn.LLM(case.instructions[n]) for n in case.graph})

    def forward(self, question: str) -> dict[str, ta.TextVariable]:
        found: dict[str, ta.TextVariable] = {}
        for name, (_, before) in self.case.graph.items():
            inputs = {p: found[p] for p in before}
            found[name] = self.nodes[name](question=question, **inputs)
        return found


def _play(request: Request) -> str:
    instruction, shown = (m["content"] for m in request.messages)
    question, *inputs = re.findall(r"<([\w-]+)>\n(.*?)\n</\1>", shown, re.DOTALL)
    return execute(instruction, question[1], [text for _, text in inputs])


class _Watched:
    """A rule whose unusable replies are counted and pass nothing back; any other failure of a call
    is no opinion of the model, and is kept to be raised."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.failed = 0
        self.error: EngineError | None = None

    async def __call__(self, node: Any, gradient: ta.Gradient, engine: Engine | None) -> Any:
        try:
            return await self.rule(node, gradient, engine)
        except UNUSABLE:
            self.failed += 1
        except EngineError as error:
            self.error = error
        return rules.none(node, gradient)


def gradients(case: Case, rule: Any, engine: Engine) -> dict[str, Any]:
    """One forward and one backward pass: what each node was told, and what that took.

    Raises:
        EngineError: a call failed.
    """
    outputs = Agent(case).to(Scripted(_play))(case.question)
    for variable in outputs.values():
        variable.retain_grad()
    loss = nn.ExactMatchLoss()(list(outputs.values())[-1], case.expected)
    if loss.item() != 1:
        raise UsageError(f"case {case.number} is right in spite of its defect")
    watched = _Watched(rule)
    started = time.monotonic()
    with ta.Budget() as budget:
        loss.backward(rule=watched, engine=engine)
    if watched.error is not None:
        raise watched.error
    said = {n: None if v.grad is None else str(v.grad) for n, v in outputs.items()}
    return {
        "gradients": said,
        "failed": watched.failed,
        "calls": budget.spent.calls,
        "tokens": [budget.spent.input_tokens, budget.spent.output_tokens],
        "seconds": round(time.monotonic() - started, 2),
    }
