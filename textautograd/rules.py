"""How a gradient passes back through what cannot be differentiated: a model's call, a tool.

A rule is `rule(node, gradient, engine)` and returns one `Gradient`, str or `None` per predecessor;
it may be a coroutine function. The node tells `operation.names`, `inputs` and `output`, all texts
by then, and which `predecessors` require a gradient. The engine is the one that backward names,
else the one of the node's forward call; `None` for a tool, which has none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from copy import copy
from functools import lru_cache, partial
from typing import Any

from textautograd import dispatch
from textautograd.backward import as_rule
from textautograd.engines import default_engine
from textautograd.engines.base import Engine, Message, Request
from textautograd.errors import GraphError
from textautograd.gradient import Feedback, Gradient, as_gradient, listed
from textautograd.prompts.form import Form, fill_in
from textautograd.prompts.semantic import semantic as semantic_prompt
from textautograd.prompts.summarise import fitted
from textautograd.prompts.textgrad import textgrad as textgrad_prompt
from textautograd.tape import Node
from textautograd.traced import Step, Traced, traced

Pulled = list[Gradient | None]
Rule = Callable[[Node, Gradient, Engine | None], Any]


def none(node: Node, gradient: Gradient, engine: Engine | None = None) -> Pulled:
    """No call: an instruction gets its (inputs, output, feedback), other inputs get nothing.

    As in the paper, an instruction's gradient is this triple of its own node; the optimizer reads
    it. Every rule here starts from it.
    """
    return _View(node, gradient).pulled()


def trace(node: Node, gradient: Gradient, engine: Engine | None = None) -> Pulled:
    """No call: passes the feedback on as it is, with a record of each node it came through.

    So the graph, from the feedback back to every parameter, is in the parameters' gradients, and
    goes when they go: `optim.OptoPrime` reads it. Exact operations leave no record of their own,
    but a text that came through one differs from what the record says was used.
    """
    if not gradient:
        return [None] * len(node.predecessors)
    arrived = list(gradient.distinct())
    own = list(dict.fromkeys([f.text for f in arrived if not isinstance(f, Traced)]))
    uses = [(f.step, f.slot) for f in arrived if isinstance(f, Traced)]
    step = Step(
        node.operation.name,
        getattr(node.operation, "task", ""),
        getattr(node.operation, "output_format", None),
        dict(zip(node.operation.names, node.inputs, strict=True)),
        str(node.output),
        own,
        uses,
        list(dict.fromkeys([*own, *(text for later, _ in uses for text in later.reached)])),
    )
    return [
        Gradient([traced(step, name)]) if p.requires_grad else None
        for name, p in zip(node.operation.names, node.predecessors, strict=True)
    ]


async def semantic(node: Node, gradient: Gradient, engine: Engine | None) -> Pulled:
    """The joint rule (semantic backpropagation, section 3 of the paper): one call per successor.

    The call names every predecessor that needs a gradient and asks how each should change, given
    the task, *all* inputs, the output and the feedback on it. "No change" is `None`. If only the
    instruction needs one, no call is made.

    Raises:
        ReplyError: if the reply cannot be used, also when asked again.
    """
    step = _View(node, gradient)
    pulled, asked = step.pulled(), step.asked()
    if not asked:
        return pulled
    engine = engine or default_engine()
    names = tuple([step.names[slot] for slot in asked])
    form = _joint_form(names)
    prompt = partial(_semantic_prompt, step.task(), names)
    texts = await fitted(engine, form, _BACKWARD, step.texts(), prompt)
    parts = await fill_in(engine, form, partial(prompt, texts), _BACKWARD)
    for slot in asked:
        pulled[slot] = step.about(slot, parts[step.names[slot]])
    return pulled


@lru_cache(maxsize=256)
def _joint_form(names: tuple[str, ...]) -> Form:
    return Form(names, nullable=True)


def _semantic_prompt(task: str, names: Sequence[str], texts: Shown, how: str) -> list[Message]:
    return semantic_prompt(task, *_unpacked(texts), names, how)


async def textgrad(
    node: Node, gradient: Gradient, engine: Engine | None, *, instructions: bool = False
) -> Pulled:
    """One call per predecessor, concurrently, each showing the whole conversation, as TextGrad.

    Sibling texts are visible in it; what it lacks is joint attribution and siblings as variables
    that could be asked to change instead. With `instructions` (by `functools.partial`) an
    instruction is such a predecessor too, as a system prompt is in TextGrad: one more call.
    """
    step = _View(node, gradient)
    pulled, asked = step.pulled(), step.asked(instructions)
    if not asked:
        return pulled
    llm = engine or default_engine()
    task = step.task()

    def prompt(texts: Shown, name: str, how: str) -> list[Message]:
        return textgrad_prompt(task, *_unpacked(texts), name, how)

    async def one(slot: int) -> Gradient | None:
        name = step.names[slot]
        parts = await fill_in(llm, Form([name]), lambda how: prompt(texts, name, how), _BACKWARD)
        return step.about(slot, parts[name])

    longest = max((step.names[slot] for slot in asked), key=len)
    texts = await fitted(
        llm,
        Form([longest]),
        _BACKWARD,
        step.texts(),
        lambda texts, how: prompt(texts, longest, how),
    )
    calls = [dispatch.start(one(slot)) for slot in asked]
    for slot, found in zip(asked, await dispatch.arrived(calls), strict=True):
        pulled[slot] = found
    return pulled


class blind:
    """Makes of a joint rule one that sees one predecessor at a time: `backward(rule=blind(rule))`.

    The rule is called once for each edge instead of once for each node. It gets a node with that
    one predecessor, its value, the output and the gradient; the others, the instruction among them,
    are not there. So reverse mode without neighbours, TextGrad's equation, is an instance of the
    joint one: `blind(rule)` equals a joint rule that ignores neighbours.

    It cannot do what a joint rule can. For z = x * y at x = 0 it sees x = 0, z = 0 and the gradient
    of z, the same for every y; and yet dz/dx = y. No function of what it sees is right for both
    y = 1 and y = 2. That is about strict blindness: TextGrad's own prompts show the whole
    conversation, siblings' texts with it, and lack joint attribution only; for comparisons with it
    take `rules.textgrad`.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = as_rule(rule)

    async def __call__(self, node: Node, gradient: Gradient, engine: Engine | None) -> Pulled:
        slots = [slot for slot, p in enumerate(node.predecessors) if p.requires_grad]
        calls = [
            dispatch.start(follow(self.rule, _alone(node, slot), gradient, engine))
            for slot in slots
        ]
        pulled: Pulled = [None] * len(node.predecessors)
        for slot, found in zip(slots, await dispatch.arrived(calls), strict=True):
            if len(found) != 1:
                raise GraphError(
                    f"{self.rule!r}, made blind, returned {len(found)} gradients for the one "
                    f"predecessor {node.operation.names[slot]!r} that it was shown"
                )
            (pulled[slot],) = found
        return pulled

    def __repr__(self) -> str:
        return f"blind({getattr(self.rule, '__name__', self.rule)})"


