"""`OptoPrime`: one call sees the whole recorded graph and changes all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from textautograd import rules
from textautograd.data.sampling import check_int
from textautograd.engines.base import Engine, Message
from textautograd.errors import StateError, UsageError
from textautograd.gradient import Feedback, Gradient, listed
from textautograd.optim.gate import Gate
from textautograd.optim.optimizer import Candidate, StepResult
from textautograd.optim.rewriting import (
    Drawn,
    Key,
    Options,
    Parts,
    Rewriting,
    as_constraints,
    data_of,
)
from textautograd.prompts.form import Form
from textautograd.prompts.graph import COMPLETE, MADE, graph
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
    reply are changed together or not at all; rejected texts are shown as tried, and a reply that
    suggests nothing else is refused. Method after trace-opt 0.1.3.8,
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
        constraints: Sequence[str] = (),
        memory_size: int = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, **options)
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
        said = listed(list(dict.fromkeys([f.text for _, p in live for f in _distinct(p.grad)])))
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
        check_fits(engine, form, lambda how: self._messages(seen, empty, how))
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
        for i, (values, said) in enumerate(self._memory, 1):
            texts |= {(f"past-{i}-{name}", name): text for name, text in values.items()}
            texts[f"past-{i}-feedback", "feedback"] = said
        for name, _ in live:
            for i, text in enumerate(self._tried[name][-4:], 1):
                texts[f"tried-{i}-{name}", name] = text

        def changed(parts: Parts) -> dict[str, str]:
            return {n: new for n, p in live if (new := parts[n]) is not None and new != p.data}

        def objected(parts: Parts) -> str | None:
            new, again = changed(parts), []
            for name, param in live:
                if name in new:
                    data = data_of(param.grad) if param.grad else []
                    if why := self.check(new[name], param.data, [], data):
                        return f"{name}: {why}"
                    again.append(self.check(new[name], param.data, self._tried[name], data))
            if not new:
                return "no variable changes, and there is feedback"
            # one that failed in other company may do well in this
            return again[0] if all(again) else None

        parts = await self.ask(
            engine,
            form,
            candidate,
            "",
            texts,
            lambda texts, how: self._messages(seen, texts, how),
            objected,
            differ=any(self._tried[name] for name, _ in live),
        )
        return parts if isinstance(parts, Exception) else changed(parts)

    def _messages(self, seen: Graph, texts: Mapping[Key, str], how: str) -> list[Message]:
        blocks = {
            "code": "\n".join(seen.code),
            "documentation": "\n".join(seen.documentation),
            **seen.variables,
            **{key[0]: text for key, text in texts.items()},
        }
        return graph(blocks, self.constraints, how)


class Graph:
    """What the parameters' gradients recorded: lines of code, what its operations do, and each
    text once, by name; each only if it is there."""

    def __init__(self, live: Sequence[tuple[str, TextVariable]]) -> None:
        shown = tags([f"variable-{name}" for name, _ in live])
        own = {name: shown[f"variable-{name}"] for name, _ in live}
        self.variables = {own[name]: param.data for name, param in live}
        self.code: dict[str, None] = {}
        self.documentation: dict[str, None] = {}
        self.texts: dict[Key, str] = {}
        self._names: dict[str, str] = {}
        self._said: dict[str, set[str]] = {}
        first: dict[Step, None] = {}
        whole: dict[tuple[Step, str], str] = {}  # inputs that are a parameter
        made: dict[tuple[Step, str], list[str]] = {}  # inputs that were made of others, exactly
        for name, param in live:
            for found in _distinct(param.grad):
                if not isinstance(found, Traced):
                    self._say(own[name], found.text)
                    continue
                first[found.step] = None
                if found.step.inputs[found.slot] == param.data:
                    whole[found.step, found.slot] = own[name]
                else:
                    made.setdefault((found.step, found.slot), []).append(own[name])
        for step in steps_of(first):
            given = {
                slot: whole.get((step, slot)) or self._value(text, made.get((step, slot)))
                for slot, text in step.inputs.items()
            }
            if step.output_format is not None:
                given["output_format"] = self._value(step.output_format)
            inputs = ", ".join(f"{slot}={value}" for slot, value in given.items())
            result = self._value(step.output)
            self.code[f"{result} = {step.operation}({inputs})"] = None
            task = " ".join(step.task.split()) or COMPLETE
            self.documentation[f"{step.operation}: {task}"] = None
            for text in step.feedback:
                self._say(result, text)
            for later, slot in step.uses:
                if later.inputs[slot] != step.output:
                    made.setdefault((later, slot), []).append(result)

    def _value(self, text: str, made_of: Sequence[str] | None = None) -> str:
        if text not in self._names:
            name = self._names[text] = f"value-{len(self._names) + 1}"
            self.texts[name, name] = text
        name = self._names[text]
        if made_of:
            self.code[f"{name} = made({', '.join(dict.fromkeys(made_of))})"] = None
            self.documentation[MADE] = None
        return name

    def _say(self, about: str, text: str) -> None:
        said = self._said.setdefault(about, set())
        if text not in said:
            said.add(text)
            self.texts[f"feedback-{len(said)}-on-{about}", about] = text


def _distinct(gradient: Gradient | None) -> list[Feedback]:
    return [] if gradient is None else list(gradient.distinct())


def _check_traced(name: str, param: TextVariable) -> None:
    """Feedback on an instruction's call comes from another rule."""
    for found in _distinct(param.grad):
        if found.inputs is not None and not isinstance(found, Traced):
            raise UsageError(
                f"OptoPrime reads the graph, and the gradient of {name} holds none: call "
                "loss.backward(rule=optimizer.rule)"
            )
