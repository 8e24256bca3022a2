"""`SGD`: semantic gradient descent."""

from __future__ import annotations

import random
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from textautograd.checking import whole
from textautograd.engines.base import Engine, Message
from textautograd.errors import UsageError
from textautograd.gradient import Feedback, Gradient
from textautograd.identity import identity
from textautograd.optim.check import Check, objection
from textautograd.optim.optimizer import Candidate
from textautograd.optim.rewriting import (
    Drawn,
    Key,
    Rewriting,
    check_called,
    shown,
    texts_of,
)
from textautograd.prompts.optimize import FORM, optimize
from textautograd.variable import TextVariable

Prompt = Callable[[str, Sequence[Feedback], Sequence[str], str], list[Message]]
"""(instruction, examples, rewrites tried in vain, how to reply) → messages."""


class SGD(Rewriting):
    """Semantic gradient descent (section 3 of the paper; `torch.optim.SGD` by its interface).

    One call per candidate rewrites each parameter that has a gradient, all of them concurrently,
    from up to `examples` of its feedbacks, drawn at random. Only wrong samples leave feedback.

    Args:
        params: the parameters to rewrite.
        engine: an engine or its name, for the rewriting; by default the context's.
        examples: feedbacks shown per rewrite.
        candidates: new states to draw. One is drawn at temperature 0, unless a rewrite of the same
            text has come to nothing or the same request brought none that could be used; several,
            and what is asked once more, at `temperature`.
        seed: of every random choice.
        temperature: of the draws that should differ.
        prompt: makes the messages of a rewriting call; see `textautograd.prompts.optimize`.
        check: `(new, old, tried, data) -> str | None` says why a rewrite cannot be used, if so; the
            model is told and asked once more. `tried` are rewrites of the same text that were
            rejected and should not come again, `data` the texts that it should not copy. A check of
            one's own can call `optim.objection`, the default, or leave it out.
    """

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        engine: Engine | str | None = None,
        examples: int = 2,
        candidates: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        prompt: Prompt = optimize,
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
        whole("SGD: examples", examples)
        arguments = {"instruction": "", "examples": [], "tried": [], "how": ""}
        check_called("SGD", "prompt", prompt, arguments)
        self.examples = examples
        self.prompt = prompt

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {
            **super().settings(),
            "examples": self.examples,
            "prompt": identity(self.prompt),
        }

    async def propose(self, engine: Engine) -> list[Candidate]:
        """Draws `candidates` whole new states."""
        return await self.each(
            engine,
            FORM,
            lambda name, param, how: self._messages(param.data, [], [], how),
            self._rewrite,
        )

    async def _rewrite(
        self, engine: Engine, name: str, param: TextVariable, candidate: int
    ) -> Drawn:
        assert param.grad is not None
        old, rejected = param.data, self.tried(name)[-4:]
        examples = self._examples(param.grad, name, candidate)

        def prompt(texts: Mapping[Key, str], how: str) -> list[Message]:
            return self._messages(
                old,
                [shown(example, i, texts) for i, example in enumerate(examples)],
                [texts["tried", i, "instruction"] for i in range(len(rejected))],
                how,
            )

        texts = texts_of(examples, rejected)
        return await self.rewritten(engine, FORM, name, param, candidate, texts, prompt)

    def _messages(
        self, old: str, examples: Sequence[Feedback], tried: Sequence[str], how: str
    ) -> list[Message]:
        messages: Any = self.prompt(old, examples, tried, how)
        if isinstance(messages, (list, tuple)) and messages and all(map(_is_message, messages)):
            return list(messages)
        raise UsageError(
            "SGD's prompt must return messages, [{'role': 'user', 'content': 'a text'}]; it "
            f"returned {reprlib.repr(messages)}"
        )

    def _examples(self, gradient: Gradient, name: str, candidate: int) -> list[Feedback]:
        """Each candidate's own evidence: the next draw from one stream."""
        rng = random.Random(f"{self.seed} {self.steps} {name}".encode(errors="surrogatepass"))
        for _ in range(candidate + 1):
            # More than are shown, as some may say the same.
            order = rng.sample(range(len(gradient)), min(len(gradient), 8 * self.examples))
        chosen: list[Feedback] = []
        for index in order:
            if gradient[index] not in chosen:
                chosen.append(gradient[index])
            if len(chosen) == self.examples:
                break
        return chosen


def _is_message(message: Any) -> bool:
    match message:
        case {"role": str(), "content": str()}:
            return True
    return False
