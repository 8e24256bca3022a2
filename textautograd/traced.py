"""A gradient that carries the graph it came through, for optimizers that read all of it at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from textautograd.errors import UsageError
from textautograd.gradient import Feedback, listed


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One call as it was recorded: what it used, what came out, the feedback that reached it from
    outside (`feedback`), the later calls it was used in, with their input's name (`uses`), and
    all feedback that `reached` it, through those as well."""

    operation: str
    task: str
    output_format: str | None
    inputs: Mapping[str, str]
    output: str
    feedback: Sequence[str]
    uses: Sequence[tuple[Step, str]] = field(repr=False)  # all that came later
    reached: Sequence[str]

    def __deepcopy__(self, memo: dict[int, Any]) -> Step:
        return self  # it never changes, and the graph behind it may be too deep to be copied

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a gradient of rules.trace holds the graph that it came through and cannot be pickled: "
            "keep its texts, [feedback.text for feedback in gradient]"
        )


@dataclass(frozen=True, slots=True)
class Traced(Feedback):
    """Feedback on a text that was the input `slot` of `step`."""

    step: Step
    slot: str


def traced(step: Step, slot: str) -> Traced:
    """What `step` passes back to one input; to its instruction, inputs and output as well."""
    text = listed(step.reached)
    if slot != "instruction":
        return Traced(text, output=step.inputs[slot], step=step, slot=slot)
    inputs = {name: value for name, value in step.inputs.items() if name != slot}
    return Traced(text, inputs=inputs, output=step.output, step=step, slot=slot)


def steps_of(first: Iterable[Step]) -> list[Step]:
    """These steps and all later ones they were used in, each once, before those that used it."""
    done: dict[Step, None] = {}
    seen: set[Step] = set()
    stack = [(step, False) for step in first][::-1]
    while stack:
        step, is_left = stack.pop()
        if is_left:
            done[step] = None
        elif step not in seen:
            seen.add(step)
            stack.append((step, True))
            stack += [(use, False) for use, _ in step.uses]
    return list(reversed(done))
