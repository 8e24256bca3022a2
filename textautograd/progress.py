"""The progress bar of `fit`; silent where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from textautograd.engines.base import Usage


class Progress:
    """One line: steps, loss, accepted steps, calls, tokens and cost."""

    def __init__(self, total: int, done: int, *, visible: bool) -> None:
        self._bar: Any = None
        if visible and ("ipykernel" in sys.modules or sys.stderr.isatty()):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, desc="fit", unit="step")

    def update(self, loss: float | None, accepted: int, usage: Usage, steps: int = 1) -> None:
        """Shows where the run is."""
        if self._bar is None:
            return
        shown = {
            "loss": "-" if loss is None else f"{loss:.3f}",
            "accepted": accepted,
            "calls": usage.calls,
            "tokens": usage.tokens,
        }
        if usage.cost is not None:
            shown["cost"] = f"${usage.cost:.4f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(steps)

    def close(self) -> None:
        """Leaves the last line standing."""
        if self._bar is not None:
            self._bar.close()
