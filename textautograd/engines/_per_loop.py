"""What is made once for each event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

T = TypeVar("T")


class PerLoop(Generic[T]):
    """A value for each event loop, made on first use there. What is sent to another process has
    none yet."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[AbstractEventLoop, T] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PerLoop, (self._make,)

    def here(self) -> T:
        """The running loop's value."""
        import asyncio

        loop = asyncio.get_running_loop()
        value = self._values.get(loop)
        if value is None:
            for past in [known for known in list(self._values) if known.is_closed()]:
                self._values.pop(past, None)
            value = self._values[loop] = self._make()
        return value

    def pop(self) -> T | None:
        """Forgets and returns the running loop's value."""
        import asyncio

        return self._values.pop(asyncio.get_running_loop(), None)
