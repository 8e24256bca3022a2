"""The free algebra through the public API: a gradient is a bag of paths, each counted once.

Programs are drawn at random, as for the walk alone; here their operations are those that users
write. A Function or a tool adds its edge to every feedback that passes, an exact operation passes
feedback on as it is. The oracle reads the program, never the tape.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_tape import Program, programs

import textautograd as ta
from textautograd import Feedback, Gradient, TextVariable
from textautograd.functional import call_tool

Path = tuple[str, ...]
KINDS = ("function", "tool", "cat", "fill", "select")


@dataclass(frozen=True)
class Agent:
    """A program with a kind of operation for each of its variables; `select` takes its last slot.
    Only functions and tools have a rule that can return `None`."""

    program: Program
    kinds: tuple[str, ...]

    def passes(self, i: int, slot: int) -> bool:
        """Whether a gradient goes from variable i into this slot."""
        if self.kinds[i] in ("function", "tool"):
            return (i, slot) not in self.program.stops
        return self.kinds[i] != "select" or slot == len(self.program.slots[i]) - 1

    def extended(self, path: Path, i: int, slot: int) -> Path:
        return (*path, f"{i}.{slot}") if self.kinds[i] in ("function", "tool") else path

    def paths(self) -> dict[int, Counter[Path]]:
        """For each variable: every path to it from every root."""
        found: dict[int, Counter[Path]] = {}
        for n, root in enumerate(self.program.roots):
            if self.program.requires_grad(root):
                found.setdefault(root, Counter())[(f"root{n}",)] += 1
        for i in reversed(range(len(self.program.slots))):
            for slot, to in enumerate(self.program.slots[i]):
                if self.program.requires_grad(to) and self.passes(i, slot):
                    for path, count in found.get(i, Counter()).items():
                        found.setdefault(to, Counter())[self.extended(path, i, slot)] += count
        return found

    def further(self, gradient: Gradient, i: int) -> list[Gradient | None]:
        """The rule of variable i."""
        return [
            Gradient(["/".join((f.text, f"{i}.{slot}")) for f in gradient])
            if self.passes(i, slot)
            else None
            for slot in range(len(self.program.slots[i]))
        ]

    def made(self, i: int, inputs: list[TextVariable]) -> TextVariable:
        """Variable i from its slots."""
        names = [f"slot{n}" for n in range(len(inputs))]
        match self.kinds[i]:
            case "function":
                return self._function(i).apply(*inputs)
            case "tool":
                return call_tool(self._tool(i), **dict(zip(names, inputs, strict=True)))
            case "cat":
                return ta.cat(inputs) if len(inputs) != 2 else inputs[0] + inputs[1]
            case "fill":
                template = "".join("{" + name + "}" for name in names)
                return ta.fill(template, **dict(zip(names, inputs, strict=True)))
            case "select":
                return ta.select(inputs, -1)
        raise AssertionError

    def _function(self, i: int) -> type[ta.Function]:
        agent = self

        class Further(ta.Function):
            @staticmethod
            def forward(ctx: Any, *texts: str) -> str:
                return str(i)

            @staticmethod
            def backward(ctx: Any, grad: Gradient) -> list[Gradient | None]:
                return agent.further(grad, i)

        return Further

    def _tool(self, i: int) -> Any:
        def tool(**texts: str) -> str:
            return str(i)

        tool.__name__ = str(i)
        return tool

    async def rule(self, node: Any, gradient: Gradient, engine: Any) -> list[Gradient | None]:
        await asyncio.sleep(0)
        return self.further(gradient, int(node.operation.name))


@st.composite
def agents(draw: st.DrawFn) -> Agent:
    program = draw(programs())
    count = len(program.slots)
    return Agent(
        program, tuple(draw(st.lists(st.sampled_from(KINDS), min_size=count, max_size=count)))
    )


def run(agent: Agent) -> list[TextVariable]:
    """The program's variables, after a backward pass from each root."""
    variables: list[TextVariable] = []
    for i, used in enumerate(agent.program.slots):
        if used:
            variable = agent.made(i, [variables[p] for p in used])
            if variable.requires_grad:
                variable.retain_grad()
        else:
            variable = TextVariable(f"v{i}", requires_grad=i in agent.program.wanted)
        variables.append(variable)
    for n, root in enumerate(agent.program.roots):
        if variables[root].requires_grad:
            variables[root].backward(f"root{n}", rule=agent.rule, retain_graph=True)
    return variables


@given(agents())
def test_every_path_from_a_root_to_a_variable_is_counted_exactly_once(agent: Agent) -> None:
    expected = agent.paths()
    for i, variable in enumerate(run(agent)):
        assert variable.requires_grad == agent.program.requires_grad(i)
        found = None if variable.grad is None else Counter(f.text for f in variable.grad)
        paths = {"/".join(path): count for path, count in expected.get(i, Counter()).items()}
        assert found == (paths or None)


@given(agents())
def test_feedback_comes_in_the_same_order_each_time(agent: Agent) -> None:
    first, second = ([v.grad for v in run(agent)] for _ in range(2))
    assert first == second


def test_a_path_through_a_model_s_call_ends_at_its_instruction_and_goes_on_to_its_inputs() -> None:
    async def answer(request: Any) -> str:
        return "said"

    def rule(node: Any, gradient: Gradient, engine: Any) -> list[Gradient]:
        call = node.inputs[0]
        return [
            Gradient([Feedback(f"{f.text}/{call}.{slot}") for f in gradient])
            for slot in range(len(node.inputs))
        ]

    engine = ta.engines.Scripted(answer)
    first, last = (ta.nn.LLM(name, engine=engine) for name in ("first", "last"))
    x = TextVariable("x", requires_grad=True)
    hint = first(x)
    (last(a=hint, b=hint + x) + hint).backward("root", rule=rule)
    into_first = ["root/last.1", "root/last.2", "root"]
    assert texts(last.instruction) == ["root/last.0"]
    assert sorted(texts(first.instruction)) == sorted(f"{path}/first.0" for path in into_first)
    assert sorted(texts(x)) == sorted(["root/last.2", *(f"{path}/first.1" for path in into_first)])


def texts(variable: TextVariable) -> list[str]:
    assert variable.grad is not None
    return [f.text for f in variable.grad]