def follow(
    rule: Rule, node: Node, gradient: Gradient, engine: Engine | None
) -> Coroutine[Any, Any, Pulled]:
    """What a rule returns, checked. Users' plain functions never run on the loop.

    Raises:
        GraphError: if it is not one gradient, str or `None` per predecessor.
    """
    own = rule.func if isinstance(rule, partial) else rule
    # These return what is checked already.
    if own in (semantic, textgrad) or isinstance(rule, blind):
        found: Coroutine[Any, Any, Pulled] = rule(node, gradient, engine)
        return found
    return _follow(rule, node, gradient, engine)


async def _follow(rule: Rule, node: Node, gradient: Gradient, engine: Engine | None) -> Pulled:
    pulled = await dispatch.in_thread(rule, node, gradient, engine)
    if inspect.isawaitable(pulled):
        await dispatch.on_loop()
        pulled = await pulled
    return checked(pulled, node)


def checked(pulled: Any, node: Node) -> Pulled:
    """Gradients and `None`s from what user code returned; the walk checks their number.

    Raises:
        GraphError: if it is something else.
    """
    if isinstance(pulled, (str, Gradient)) or not isinstance(pulled, Sequence):
        pulled = [pulled]
    for item in pulled:
        if item is not None and not isinstance(item, (str, Gradient)):
            raise GraphError(
                f"the rule for {node} returned a {type(item).__name__}: a gradient is a str, a "
                "Gradient or None"
            )
    return [None if item is None else as_gradient(item) for item in pulled]


def _alone(node: Node, slot: int) -> Node:
    """What is left of a node if it has but one predecessor."""
    operation = copy(node.operation)
    operation.names = (node.operation.names[slot],)
    one = slice(slot, slot + 1)
    return Node(
        operation,
        node.predecessors[one],
        inputs=node.inputs[one],
        output=node.output,
        versions=node.versions[one],
        site=node.site,
    )


def said(gradient: Gradient) -> str:
    """A gradient's texts, each once."""
    return listed(list(dict.fromkeys([f.text for f in gradient.distinct()])))


_BACKWARD = partial(Request, purpose="backward", temperature=0.0)


Shown = Mapping[tuple[str, ...], str]


class _View:
    """What a rule reads of a node and of the gradient on it, each once."""

    __slots__ = ("feedback", "inputs", "instruction", "names", "node")

    def __init__(self, node: Node, gradient: Gradient) -> None:
        self.node = node
        self.names: tuple[str, ...] = node.operation.names
        self.inputs: dict[str, str] = dict(zip(self.names, node.inputs, strict=True))
        self.instruction = self.inputs.pop("instruction", None)
        self.feedback = said(gradient) if gradient else None

    def pulled(self) -> Pulled:
        """What `none` returns."""
        if self.instruction is None or self.feedback is None:
            return [None] * len(self.names)
        about = Feedback(self.feedback, inputs=self.inputs, output=str(self.node.output))
        return [Gradient([about]) if name == "instruction" else None for name in self.names]

    def asked(self, instructions: bool = False) -> list[int]:
        """The slots that a call must be made for."""
        if self.feedback is None:
            return []
        return [
            slot
            for slot, (name, p) in enumerate(zip(self.names, self.node.predecessors, strict=True))
            if p.requires_grad and (instructions or name != "instruction")
        ]

    def task(self) -> str:
        operation = self.node.operation
        parts = (self.instruction or operation.task, operation.output_format)
        return "\n\n".join([part for part in parts if part])

    def texts(self) -> Shown:
        """What a prompt shows of a step besides the task: all of it may be summarised."""
        packed: dict[tuple[str, ...], str]
        packed = {("input", name): text for name, text in self.inputs.items()}
        packed[("output",)] = str(self.node.output)
        packed[("feedback",)] = self.feedback or ""
        return packed

    def about(self, slot: int, text: str | None) -> Gradient | None:
        """The gradient of a slot that was asked about."""
        if text is None:
            return None
        if self.names[slot] == "instruction":
            return Gradient([Feedback(text, inputs=self.inputs, output=str(self.node.output))])
        return Gradient([Feedback(text, output=str(self.node.inputs[slot]))])


def _unpacked(texts: Shown) -> tuple[dict[str, str], str, str]:
    inputs = {key[1]: text for key, text in texts.items() if key[0] == "input"}
    return inputs, texts[("output",)], texts[("feedback",)]
