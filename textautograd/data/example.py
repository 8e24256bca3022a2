"""One row of a dataset."""

from dataclasses import dataclass, field
from typing import Any

from textautograd.errors import UsageError

_SHOWN = 60


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Example:
    """A question, its gold answer, and whatever else the module is to be called with.

    `extra` holds the further keyword arguments: a module is called as
    `module(question=example.question, **example.extra)`. Immutable, compared by value, picklable.
    Raises `UsageError` where question or answer is not a str.
    """

    question: str
    answer: str
    extra: dict[str, Any] = field(hash=False)

    def __init__(self, /, question: str, answer: str, **extra: Any) -> None:
        for name, value in (("question", question), ("answer", answer)):
            if not isinstance(value, str):
                raise UsageError(f"Example: {name} must be a str, not {type(value).__name__}")
        object.__setattr__(self, "question", question)
        object.__setattr__(self, "answer", answer)
        object.__setattr__(self, "extra", extra)

    def __repr__(self) -> str:
        fields = {"question": self.question, "answer": self.answer, **self.extra}
        return f"Example({', '.join(f'{name}={_short(value)}' for name, value in fields.items())})"


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) > _SHOWN:
        return repr(value[: _SHOWN - 1] + "…")
    return repr(value)
