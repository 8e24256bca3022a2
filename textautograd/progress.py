"""The progress bar of long calls; silent where nobody watches."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from textautograd.engines.base import Usage

_REFRESH = 0.5  # seconds


class Progress:
    """One line: how far it is, what `update` was told, and what was spent by now."""

    def __init__(
        self, what: str, unit: str, total: int, spent: Callable[[], Usage], *, visible: bool
    ) -> None:
        self._bar: Any = None
        if not (visible and ("ipykernel" in sys.modules or sys.stderr.isatty())):
            return
        from tqdm.auto import tqdm

        self._bar = tqdm(total=total, desc=what, unit=unit)
        self._spent = spent
        self._shown: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True, name="progress")
        self._clock.start()

    def update(self, steps: int = 1, **shown: str) -> None:
        """Moves on, and says what there is to say."""
        if self._bar is not None:
            with self._lock:
                self._shown |= shown
                self._bar.update(steps)
                self._show()

    def _tick(self) -> None:
        while not self._over.wait(_REFRESH):
            with self._lock:
                self._show()

    def _show(self) -> None:
        spent = self._spent()
        shown = {**self._shown, "calls": spent.calls, "tokens": spent.tokens}
        if spent.cost is not None:
            shown["cost"] = f"${spent.cost:.4f}"
        self._bar.set_postfix(shown)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the last line standing."""
        if self._bar is not None:
            self._over.set()
            self._clock.join()
            self._bar.close()
