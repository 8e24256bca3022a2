"""`TextGrad`: textual gradient descent, one rewrite from all feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from textautograd import rules
from textautograd.checking import whole
from textautograd.engines.base import Engine, Message
from textautograd.gradient import Feedback
from textautograd.optim.gate import Gate
from textautograd.optim.optimizer import Candidate, StepResult, stored
from textautograd.optim.rewriting import (
    Drawn,
    Key,
    Options,
    Rewriting,
    as_constraints,
    last,
    shown,
    texts_of,
)
from textautograd.prompts.rewrite import FORM, rewrite
from textautograd.variable import TextVariable


class TextGrad(Rewriting):
    """Textual gradient descent (TextGrad, arXiv 2406.07496), with `SGD`'s interface.

    Its gradients are those of `loss.backward(rule=optimizer.rule)`, `rules.textgrad` with
    `instructions`: one call for each predecessor of a call and one for its instruction. A plain
    `backward()` makes semantic ones, which this optimizer takes without a word.

    One call per candidate rewrites each parameter that has a gradient from *all* of its feedback,
    shown with the conversation that it is about; parameters are rewritten concurrently, and written
    at once. Method after textgrad 0.1.8, `autograd/llm_ops.py` and `optimizer/optimizer.py`; a gate
    and a `check` are what it has not. What a loss says is passed on as it is, and of samples that
    it does not find right; the source has a model comment on each.

    Args:
        params, engine, candidates, seed, temperature, check: as of `SGD`.
        constraints: sentences that every rewrite should satisfy.
        gradient_memory: earlier steps whose feedback is shown again.
        momentum_window: earlier texts of the parameter that are shown.
    """

    rule = staticmethod(partial(rules.textgrad, instructions=True))

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        constraints: Sequence[str] = (),
        gradient_memory: int = 0,
        momentum_window: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, **options)
        whole("TextGrad: gradient_memory", gradient_memory, 0)
        whole("TextGrad: momentum_window", momentum_window, 0)
        self.constraints = as_constraints("TextGrad", constraints)
        self.gradient_memory = gradient_memory
        self.momentum_window = momentum_window
        self._feedback: dict[str, list[str]] = {name: [] for name in self.names}
        self._values: dict[str, list[str]] = {name: [] for name in self.names}

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {
            **super().settings(),
            "constraints": self.constraints,
            "gradient_memory": self.gradient_memory,
            "momentum_window": self.momentum_window,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON."""
        copies = [{n: list(t) for n, t in kept.items()} for kept in (self._feedback, self._values)]
        return {**super().state_dict(), "feedback": copies[0], "values": copies[1]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            StateError: it is no such state; the optimizer stays as it was.
        """
        kept = [stored(state, key, {str: [str]}, {}) for key in ("feedback", "values")]
        super().load_state_dict(state)
        sizes = (self.gradient_memory, self.momentum_window)
        self._feedback, self._values = [
            {name: last(texts, size) for name, texts in self._by_name(lists).items()}
            for lists, size in zip(kept, sizes, strict=True)
        ]

    def step_with(self, gate: Gate | None) -> StepResult:
        """`step`, for a gate that evaluates and compares the states itself."""
        used = [(n, rules.said(p.grad), p.data) for n, p in self.live() if p.grad]
        result = super().step_with(gate)
        for name, said, old in used:
            self._feedback[name] = last([*self._feedback[name], said], self.gradient_memory)
            if name in result.changes:
                self._values[name] = last([*self._values[name], old], self.momentum_window)
        return result

    async def propose(self, engine: Engine) -> list[Candidate]:
        """Draws `candidates` whole new states."""
        return await self.each(
            engine,
            FORM,
            lambda name, param, how: self._messages(name, param.data, [], {}, how),
            self._rewrite,
        )

    async def _rewrite(
        self, engine: Engine, name: str, param: TextVariable, candidate: int
    ) -> Drawn:
        assert param.grad is not None
        old, examples = param.data, list(param.grad.distinct())
        texts = texts_of(examples, [])
        texts |= {("past", i, "feedback"): text for i, text in enumerate(self._feedback[name])}
        texts |= {("past", i, "variable"): text for i, text in enumerate(self._values[name])}

        def prompt(texts: Mapping[Key, str], how: str) -> list[Message]:
            now = [shown(example, i, texts) for i, example in enumerate(examples)]
            return self._messages(name, old, now, texts, how)

        return await self.rewritten(engine, FORM, name, param, candidate, texts, prompt)

    def _messages(
        self,
        name: str,
        old: str,
        examples: Sequence[Feedback],
        texts: Mapping[Key, str],
        how: str,
    ) -> list[Message]:
        past: dict[str, list[str]] = {"feedback": [], "variable": []}
        for key, text in texts.items():
            if key[0] == "past":
                past[key[-1]].append(text)
        role = f"{name}, a text that a system of language models uses"
        return rewrite(
            old, role, examples, past["feedback"], past["variable"], self.constraints, how
        )
