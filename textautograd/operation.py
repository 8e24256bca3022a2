"""`Operation`: what a node did, and how a gradient passes back through it."""

from __future__ import annotations

from collections.abc import Sequence

from textautograd import dispatch
from textautograd.errors import UsageError
from textautograd.gradient import Gradient
from textautograd.tape import Node


class Operation:
    """What a node did: runs forward, and says how a gradient passes back.

    `names` are the slots of its predecessors. An exact operation has a `backward`; an opaque one (a
    model's call, a tool: see `functional.Opaque`) takes the rule that `backward(rule=…)` names.
    """

    __slots__ = ("names",)
    name = "operation"
    is_opaque = False
    runs_user_code = False

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    @property
    def title(self) -> str:
        """What errors call it."""
        return self.name

    def forward(self, *texts: str) -> str:
        """The value, where it takes no waiting."""
        raise NotImplementedError

    async def run(self, texts: Sequence[str]) -> str:
        """The value, where it may take waiting."""
        if self.runs_user_code:
            result: str = await dispatch.in_thread(self.forward, *texts)
            return result
        return self.forward(*texts)

    def backward(self, node: Node, gradient: Gradient) -> Sequence[Gradient | None]:
        """One gradient or `None` per predecessor: the feedback on the whole is, unchanged, the
        feedback on each part."""
        return [gradient] * len(node.predecessors)

    def __repr__(self) -> str:
        return self.name


class Join(Operation):
    """`sep.join(texts)`."""

    __slots__ = ("sep",)
    name = "cat"

    def __init__(self, count: int, sep: str) -> None:
        super().__init__([f"part{i}" for i in range(count)])
        self.sep = sep

    def forward(self, *texts: str) -> str:
        if all(hasattr(text, "loss") for text in texts):
            raise UsageError("+ and cat join texts, and these are losses: use ta.mean([a, b])")
        return self.sep.join(texts)
