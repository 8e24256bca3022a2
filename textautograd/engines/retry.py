"""The one place that tries again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from textautograd.checking import quantity, whole
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request
from textautograd.engines.budget import metered
from textautograd.errors import TransientError, UsageError
from textautograd.terminal import harmless

if TYPE_CHECKING:
    from tenacity import RetryCallState

LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask to wait


class Retrying(Wrapper):
    """Tries again after a `TransientError`, up to `max_attempts` calls in all.

    Waits a random time up to 1, 2, 4, … and at most `max_wait` seconds, on top of what the server
    asked for. A server that asks for more than `LONGEST_RETRY_AFTER` is not waited for. The last
    error is raised as it came, with a note of the attempts made.
    """

    def __init__(
        self,
        inner: Engine,
        max_attempts: int = 5,
        max_wait: float = 60.0,
        *,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        if quantity(max_wait) is None:
            raise UsageError(f"max_wait must be seconds of at least 0, not {max_wait!r:.80}")
        super().__init__(metered(inner))
        self.max_attempts = whole("max_attempts", max_attempts)
        self.max_wait = max_wait
        self._sleep = sleep
        self._told: set[type] = set()

    async def complete(self, request: Request) -> Reply:
        try:
            return await self.inner.complete(request)
        except TransientError as error:
            failed = error
        return await self._again(request, failed)

    def answer_now(self, request: Request) -> Reply | None:
        try:
            return super().answer_now(request)
        except TransientError:
            return None  # `complete` waits, and tries again

    async def _again(self, request: Request, failed: TransientError) -> Reply:
        """What comes after the first attempt. It is the retrying's first one, made already: most
        calls have no other, and need not load or pay for what runs the rest."""
        import asyncio

        import tenacity

        made = 0

        async def attempt() -> Reply:
            nonlocal made
            made += 1
            if made == 1:
                raise failed
            return await self.inner.complete(request)

        attempts = tenacity.AsyncRetrying(
            sleep=self._sleep or asyncio.sleep,
            stop=tenacity.stop_after_attempt(self.max_attempts),
            wait=self._wait,
            before_sleep=self._tell,
            retry=tenacity.retry_if_exception(_is_worth_it),
            reraise=True,
        )
        try:
            return await attempts(attempt)
        except TransientError as error:
            if error.retry_after is not None and error.retry_after > LONGEST_RETRY_AFTER:
                error.add_note(
                    f"the server asks to wait {error.retry_after:.0f} s, more than the "
                    f"{LONGEST_RETRY_AFTER:.0f} s that are waited for: run it again later"
                )
            if made > 1:
                error.add_note(f"after {made} attempts")
            raise

    def _tell(self, state: RetryCallState) -> None:
        """Logs the first failure of each kind: who waits should know what for."""
        failed = state.outcome.exception() if state.outcome else None
        if type(failed) in self._told:
            return
        import logging

        self._told.add(type(failed))
        logging.getLogger("textautograd").warning(
            "%s; trying again, up to %d attempts in all", harmless(str(failed)), self.max_attempts
        )

    def _wait(self, state: RetryCallState) -> float:
        import random

        error = state.outcome.exception() if state.outcome else None
        asked = getattr(error, "retry_after", None) or 0.0
        longest = min(self.max_wait, 2.0 ** (state.attempt_number - 1))
        # No state: the user's seeded generator stays as it is, forked processes do not wait alike.
        return asked + random.SystemRandom().uniform(0.0, longest)


def _is_worth_it(error: BaseException) -> bool:
    return isinstance(error, TransientError) and (error.retry_after or 0.0) <= LONGEST_RETRY_AFTER
