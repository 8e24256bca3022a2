"""`SGD`: semantic gradient descent."""

from __future__ import annotations

import hashlib
import math
import random
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from textautograd import dispatch
from textautograd.calling import mismatch
from textautograd.data.sampling import check_int
from textautograd.engines.base import Engine, Message, Request
from textautograd.errors import EngineError, ReplyError, RunError, UsageError
from textautograd.gradient import Feedback, Gradient
from textautograd.identity import identity
from textautograd.optim.check import Check, is_long, objection
from textautograd.optim.optimizer import Candidate, Optimizer
from textautograd.prompts.form import fill_in
from textautograd.prompts.optimize import FORM, optimize
from textautograd.prompts.summarise import check_fits, fitted
from textautograd.variable import TextVariable

Prompt = Callable[[str, Sequence[Feedback], Sequence[str], str], list[Message]]
"""(instruction, examples, rewrites tried in vain, how to reply) → messages."""


class SGD(Optimizer):
    """Semantic gradient descent (section 3 of the paper; `torch.optim.SGD` by its interface).

    One call per candidate rewrites each parameter that has a gradient, all of them concurrently,
    from up to `examples` of its feedbacks, drawn at random. Only wrong samples leave feedback.

    Args:
        params: the parameters to rewrite.
        engine: an engine or its name, for the rewriting; by default the context's.
        examples: feedbacks shown per rewrite.
        candidates: new states to draw. One is drawn at temperature 0, unless a rewrite of the same
            text has been rejected or the same request brought none that could be used; several at
            `temperature`.
        seed: of every random choice.
        temperature: of the draws that should differ.
        prompt: makes the messages of a rewriting call; see `textautograd.prompts.optimize`.
        check: `(new, old, tried, data) -> str | None` says why a rewrite cannot be used, if so; the
            model is told and asked once more. `tried` are rewrites that were rejected, `data` the
            texts that it should not copy. A check of one's own can call `optim.objection`, the
            default, or leave it out.
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
        super().__init__(params, engine=engine, candidates=candidates, seed=seed)
        check_int("SGD", "examples", examples, at_least=1)
        if (
            isinstance(temperature, bool)
            or not isinstance(temperature, (int, float))
            or not 0 < temperature < math.inf
        ):
            raise UsageError(
                f"SGD: temperature must be a number above 0, as draws should differ; not "
                f"{temperature!r}"
            )
        for what, function, arguments in (
            ("prompt", prompt, {"instruction": "", "examples": [], "tried": [], "how": ""}),
            ("check", check, {"new": "", "old": "", "tried": [], "data": []}),
        ):
            if not callable(function):
                raise UsageError(f"SGD: {what} must be a function, not {function!r}")
            if why := mismatch(function, *arguments.values()):
                raise UsageError(f"SGD: {what} is called as ({', '.join(arguments)}), but {why}")
        self.examples = examples
        self.temperature = temperature
        self.prompt = prompt
        self.check = check

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {
            **super().settings(),
            "examples": self.examples,
            "temperature": self.temperature,
            "prompt": identity(self.prompt),
            "check": identity(self.check),
        }

    async def propose(self, engine: Engine) -> list[Candidate]:
        """Draws `candidates` whole new states."""
        live = [(n, p) for n, p in zip(self.names, self.params, strict=True) if p.grad]
        for _, param in live:  # before any of them is paid for
            check_fits(engine, FORM, lambda how: self._messages(param.data, [], [], how))  # noqa: B023
        draws = [
            (i, name, dispatch.start(self._rewrite(engine, name, param, i)))
            for i in range(self.candidates)
            for name, param in live
        ]
        await dispatch.arrived([pending for _, _, pending in draws])
        candidates = [Candidate({}) for _ in range(self.candidates)]
        for i, name, pending in draws:
            text = dispatch.wait(pending)
            if isinstance(text, Exception):
                candidates[i].problems[name] = str(text)
            else:
                candidates[i].state[name] = text
        failures = [dispatch.wait(p) for _, _, p in draws]
        if failures and all(isinstance(f, EngineError) for f in failures):
            raise failures[0]
        return _distinct(candidates)

    async def _rewrite(
        self, engine: Engine, name: str, param: TextVariable, candidate: int
    ) -> str | Exception:
        gradient = param.grad
        assert gradient is not None
        old, tried = param.data, self._tried[name]
        examples, rejected = self._examples(gradient, name, candidate), tried[-4:]
        data = _data_of(gradient)
        asked = _digest(name, self._messages(old, examples, rejected, ""))
        differ = self.candidates > 1 or bool(tried) or asked in self._refused
        request = partial(
            Request,
            purpose="optimize",
            temperature=self.temperature if differ else 0.0,
            sample=self.seed * 10**6 + self.steps * 10**3 + candidate if differ else 0,
        )

        def prompt(texts: Mapping[Key, str], how: str) -> list[Message]:
            return self._messages(
                old,
                [_shown(example, i, texts) for i, example in enumerate(examples)],
                [texts["tried", i, "instruction"] for i in range(len(rejected))],
                how,
            )

        try:
            texts = await fitted(engine, FORM, request, _texts(examples, rejected), prompt)
            parts = await fill_in(
                engine,
                FORM,
                lambda how: prompt(texts, how),
                request,
                lambda parts: self.check(parts["prompt"] or "", old, tried, data),
            )
        except RunError:
            raise
        except ReplyError as error:
            if not differ:
                self._refused.add(asked)  # the same call would bring the same reply
            return error
        except EngineError as error:
            return error
        return parts["prompt"] or old

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
        rng = random.Random(f"{self.seed} {self.steps} {name}")
        for _ in range(candidate + 1):
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


Key = tuple[Any, ...]


def _texts(examples: Sequence[Feedback], tried: Sequence[str]) -> dict[Key, str]:
    """All that a rewriting prompt shows besides the instruction: it may be summarised."""
    texts: dict[Key, str] = {}
    for i, example in enumerate(examples):
        for name, text in (example.inputs or {}).items():
            texts["input", i, name] = text
        if example.output is not None:
            texts[i, "output"] = example.output
        texts[i, "feedback"] = example.text
    return texts | {("tried", i, "instruction"): text for i, text in enumerate(tried)}


def _shown(example: Feedback, i: int, texts: Mapping[Key, str]) -> Feedback:
    """An example with these texts in place of its own."""
    inputs = example.inputs and {name: texts["input", i, name] for name in example.inputs}
    return Feedback(texts[i, "feedback"], inputs=inputs, output=texts.get((i, "output")))


def _data_of(gradient: Gradient) -> list[str]:
    """The inputs and long outputs of the evidence: what a rewrite must not copy."""
    found: dict[str, None] = {}
    for feedback in islice(gradient, 1000):
        for text in (feedback.inputs or {}).values():
            found[text] = None
        if feedback.output and is_long(feedback.output):
            found[feedback.output] = None
    return list(found)


def _digest(name: str, messages: Sequence[Message]) -> str:
    return hashlib.sha256(f"{name} {messages}".encode("utf-8", "backslashreplace")).hexdigest()


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        if not candidate.state or all(candidate.state != other.state for other in kept):
            kept.append(candidate)
    return kept
