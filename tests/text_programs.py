"""The random programs of `test_tape` as texts: every step is a tool, so it takes a rule."""

from typing import Any

from test_tape import Program

import textautograd as ta


def built(program: Program) -> list[ta.TextVariable]:
    """The program's variables; slot s of step i is named `i.s`, which is all a rule needs."""
    made: list[ta.TextVariable] = []
    for i, used in enumerate(program.slots):
        if used:
            inputs = {f"{i}.{slot}": made[p] for slot, p in enumerate(used)}
            made.append(ta.call_tool(lambda i=i, **texts: f"v{i}", **inputs))
        else:
            made.append(ta.TextVariable(f"v{i}", requires_grad=i in program.wanted))
    return made


def seeded(program: Program, variables: list[ta.TextVariable]) -> tuple[list[Any], list[Any]]:
    """Outputs and gradients for `ta.grad`: the roots that anything wanted lies behind."""
    roots = [(n, r) for n, r in enumerate(program.roots) if program.requires_grad(r)]
    return [variables[r] for _, r in roots], [f"seed{n}" for n, _ in roots]


class Own:
    """A joint rule that says of each predecessor what can be said of it alone."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.seen: list[tuple[str, ...]] = []

    def __call__(self, node: Any, gradient: ta.Gradient, engine: Any) -> list[Any]:
        names = node.operation.names
        assert len(names) == len(node.inputs) == len(node.predecessors)
        self.seen.append(names)
        return [
            self.one(name, text, str(node.output), gradient)
            for name, text in zip(names, node.inputs, strict=True)
        ]

    def one(self, name: str, text: str, output: str, gradient: ta.Gradient) -> ta.Gradient | None:
        i, slot = map(int, name.split("."))
        if (i, slot) in self.program.stops:
            return None
        return ta.Gradient([f"{f.text} {output}>{name}>{text}" for f in gradient])
