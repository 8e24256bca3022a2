"""`OptoPrime`: one call sees the whole recorded graph and changes all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textautograd import rules
from textautograd.data.sampling import check_int
from textautograd.engines.base import Engine, Message
from textautograd.errors import StateError, UsageError
from textautograd.gradient import Gradient, listed
from textautograd.optim.check import Check, objection
from textautograd.optim.gate import Gate
from textautograd.optim.optimizer import Candidate, StepResult
from textautograd.optim.rewriting import Drawn, Key, Parts, Rewriting, as_constraints, data_of
from textautograd.prompts.form import Form
from textautograd.prompts.graph import graph
from textautograd.prompts.quote import tags
from textautograd.prompts.summarise import check_fits
from textautograd.traced import Step, Traced, steps_of
from textautograd.variable import TextVariable

Past = tuple[dict[str, str], str]


class OptoPrime(Rewriting):
    """OptoPrime (Trace, arXiv 2406.16218), with `SGD`'s interface.

    Backward makes no call: `loss.backward(rule=optimizer.rule)` carries the feedback and the
    records of the calls it came through to the parameters. One call per candidate then sees all of
    it (calls, values, parameters, feedback; of all samples in the batch, what they share once) and
    replies with its reasoning and a text, or "no change", for each parameter. The parameters of a
    reply are changed together or not at all. Method after trace-opt 0.1.3.8,
    `opto/optimizers/optoprime.py`.

    Args:
        params, engine, candidates, seed, temperature, check: as of `SGD`.
        constraints: sentences that the parameters should satisfy.
        memory_size: earlier steps whose parameters and feedback are shown again.
    """

    rule = staticmethod(rules.trace)

    def __init__(
        self,
        params: Iterable[TextVariable],
        *,
        engine: Engine | str | None = None,
        candidates: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        constraints: Sequence[str] = (),
        memory_size: int = 0,
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
        check_int("OptoPrime", "memory_size", memory_size, at_least=0)
        self.constraints = as_constraints("OptoPrime", constraints)
        self.memory_size = memory_size
        self._memory: list[Past] = []

    def settings(self) -> dict[str, Any]:
        """What distinguishes this optimizer's runs from another's: JSON."""
        return {
            **super().settings(),
            "constraints": self.constraints,
            "memory_size": self.memory_size,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: JSON."""
        return {**super().state_dict(), "memory": [[dict(v), said] for v, said in self._memory]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            StateError: it is no such state; the optimizer stays as it was.
        """
        memory: list[Past] = []
        kept = state.get("memory", []) if isinstance(state, dict) else []
        for item in kept if isinstance(kept, list) else [None]:
            match item:
                case [dict(texts), str(said)] if all(isinstance(t, str) for t in texts.values()):
                    memory.append((dict(texts), said))
                case _:
                    raise StateError("OptoPrime's 'memory' is a list of [{name: text}, feedback]")
        super().load_state_dict(state)
        self._memory = memory

    def step_with(self, gate: Gate | None) -> StepResult:
        """`step`, for a gate that evaluates and compares the states itself."""
        live = self.live()
        used = {name: param.data for name, param in live}
        said = listed(list(dict.fromkeys([f.text for _, p in live for f in _feedback(p.grad)])))
        result = super().step_with(gate)
        if used and self.memory_size:
            self._memory = [*self._memory, (used, said)][-self.memory_size :]
        return result

    async def propose(self, engine: Engine) -> list[Candidate]:
        """Draws `candidates` whole new states.

        Raises:
            UsageError: the gradients hold no graph.
        """
        live = self.live()
        if not live:
            return [Candidate({}) for _ in range(self.candidates)]
        for name, param in live:
            _check_traced(name, param)
        seen = Graph(live)
        names = [name for name, _ in live]
        reasoning = "reasoning"
        while reasoning in names:
            reasoning = f"_{reasoning}"
        form = Form([reasoning, *names], nullable=True)
        empty = dict.fromkeys(seen.texts, "")
        check_fits(engine, form, lambda how: self._messages(seen, empty, [], how))
        return await self.drawn(
            (i, names, self._suggest(engine, form, seen, live, i)) for i in range(self.candidates)
        )

    async def _suggest(
        self,
        engine: Engine,
        form: Form,
        seen: Graph,
        live: Sequence[tuple[str, TextVariable]],
        candidate: int,
    ) -> Drawn:
        texts: dict[Key, str] = dict(seen.texts)
        for i, (values, said) in enumerate(self._memory):
            texts |= {("past", i, name): text for name, text in values.items()}
            texts["past feedback", i, "feedback"] = said

        def prompt(texts: Mapping[Key, str], how: str) -> list[Message]:
            past = [
                ({n: texts["past", i, n] for n in values}, texts["past feedback", i, "feedback"])
                for i, (values, _) in enumerate(self._memory)
            ]
            return self._messages(seen, texts, past, how)

        def changed(parts: Parts) -> dict[str, str]:
            return {n: new for n, p in live if (new := parts[n]) is not None and new != p.data}

        def objected(parts: Parts) -> str | None:
            new = changed(parts)
            for name, param in live:
                data = data_of(param.grad) if param.grad else []
                tried = self._tried[name] if len(new) == 1 else []
                if name in new and (why := self.check(new[name], param.data, tried, data)):
                    return f"{name}: {why}"
            return None

        parts = await self.ask(
            engine,
            form,
            candidate,
            f"{prompt(texts, '')}",
            texts,
            prompt,
            objected,
            differ=any(self._tried.values()),
        )
        return parts if isinstance(parts, Exception) else changed(parts)

    def _messages(
        self, seen: Graph, texts: Mapping[Key, str], past: Sequence[Past], how: str
    ) -> list[Message]:
        values = {key[1]: text for key, text in texts.items() if key[0] == "value"}
        feedback = {key[1]: text for key, text in texts.items() if key[0] == "feedback"}
        return graph(seen.code, seen.variables, self.constraints, values, feedback, past, how)


class Graph:
    """What the parameters' gradients recorded: lines of code, and each text once, by name."""

    def __init__(self, live: Sequence[tuple[str, TextVariable]]) -> None:
        shown = tags([f"variable-{name}" for name, _ in live])
        own = {name: shown[f"variable-{name}"] for name, _ in live}
        self.variables = {own[name]: param.data for name, param in live}
        self.code: list[str] = []
        self.texts: dict[Key, str] = {}
        self._names: dict[str, str] = {}
        used: dict[tuple[Step, str], str] = {}
        first: dict[Step, None] = {}
        for name, param in live:
            for found in _distinct(param.grad):
                if isinstance(found, Traced):
                    used[found.step, found.slot] = own[name]
                    first[found.step] = None
                else:
                    self._say(own[name], found.text)
        for step in steps_of(first):
            inputs = ", ".join(
                f"{slot}={used.get((step, slot)) or self._value(text)}"
                for slot, text in step.inputs.items()
            )
            does = f"  # {' '.join(step.task.split())}" if step.task else ""
            result = self._value(step.output)
            self.code.append(f"{result} = {step.operation}({inputs}){does}")
            for text in step.feedback:
                self._say(result, text)

    def _value(self, text: str) -> str:
        if text not in self._names:
            name = self._names[text] = f"value-{len(self._names) + 1}"
            self.texts["value", name] = text
        return self._names[text]

    def _say(self, about: str, text: str) -> None:
        number = sum(key[0] == "feedback" and key[2] == about for key in self.texts)
        name = f"feedback-{number + 1}-on-{about}"
        if text not in [t for k, t in self.texts.items() if k[0] == "feedback" and k[2] == about]:
            self.texts["feedback", name, about] = text


def _distinct(gradient: Gradient | None) -> list[Any]:
    return [] if gradient is None else list(gradient.distinct())


def _feedback(gradient: Gradient | None) -> list[Any]:
    return _distinct(gradient)


def _check_traced(name: str, param: TextVariable) -> None:
    """Feedback without a graph is right only where a loss read the parameter itself."""
    for found in _distinct(param.grad):
        if not isinstance(found, Traced) and (found.inputs or found.output != param.data):
            raise UsageError(
                f"OptoPrime reads the graph, and the gradient of {name} holds none: call "
                "loss.backward(rule=optimizer.rule)"
            )
