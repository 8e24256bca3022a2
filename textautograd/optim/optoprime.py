"""`OptoPrime`: one call sees the whole recorded graph and changes all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from textautograd import rules
from textautograd.checking import whole
from textautograd.engines.base import Engine, Message
from textautograd.errors import UsageError
from textautograd.gradient import Feedback, Gradient, listed
from textautograd.optim.gate import Gate
from textautograd.optim.optimizer import Candidate, StepResult, stored
from textautograd.optim.rewriting import (
    Drawn,
    Key,
    Options,
    Parts,
    Rewriting,
    as_constraints,
    data_of,
    last,
)
from textautograd.prompts.form import Form
from textautograd.prompts.graph import COMPLETE, MADE, Call, graph
from textautograd.prompts.quote import as_tags, plainly
from textautograd.prompts.summarise import check_fits
from textautograd.traced import Step, Traced, steps_of
from textautograd.variable import TextVariable

Past = tuple[dict[str, str], str]


class OptoPrime(Rewriting):
    """OptoPrime (Trace, arXiv 2406.16218), with `SGD`'s interface.

    Backward makes no call: `loss.backward(rule=optimizer.rule)` carries the feedback and the
    records of the calls it came through to the parameters. One call per candidate then sees all of
    it (calls, values, parameters, feedback; of all samples with feedback, what they share once) and
    replies with its reasoning and a text, or "no change", for each parameter. The parameters of a
    reply are changed together or not at all; rejected texts are shown as tried. A reply is refused,
    and asked for once more, where `check` objects to one of its texts, where its texts were
    rejected together, and where it changes nothing; the source has none of that, nor a gate. A loss
    of 0 gives no feedback, so samples that are right are not shown; some of the source's examples
    show them, as correct. Method after trace-opt 0.1.3.8, `opto/optimizers/optoprime.py`.

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
        whole("OptoPrime: memory_size", memory_size, 0)
        self.constraints = as_constraints("OptoPrime", constraints)
        self.memory_size = memory_size
        self._memory: list[Past] = []
        blocks = as_tags(tuple([f"variable-{name}" for name in self.names]))
        self._blocks = dict(zip(self.names, blocks, strict=True))

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
        memory = stored(state, "memory", [({str: str}, str)], [])
        super().load_state_dict(state)
        self._memory = last([(dict(texts), said) for texts, said in memory], self.memory_size)

    def step_with(self, gate: Gate | None) -> StepResult:
        """`step`, for a gate that evaluates and compares the states itself."""
        live = self.live()
        used = {name: param.data for name, param in live}
        said = listed(list(dict.fromkeys([f.text for _, p in live for f in _distinct(p.grad)])))
        result = super().step_with(gate)
        if used:
            self._memory = last([*self._memory, (used, said)], self.memory_size)
        return result

    def check_rule(self, rule: rules.Rule) -> None:
        """Raises `UsageError` for a rule that leaves no graph."""
        while inner := getattr(rule, "func", None) or getattr(rule, "rule", None):
            rule = inner  # of a partial, or made blind
        if rule in (rules.none, rules.semantic, rules.textgrad):
            raise UsageError(f"{_NO_GRAPH}, and the rule {rule.__name__} leaves none: {_WAY_OUT}")

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
        seen = Graph([(self._blocks[name], param) for name, param in live])
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
            for name, block in self._blocks.items():
                if name in values:
                    texts[f"past-{i}-{block}", name] = values[name]
            texts[f"past-{i}-feedback", "feedback"] = said
        for name, _ in live:
            for i, text in enumerate(self.tried(name)[-4:], 1):
                texts[f"tried-{i}-{self._blocks[name]}", name] = text

        def changed(parts: Parts) -> dict[str, str]:
            return {n: new for n, p in live if (new := parts[n]) is not None and new != p.data}

        def objected(parts: Parts) -> str | None:
            new = changed(parts)
            if not new:
                return "no variable changes, and there is feedback"
            for name in new:
                if why := objected_to(name, new, []):
                    return f"{name}: {why}"
            for state in self._rejected:  # one that failed in other company may do well in this
                if state.keys() == new.keys():
                    again = [objected_to(name, new, [state[name]]) for name in new]
                    if all(again):
                        return again[0]
            return None

        def objected_to(name: str, new: Mapping[str, str], tried: Sequence[str]) -> str | None:
            param = self.params[self.names.index(name)]
            data = data_of(param.grad) if param.grad else []
            return self.objection(new[name], param.data, tried, data)

        parts = await self.ask(
            engine,
            form,
            candidate,
            "",
            texts,
            lambda texts, how: self._messages(seen, texts, how),
            objected,
            differ=not all(self.is_new(name) for name, _ in live),
        )
        return parts if isinstance(parts, Exception) else changed(parts)

    def _messages(self, seen: Graph, texts: Mapping[Key, str], how: str) -> list[Message]:
        told = "\n".join(seen.documentation)
        blocks = {"documentation": told} if told else {}
        blocks |= {**seen.variables, **{key[0]: text for key, text in texts.items()}}
        return graph(seen.calls, blocks, self.constraints, how)


class Graph:
    """What the gradients of parameters, given by their blocks' names, recorded: the calls, what
    their operations do, and texts by block. A result has a block of its own, whatever others say;
    an input that is none is shown once, however often it was used."""

    def __init__(self, live: Sequence[tuple[str, TextVariable]]) -> None:
        self.variables = {name: param.data for name, param in live}
        self.calls: list[Call] = []
        self.documentation: dict[str, None] = {}
        self.texts: dict[Key, str] = {}
        self._given: dict[tuple[str, ...], str] = {}
        self._values = 0
        self._said: dict[str, set[str]] = {}
        first: dict[Step, None] = {}
        # what reached an input, by name; there may be more than one: it is made of all of them
        sources: dict[tuple[Step, str], dict[str, str]] = {}
        for name, param in live:
            for found in _distinct(param.grad):
                if isinstance(found, Traced):
                    first[found.step] = None
                    sources.setdefault((found.step, found.slot), {})[name] = param.data
                else:
                    self._say(name, found.text)
        for step in steps_of(first):
            inputs = [
                (slot, self._input(text, sources.get((step, slot), {})))
                for slot, text in step.inputs.items()
            ]
            if step.output_format is not None:
                inputs.append(("output_format", self._input(step.output_format, {})))
            result = self._value(step.output)
            slots, values = zip(*inputs, strict=True)
            self.calls.append((result, step.operation, slots, values))
            task = " ".join(step.task.split()) or COMPLETE
            self.documentation[f"{plainly(step.operation)}: {task}"] = None
            for text in step.feedback:
                self._say(result, text)
            for later, slot in step.uses:
                sources.setdefault((later, slot), {})[result] = step.output

    def _input(self, text: str, sources: Mapping[str, str]) -> str:
        match list(sources.items()):
            case [(name, source)] if source == text:
                return name
        key = (text, *sources)
        if key not in self._given:
            name = self._given[key] = self._value(text)
            if sources:
                self.calls.append((name, "made", (), tuple(sources)))
                self.documentation[MADE] = None
        return self._given[key]

    def _value(self, text: str) -> str:
        self._values += 1
        name = f"value-{self._values}"
        self.texts[name, name] = text
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
            raise UsageError(f"{_NO_GRAPH}, and the gradient of {name} holds none: {_WAY_OUT}")


_NO_GRAPH = "OptoPrime reads the graph"
_WAY_OUT = (
    "leave out fit's rule=, or take optimizer.rule; without fit, call "
    "loss.backward(rule=optimizer.rule)"
)
