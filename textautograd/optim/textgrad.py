"""`TextGrad`: textual gradient descent, one rewrite from all feedback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textautograd import rules
from textautograd.data.sampling import check_int
from textautograd.engines.base import Engine, Message
from textautograd.optim.check import Check, objection
from textautograd.optim.gate import Gate
from textautograd.optim.optimizer import Candidate, StepResult
from textautograd.optim.rewriting import (
    Drawn,
    Key,
    Rewriting,
    as_constraints,
    data_of,
    shown,
    texts_of,
    texts_under,
)
from textautograd.prompts.rewrite import FORM, rewrite
from textautograd.prompts.summarise import check_fits
from textautograd.variable import TextVariable


class TextGrad(Rewriting):
    """Textual gradient descent (TextGrad, arXiv 2406.07496), with `SGD`'s interface.

    Gradients come from `rules.textgrad`; an instruction's is the feedback on its call, with the
    conversation. One call per candidate rewrites each parameter that has a gradient from *all* of
    its feedback, all of them concurrently; what is written is written at once. Method after
    textgrad 0.1.8, `optimizer/optimizer.py`.

    Args:
        params, engine, candidates, seed, temperature, check: as of `SGD`.
        constraints: sentences that every rewrite should satisfy.
        gradient_memory: earlier steps whose feedback is shown again.
        momentum_window: earlier texts of the parameter that are shown.
    """

    rule = staticmethod(rules.textgrad)

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        engine: Engine | str | None = None,
        candidates: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        constraints: Sequence[str] = (),
        gradient_memory: int = 0,
        momentum_window: int = 0,
        check: Check = objection,
    ) -> None:
        super().__init__(
            params,
            engine=engine,
            candidates=candidates,
            seed=seed,
            temperature=temperature,
            check=check,
        )
        check_int("TextGrad", "gradient_memory", gradient_memory, at_least=0)
        check_int("TextGrad", "momentum_window", momentum_window, at_least=0)
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
        feedback, values = (texts_under(state, key, self.names) for key in ("feedback", "values"))
        super().load_state_dict(state)
        self._feedback, self._values = feedback, values

    def step_with(self, gate: Gate | None) -> StepResult:
        """`step`, for a gate that evaluates and compares the states itself."""
        used = [(n, rules.said(p.grad), p.data) for n, p in self.live() if p.grad]
        result = super().step_with(gate)
        for name, said, old in used:
            self._feedback[name] = _last([*self._feedback[name], said], self.gradient_memory)
            if name in result.changes:
                self._values[name] = _last([*self._values[name], old], self.momentum_window)
        return result

    async def propose(self, engine: Engine) -> list[Candidate]:
        """Draws `candidates` whole new states."""
        live = self.live()
        for name, param in live:  # before any of them is paid for
            check_fits(engine, FORM, lambda how: self._messages(name, param.data, {}, [], how))  # noqa: B023
        return await self.drawn(
            (i, [name], self._rewrite(engine, name, param, i))
            for i in range(self.candidates)
            for name, param in live
        )

    async def _rewrite(
        self, engine: Engine, name: str, param: TextVariable, candidate: int
    ) -> Drawn:
        gradient = param.grad
        assert gradient is not None
        old, tried = param.data, self._tried[name]
        examples, data = list(gradient.distinct()), data_of(gradient)
        texts = texts_of(examples, [])
        texts |= {("past", i, "feedback"): text for i, text in enumerate(self._feedback[name])}
        texts |= {("past", i, "variable"): text for i, text in enumerate(self._values[name])}

        def prompt(texts: Mapping[Key, str], how: str) -> list[Message]:
            return self._messages(
                name, old, texts, [shown(e, i, texts) for i, e in enumerate(examples)], how
            )

        parts = await self.ask(
            engine,
            FORM,
            candidate,
            f"{name} {prompt(texts, '')}",
            texts,
            prompt,
            lambda parts: self.check(parts["variable"] or "", old, tried, data),
            differ=bool(tried),
        )
        return parts if isinstance(parts, Exception) else {name: parts["variable"] or old}

    def _messages(
        self, name: str, old: str, texts: Mapping[Key, str], examples: Sequence[Any], how: str
    ) -> list[Message]:
        past = {
            kind: [text for key, text in texts.items() if (key[0], key[-1]) == ("past", kind)]
            for kind in ("feedback", "variable")
        }
        role = f"{name}, a text that a system of language models uses"
        return rewrite(
            old, role, examples, past["feedback"], past["variable"], self.constraints, how
        )


def _last(texts: list[str], count: int) -> list[str]:
    return texts[-count:] if count else []
