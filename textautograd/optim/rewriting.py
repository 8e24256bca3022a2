"""`Rewriting`: what the optimizers share that ask a model for rewrites."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypedDict

from textautograd import dispatch
from textautograd.calling import unusable
from textautograd.checking import misfit, quantity
from textautograd.engines.base import Engine, Message, Request
from textautograd.errors import EngineError, ReplyError, RunError, UsageError
from textautograd.gradient import Feedback, Gradient
from textautograd.identity import identity
from textautograd.optim.check import IN_VAIN, Check, is_long, objection
from textautograd.optim.optimizer import Candidate, Optimizer
from textautograd.prompts.form import Form, fill_in
from textautograd.prompts.summarise import check_fits, fitted
from textautograd.variable import TextVariable

Key = tuple[Any, ...]
Parts = Mapping[str, str | None]
Drawn = Mapping[str, str] | Exception
"""A draw's rewrites by parameter name, or why there are none."""
Prompt = Callable[[Mapping[Key, str], str], list[Message]]
"""(texts, how to reply) → messages."""


class Options(TypedDict, total=False):
    """The arguments that all of them take."""

    engine: Engine | str | None
    candidates: int
    seed: int
    temperature: float
    check: Check


class Rewriting(Optimizer):
    """Base of optimizers that ask a model for rewrites; see `SGD` for the arguments."""

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        engine: Engine | str | None = None,
        candidates: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        check: Check = objection,
    ) -> None:
        super().__init__(params, engine=engine, candidates=candidates, seed=seed)
        kind = type(self).__name__
        if not quantity(temperature):
            raise UsageError(
                f"{kind}: temperature must be a number above 0, as draws should differ; not "
                f"{temperature!r}"
            )
        check_called(kind, "check", check, {"new": "", "old": "", "tried": [], "data": []})
        self.temperature = temperature
        self.check = check

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {
            **super().settings(),
            "temperature": self.temperature,
            "check": identity(self.check),
        }

    def objection(
        self, new: str, old: str, tried: Sequence[str], data: Sequence[str]
    ) -> str | None:
        """What `check` says.

        Raises:
            UsageError: it is neither a text nor `None`.
        """
        why: Any = self.check(new, old, tried, data)
        if why is None or isinstance(why, str):
            return why
        raise UsageError(
            f"{type(self).__name__}: check says why a rewrite cannot be used, as a str, or None; "
            f"it returned {why!r:.80}"
        )

    def live(self) -> list[tuple[str, TextVariable]]:
        """The parameters that have a gradient; without one, nothing is rewritten."""
        return [(n, p) for n, p in zip(self.names, self.params, strict=True) if p.grad]

    def in_vain(self, name: str, candidate: int) -> list[str]:
        """What a candidate's rewrite of a parameter must not be: what was rejected while nothing
        else changed, as one that failed in other company may do well yet. One of several
        parameters, each in turn, must not be what was rejected in any, so that no whole state comes
        twice."""
        live = [name for name, _ in self.live()]
        if len(live) > 1 and name == live[(self.steps + candidate) % len(live)]:
            return self.tried(name)
        return [state[name] for state in self._rejected if list(state) == [name]]

    async def each(
        self,
        engine: Engine,
        form: Form,
        bare: Callable[[str, TextVariable, str], list[Message]],
        rewrite: Callable[[Engine, str, TextVariable, int], Coroutine[Any, Any, Drawn]],
    ) -> list[Candidate]:
        """Candidates in which each live parameter is rewritten by a call of its own.

        `bare(name, parameter, how)` is its prompt without what could be summarised.
        """
        live = self.live()
        for name, param in live:  # before any of them is paid for
            check_fits(engine, form, partial(bare, name, param))
        candidates = await self.drawn(
            (i, [name], rewrite(engine, name, param, i))
            for i in range(self.candidates)
            for name, param in live
        )
        for candidate in candidates:  # what is left of one may have been tried as a whole
            if candidate.problems and candidate.state in self._rejected:
                candidate.problems |= dict.fromkeys(candidate.state, IN_VAIN)
                candidate.state = {}
        return candidates

    async def drawn(
        self, draws: Iterable[tuple[int, Sequence[str], Coroutine[Any, Any, Drawn]]]
    ) -> list[Candidate]:
        """Candidates from draws (candidate, parameters, rewriting), which run concurrently.

        Raises:
            EngineError: the first one's, if no draw brought a reply.
        """
        started = [(i, names, dispatch.start(draw)) for i, names, draw in draws]
        found = await dispatch.arrived([pending for _, _, pending in started])
        candidates = [Candidate({}) for _ in range(1 + max((i for i, *_ in started), default=-1))]
        for (i, names, _), rewrites in zip(started, found, strict=True):
            if isinstance(rewrites, Exception):
                candidates[i].problems |= dict.fromkeys(names, str(rewrites))
            else:
                candidates[i].state |= rewrites
        if found and all(isinstance(each, EngineError) for each in found):
            raise found[0]
        return _distinct(candidates)

    async def rewritten(
        self,
        engine: Engine,
        form: Form,
        name: str,
        param: TextVariable,
        candidate: int,
        texts: Mapping[Key, str],
        prompt: Prompt,
    ) -> Drawn:
        """A parameter's new text, the one part of `form`."""
        (part,), old = form.names, param.data
        in_vain = self.in_vain(name, candidate)
        data = data_of(param.grad) if param.grad else []
        parts = await self.ask(
            engine,
            form,
            candidate,
            name,
            texts,
            prompt,
            lambda parts: self.objection(parts[part] or "", old, in_vain, data),
            differ=not self.is_new(name),
        )
        return parts if isinstance(parts, Exception) else {name: parts[part] or old}

    async def ask(
        self,
        engine: Engine,
        form: Form,
        candidate: int,
        about: str,
        texts: Mapping[Key, str],
        prompt: Prompt,
        check: Callable[[Parts], str | None],
        *,
        differ: bool,
    ) -> Parts | Exception:
        """The parts of one reply, or why there are none.

        One draw is at temperature 0, unless it should `differ` from an earlier one or the same
        prompt `about` the same brought nothing usable before; several are at `temperature`, and so
        is what is asked once more: a model that is sure of its reply would give it again.
        """
        key = _digest(f"{about} {prompt(texts, '')}")
        differ = differ or self.candidates > 1 or key in self._refused
        surest = partial(Request, purpose="optimize", temperature=0.0)
        drawn = partial(
            Request,
            purpose="optimize",
            temperature=self.temperature,
            sample=self.seed * 10**6 + self.steps * 10**3 + candidate,
        )
        request = drawn if differ else surest

        def written(how: str) -> list[Message]:
            return prompt(short, how)

        try:
            short = await fitted(engine, form, request, texts, prompt)
            return await fill_in(engine, form, written, request, check, again=drawn)
        except RunError:
            raise
        except ReplyError as error:
            if not differ:
                self._refused.add(key)  # the same call would bring the same reply
            return error
        except EngineError as error:
            return error


