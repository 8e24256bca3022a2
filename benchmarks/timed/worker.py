"""What the systems that are timed have in common: a process that runs cases when told to.

Standard library only, and nothing of textautograd: the peers' environment has neither. A worker
writes the names of its cases when it is ready, then reads one per line, runs it, and writes what it
took as JSON. So importing and connecting count for nobody, and systems can be timed in turn.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

Work = Callable[[], "dict[str, float] | None"]
Case = Callable[[], Work]
"""Builds what is needed and returns what is timed, which may return figures of its own. It exits
if work was left out."""


def ask(url: str, path: str) -> Any:
    """The server's counts, or a reset of them."""
    with urllib.request.urlopen(url.removesuffix("/v1") + path, timeout=30) as response:
        return json.load(response)


def timed(url: str, case: Case) -> dict[str, float]:
    """One run of a case: seconds, CPU seconds of this process, and what the server saw."""
    work = case()
    ask(url, "/reset")
    cpu, started = time.process_time(), time.perf_counter()
    own = work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, **ask(url, "/stats"), **(own or {})}


def serve(url: str, cases: dict[str, Case]) -> None:
    """Runs the cases that are asked for; each once before its first time, unmeasured."""
    reply = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a system prints goes elsewhere
    print(json.dumps(list(cases)), file=reply)
    warm: set[str] = set()
    for line in sys.stdin:
        name = line.strip()
        if name not in warm:
            warm.add(name)
            timed(url, cases[name])
        print(json.dumps(timed(url, cases[name])), file=reply)


def check(is_done: bool, what: str) -> None:
    """Exits if work was left out, or done twice."""
    if not is_done:
        raise SystemExit(f"the case did not do its work: {what}")


def per_node(nodes: int, forward: Callable[[], Any], backward: Callable[[Any], Any]) -> Case:
    """Microseconds per node of a graph that `forward` builds and `backward` walks."""

    def work() -> dict[str, float]:
        started = time.perf_counter()
        root = forward()
        between = time.perf_counter()
        backward(root)
        ended = time.perf_counter()
        return {
            "forward_us": (between - started) / nodes * 1e6,
            "backward_us": (ended - between) / nodes * 1e6,
        }

    return lambda: work
