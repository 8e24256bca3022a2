"""What holds in a context: `no_grad` records nothing, `detect_anomaly` explains failures."""

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ClassVar, TypeVar

from textautograd.errors import UsageError

_enabled: ContextVar[bool] = ContextVar("textautograd_grad_enabled", default=True)
_anomalies: ContextVar[bool] = ContextVar("textautograd_anomalies", default=False)
_before: ContextVar[tuple[bool, ...]] = ContextVar("textautograd_before", default=())
F = TypeVar("F", bound=Callable[..., Any])


def is_grad_enabled() -> bool:
    """Whether calls are recorded in this context (`torch.is_grad_enabled`)."""
    return _enabled.get()


def is_anomaly_enabled() -> bool:
    """Whether backward explains its failures in this context (`torch.is_anomaly_enabled`)."""
    return _anomalies.get()


class _Mode:
    """Context manager and decorator that sets a variable of the context.

    Local to the context, so other threads and tasks are not affected. Decorates functions,
    generators (it holds while the generator runs, not while it is suspended), coroutine functions
    and asynchronous generators, with or without parentheses.
    """

    _variable: ClassVar[ContextVar[bool]]
    _value: ClassVar[bool]

    def __new__(cls, function: Callable[..., Any] | None = None) -> Any:
        self = super().__new__(cls)
        return self if function is None else self(function)

    def __enter__(self) -> None:
        _before.set((*_before.get(), self._variable.get()))
        self._variable.set(self._value)

    def __exit__(self, *_: object) -> None:
        *rest, last = _before.get()
        _before.set(tuple(rest))
        self._variable.set(last)

    def __call__(self, function: F) -> F:
        if not callable(function):
            raise UsageError(
                f"{type(self).__name__} decorates a function, and this is none: {function!r}"
            )
        if inspect.isasyncgenfunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                generator = function(*args, **kwargs)
                step, value = generator.asend, None
                while True:
                    with type(self)():
                        try:
                            item = await step(value)
                        except StopAsyncIteration:
                            return
                    step, value = generator.asend, None
                    try:
                        value = yield item
                    except GeneratorExit:
                        with type(self)():
                            await generator.aclose()
                        raise
                    except BaseException as error:
                        step, value = generator.athrow, error

        elif inspect.iscoroutinefunction(function):

            @wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with type(self)():
                    return await function(*args, **kwargs)

        elif inspect.isgeneratorfunction(function):

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                generator, step, value = function(*args, **kwargs), "send", None
                while True:
                    with type(self)():
                        try:
                            item = getattr(generator, step)(value)
                        except StopIteration as stop:
                            return stop.value
                    step, value = "send", None
                    try:
                        value = yield item
                    except GeneratorExit:
                        with type(self)():
                            generator.close()
                        raise
                    except BaseException as error:
                        step, value = "throw", error

        else:

            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with type(self)():
                    return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


class no_grad(_Mode):
    """Nothing is recorded: `with ta.no_grad():` or `@ta.no_grad` (`torch.no_grad`).

    Local to the context, so other threads and tasks are not affected. Decorates functions,
    generators (recording is off while the generator runs, not while it is suspended), coroutine
    functions and asynchronous generators, with or without parentheses.
    """

    _variable = _enabled
    _value = False


class detect_anomaly(_Mode):
    """Backward explains what goes wrong in it: `with ta.detect_anomaly():` (`torch.autograd`).

    A rule that fails, for one sample of many as well, or that returns an empty gradient raises, and
    no `.grad` changes. The error's notes show the line of your code that made the call, the
    module's dotted name, the call's inputs and output, shortened, the feedback on it, and what the
    model replied to the rule. Put the forward pass inside, too: only then is the module known for
    certain. Nothing is looked for outside, and nothing is paid for it. As local, and as good a
    decorator, as `no_grad`.

    "No change" (`None`) is no anomaly: it is what a right input gets.
    """

    _variable = _anomalies
    _value = True
