"""Signals that ask a command to end: it ends in order, at the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from textautograd.terminal import tell


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or another signal that asks to end, by its number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stopped_by_signals(ended: str) -> Iterator[None]:
    """In here SIGTERM and SIGHUP do as Ctrl-C does, and raise `Stopped`; the second of them says
    `ended` and ends the process at once. What ignores a signal, as under nohup, goes on to."""
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            tell(f"\n{ended}")
            os._exit(128 + number)
        raise Stopped(number)

    names = ("SIGINT", "SIGTERM", "SIGHUP") if _is_main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    ours = [n for n, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def _is_main_thread() -> bool:  # only there may handlers be set
    return threading.current_thread() is threading.main_thread()
