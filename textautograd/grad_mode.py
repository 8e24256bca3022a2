"""`no_grad`: calls made inside record nothing."""

import inspect
from collections.abc import Callable
from contextvars import ContextVar, Token
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar

_enabled: ContextVar[bool] = ContextVar("textautograd_grad_enabled", default=True)
F = TypeVar("F", bound=Callable[..., Any])


def is_grad_enabled() -> bool:
    """Whether calls are recorded in this context (`torch.is_grad_enabled`)."""
    return _enabled.get()


class no_grad:
    """Context manager and decorator: nothing is recorded, as with `torch.no_grad`.

    Local to the context, so other threads and tasks are not affected. Decorates functions,
    generators (recording is off while the generator runs, not while it is suspended), coroutine
    functions and asynchronous generators, with or without parentheses.
    """

    _tokens: list[Token[bool]]

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        self = super().__new__(cls)
        self._tokens = []
        return self if function is None else self(function)

    def __enter__(self) -> None:
        self._tokens.append(_enabled.set(False))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _enabled.reset(self._tokens.pop())

    def __call__(self, function: F) -> F:
        if inspect.isasyncgenfunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                generator = function(*args, **kwargs)
                step, value = generator.asend, None
                while True:
                    with no_grad():
                        try:
                            item = await step(value)
                        except StopAsyncIteration:
                            return
                    step, value = generator.asend, None
                    try:
                        value = yield item
                    except GeneratorExit:
                        with no_grad():
                            await generator.aclose()
                        raise
                    except BaseException as error:
                        step, value = generator.athrow, error

        elif inspect.iscoroutinefunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with no_grad():
                    return await function(*args, **kwargs)

        elif inspect.isgeneratorfunction(function):

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                generator, step, value = function(*args, **kwargs), "send", None
                while True:
                    with no_grad():
                        try:
                            item = getattr(generator, step)(value)
                        except StopIteration as stop:
                            return stop.value
                    step, value = "send", None
                    try:
                        value = yield item
                    except GeneratorExit:
                        with no_grad():
                            generator.close()
                        raise
                    except BaseException as error:
                        step, value = "throw", error

        else:

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with no_grad():
                    return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]