def check_called(kind: str, what: str, function: Any, arguments: Mapping[str, Any]) -> None:
    """Raises `UsageError` unless `function` can be called with these arguments."""
    if not callable(function):
        raise UsageError(f"{kind}: {what} must be a function, not {function!r}")
    if why := unusable(function, *arguments.values()):
        raise UsageError(f"{kind}: {what} is called as ({', '.join(arguments)}), but {why}")


def last(kept: Sequence[Any], count: int) -> list[Any]:
    """The `count` newest."""
    return list(kept[-count:]) if count else []


def texts_of(examples: Sequence[Feedback], tried: Sequence[str]) -> dict[Key, str]:
    """All that a rewriting prompt shows besides the instruction: it may be summarised."""
    texts: dict[Key, str] = {}
    for i, example in enumerate(examples):
        for name, text in (example.inputs or {}).items():
            texts["input", i, name] = text
        if example.output is not None:
            texts[i, "output"] = example.output
        texts[i, "feedback"] = example.text
    return texts | {("tried", i, "instruction"): text for i, text in enumerate(tried)}


def shown(example: Feedback, i: int, texts: Mapping[Key, str]) -> Feedback:
    """An example with these texts in place of its own."""
    inputs = example.inputs and {name: texts["input", i, name] for name in example.inputs}
    return Feedback(texts[i, "feedback"], inputs=inputs, output=texts.get((i, "output")))


def data_of(gradient: Gradient) -> list[str]:
    """The inputs and long outputs of the evidence: what a rewrite must not copy."""
    found: dict[str, None] = {}
    for feedback in islice(gradient, 1000):
        for text in (feedback.inputs or {}).values():
            found[text] = None
        if feedback.output and is_long(feedback.output):
            found[feedback.output] = None
    return list(found)


def _digest(asked: str) -> str:
    return hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        if not candidate.state or all(candidate.state != other.state for other in kept):
            kept.append(candidate)
    return kept


def as_constraints(kind: str, constraints: Sequence[str]) -> list[str]:
    """A list of sentences, or `UsageError`."""
    if not isinstance(constraints, (list, tuple)) or misfit(list(constraints), [str]):
        raise UsageError(f"{kind}: constraints are a list of str, not {constraints!r:.80}")
    return list(constraints)
