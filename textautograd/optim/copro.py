"""`COPRO`: coordinate ascent by proposals and their scores, without gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Unpack

from textautograd import rules
from textautograd.checking import whole
from textautograd.engines.base import Engine, Message
from textautograd.errors import UsageError
from textautograd.optim.gate import Gate
from textautograd.optim.optimizer import Candidate, StepResult, stored
from textautograd.optim.rewriting import Drawn, Key, Options, Rewriting
from textautograd.prompts.propose import FORM, propose
from textautograd.prompts.summarise import LEAST, check_fits
from textautograd.variable import TextVariable

Attempt = tuple[str, float | None]


class COPRO(Rewriting):
    """COPRO (DSPy), with `SGD`'s interface: proposals and their scores, no gradients.

    Each step is one round for one parameter, the next in turn. The first round proposes `breadth` -
    1 instructions from the present one, which is the last of the attempts; later rounds propose
    `breadth` from the best `breadth` attempts with their losses. The gate's are the scores, so
    `step` needs one, and `fit` stops no candidate early. `loss.backward(rule=optimizer.rule)` makes
    no call, nor is any needed; what another rule's gradients cost is paid in vain. After `depth`
    rounds it begins anew. Scores are those of the step that tried an instruction, with the other
    parameters as they were then; the source evaluates all of them again each round. An attempt that
    scores as the present text does is not taken; the source takes it, checks no text, and proposes
    a prefix for the output as well. Method after dspy 3.4.1, `dspy/teleprompt/copro_optimizer.py`.

    Args:
        params, engine, seed, check: as of `SGD`; what does not require grad stays.
        breadth: attempts per round, at least 2, by default 10; or `candidates`, by `SGD`'s name.
        depth: rounds for each parameter.
        temperature: as of `SGD`; 1.4 by default, as in the source.
    """

    rule = staticmethod(rules.none)
    needs_gradients = False
    needs_losses = True

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        breadth: int | None = None,
        depth: int = 3,
        **options: Unpack[Options],
    ) -> None:
        what = "candidates" if "candidates" in options else "breadth"
        if breadth is not None and what == "candidates":
            raise UsageError("COPRO: candidates is another name of breadth: give one of them")
        most = options.setdefault("candidates", 10 if breadth is None else breadth)
        whole(f"COPRO: {what}", most, 2)
        options.setdefault("temperature", 1.4)
        super().__init__(params, **options)
        whole("COPRO: depth", depth)
        self.depth = depth
        self._attempts: dict[str, list[Attempt]] = {name: [] for name in self.names}

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {**super().settings(), "depth": self.depth}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON."""
        attempts = {name: [list(a) for a in made] for name, made in self._attempts.items()}
        return {**super().state_dict(), "attempts": attempts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            StateError: it is no such state; the optimizer stays as it was.
        """
        made = stored(state, "attempts", {str: [(str, int | float | None)]}, {})
        super().load_state_dict(state)
        self._attempts = {
            n: [(text, loss) for text, loss in a] for n, a in self._by_name(made).items()
        }

    def step_with(self, gate: Gate | None) -> StepResult:
        """`step`, for a gate that evaluates and compares the states itself.

        Raises:
            UsageError: there is no gate: proposals are chosen by their scores.
        """
        if gate is None:
            raise UsageError("COPRO chooses by scores: step(closure), with closure() -> loss")
        turn = self._turn()
        old = {name: p.data for name, p in zip(self.names, self.params, strict=True)}
        result = super().step_with(gate)
        if turn is not None:
            name, number = turn
            made = dict(self._attempts[name] if number else [])
            if result.before is not None:
                made[old[name]] = result.before
            for candidate in result.candidates:
                if name in candidate.state and not candidate.unjudged:
                    made[candidate.state[name]] = candidate.loss
            self._attempts[name] = list(made.items())
        return result

    def _turn(self) -> tuple[str, int] | None:
        """The parameter whose turn it is, and its round."""
        names = [n for n, p in zip(self.names, self.params, strict=True) if p.requires_grad]
        if not names:
            return None
        number, index = divmod(self.steps, len(names))
        return names[index], number % self.depth

    async def propose(self, engine: Engine) -> list[Candidate]:
        """Draws states in which one parameter is another."""
        turn = self._turn()
        if turn is None:
            return []
        name, number = turn
        param = self.params[self.names.index(name)]
        texts = self._shown(name) if number else {}
        fixed = {} if texts else {"instruction": param.data}
        self._check_fits(engine)
        return await self.drawn(
            (i, [name], self._one(engine, name, param, fixed, texts, i))
            for i in range(self.candidates - (number == 0))
        )

    def _check_fits(self, engine: Engine) -> None:
        """Before the first round is paid for, the largest prompt of all rounds."""
        rounds = [{"instruction": p.data} for p in self.params if p.requires_grad]
        if self.depth > 1:
            later: dict[str, str] = {}
            for i in range(1, self.candidates + 1):
                later |= {f"attempt-{i}": "-" * LEAST, f"attempt-{i}-loss": _UNKNOWN}
            rounds.append(later)
        for blocks in rounds:
            check_fits(engine, FORM, partial(propose, blocks))

    async def _one(
        self,
        engine: Engine,
        name: str,
        param: TextVariable,
        fixed: Mapping[str, str],
        texts: Mapping[Key, str],
        candidate: int,
    ) -> Drawn:

        def prompt(texts: Mapping[Key, str], how: str) -> list[Message]:
            return propose({**fixed, **{key[0]: text for key, text in texts.items()}}, how)

        return await self.rewritten(engine, FORM, name, param, candidate, texts, prompt)

    def in_vain(self, name: str, candidate: int) -> list[str]:
        """The parameter's attempts, but for the one in place."""
        now = self.params[self.names.index(name)].data
        return [text for text, _ in self._attempts[name] if text != now]

    def _shown(self, name: str) -> dict[Key, str]:
        """The best attempts, from worst to best."""
        best = sorted(self._attempts[name], key=_loss)[: self.candidates]
        texts: dict[Key, str] = {}
        for i, (text, loss) in enumerate(reversed(best), 1):
            texts[f"attempt-{i}",] = text
            texts[f"attempt-{i}-loss",] = _UNKNOWN if loss is None else f"{loss:g}"
        return texts


_UNKNOWN = "unknown: samples failed"


def _loss(attempt: Attempt) -> float:
    return float("inf") if attempt[1] is None else attempt[1]
