"""What a run costs, by stage and purpose, as if it had run alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from textautograd.engines._checks import AT_LIMIT, CUT_OFF
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request, Usage
from textautograd.engines.cache import Cached, key_of
from textautograd.errors import (
    BadRequestError,
    BudgetExceeded,
    EngineError,
    IncompleteReplyError,
)

_NO_REPLY = CUT_OFF - AT_LIMIT | {None}
"""How an incomplete reply ends that is the server's failure and not the model's: a proxy's page."""


def is_models(error: Exception) -> bool:
    """Whether it is the model's own incomplete reply."""
    return isinstance(error, IncompleteReplyError) and error.finish_reason not in _NO_REPLY


@dataclass
class Tally:
    """Calls, input and output tokens by stage ("before", "training", "after") and purpose.

    Runs share a cache of calls; each still counts every call it makes once, with what it cost when
    it was made, as it would have paid with a cache of its own.
    """

    limit: int | None = None
    stage: str = "before"
    found: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    failed: EngineError | None = None
    _lock: Lock = field(default_factory=Lock, repr=False)

    def add(self, purpose: str, key: str, tokens: list[int]) -> None:
        """One call, if it is the first of its kind."""
        with self._lock:  # replies from a cache come in threads
            if key not in self.seen:
                self.seen.add(key)
                counts = self.found.setdefault(self.stage, {}).setdefault(purpose, [0, 0, 0])
                for i, more in enumerate([1, *tokens]):
                    counts[i] += more

    def tokens(self, stage: str) -> int:
        """Input and output tokens of a stage."""
        return sum(counts[1] + counts[2] for counts in self.found.get(stage, {}).values())

    def check(self) -> None:
        """Before a call: ends training, as a budget does, when its tokens are used up.

        Raises:
            EngineError: a call failed before. What follows would be another run's.
        """
        if self.failed is not None:
            raise self.failed
        if self.stage == "training" and self.limit is not None:
            spent = self.tokens("training")
            if spent >= self.limit:
                raise BudgetExceeded(f"{spent} of {self.limit} tokens are used")


class Metered(Wrapper):
    """Tells a tally; and takes a forward reply that was cut off at its limit as it is.

    So does the reference, and so do the peers: else their wrong answers would teach them what ours
    cannot learn from. A call that fails for any reason but its own request is kept in the tally: a
    gate would take it for a bad candidate.
    """

    def __init__(self, engine: Engine, cache: Path, tally: Tally) -> None:
        super().__init__(Cached(engine, cache))
        self.store = self.inner.store  # type: ignore[attr-defined]
        self.tally = tally

    async def complete(self, request: Request) -> Reply:
        self.tally.check()
        try:
            reply = await self.inner.complete(request)
        except EngineError as error:
            return self._instead(request, error)
        self._count(request)
        return reply

    def answer_now(self, request: Request) -> Reply | None:
        self.tally.check()
        try:
            reply = super().answer_now(request)
        except EngineError as error:
            return self._instead(request, error)
        if reply is not None:
            self._count(request)
        return reply

    def _instead(self, request: Request, error: EngineError) -> Reply:
        if is_models(error):
            self._count(request, error.usage)
            if request.purpose == "forward" and error.text.strip():
                return Reply(error.text)
        elif not isinstance(error, BadRequestError):
            self.tally.failed = error
        raise error

    def _count(self, request: Request, usage: Usage | None = None) -> None:
        """With the tokens that the cache has, or, as it keeps no empty reply, those of `usage`."""
        key = key_of(self.identity, request)
        value = self.store.get(key)
        if value is not None:
            self.tally.add(request.purpose, key, json.loads(value)["tokens"])
        elif usage is not None:
            self.tally.add(request.purpose, key, [usage.input_tokens, usage.output_tokens])
