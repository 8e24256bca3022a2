"""Trace's side of `benchmarks.speed`: `python peer_trace.py BASE_URL`, in its environment."""

from __future__ import annotations

import sys
from typing import Any

from opto import trace
from worker import per_node, serve


@trace.bundle()  # type: ignore[untyped-decorator]
def call(instruction: str, question: str) -> str:
    "A model's call that answers at once."
    return "Be precise."


def chain(nodes: int) -> Any:
    trace.GRAPH.clear()  # it keeps every node otherwise
    instruction = trace.node("Answer.", trainable=True)
    x = trace.node("question")
    for _ in range(nodes):
        x = call(instruction, x)
    return x


serve(
    sys.argv[1],
    {
        f"at once {n}": per_node(n, lambda n=n: chain(n), lambda root: root.backward("Be brief."))
        for n in (100, 400, 900)
    },
)
