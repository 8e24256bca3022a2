"""What flows backward for text: a `Gradient`, which is a sequence of `Feedback`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import overload

from textautograd.errors import UsageError


@dataclass(frozen=True, slots=True)
class Feedback:
    """How one text should change, on one piece of evidence.

    `text` says it. `output` is the text that it is about, and `inputs` (name → text) is what that
    was made from: an optimizer rewrites an instruction from such triples.
    """

    text: str
    inputs: Mapping[str, str] | None = field(default=None, kw_only=True, hash=False)
    output: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise UsageError(f"a feedback's text must be a str, not {type(self.text).__name__}")
        if self.output is not None and not isinstance(self.output, str):
            raise UsageError(f"a feedback's output is a str, not {type(self.output).__name__}")
        if self.inputs is None:
            return
        if not isinstance(self.inputs, Mapping):
            raise UsageError(
                f"a feedback's inputs are a dict of name → text, not {type(self.inputs).__name__}"
            )
        for name, text in self.inputs.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise UsageError(
                    f"a feedback's inputs are a dict of name → text; {name!r} is a "
                    f"{type(name).__name__}, its text a {type(text).__name__}"
                )


class Gradient(Sequence[Feedback]):
    """A semantic gradient: an immutable sequence of feedbacks, from every use of a variable.

    `g1 + g2` concatenates and shares both parts, `len` is O(1), and only `str` and iteration
    materialise: so sixty doublings of `x + x` cost nothing until someone reads their 2**60
    feedbacks. An empty gradient still says "backward came by"; no gradient is `None`.
    """

    __slots__ = ("_length", "_parts")

    def __init__(self, feedbacks: Iterable[Feedback | str] = ()) -> None:
        if isinstance(feedbacks, str):
            feedbacks = [feedbacks]
        try:
            given = iter(feedbacks)
        except TypeError:
            kind = type(feedbacks).__name__
            raise UsageError(f"a Gradient is made of feedbacks, not {kind}") from None
        parts = tuple([Feedback(f) if isinstance(f, str) else f for f in given])
        for part in parts:
            if not isinstance(part, Feedback):
                raise UsageError(f"a Gradient holds Feedback, not {type(part).__name__}")
        self._parts: tuple[Feedback | Gradient, ...] = parts
        self._length = len(parts)

    def __add__(self, other: "Gradient") -> "Gradient":
        if not isinstance(other, Gradient):
            return NotImplemented
        if not self._length or not other._length:
            return self if self._length else other
        both = Gradient.__new__(Gradient)
        both._parts, both._length = (self, other), self._length + other._length
        return both

    def __len__(self) -> int:
        return self._length

    def __bool__(self) -> bool:
        return self._length > 0

    def __iter__(self) -> Iterator[Feedback]:
        return self._at(range(self._length))

    def __reversed__(self) -> Iterator[Feedback]:
        return self._at(range(self._length - 1, -1, -1))

    def _at(self, chosen: range) -> Iterator[Feedback]:
        """The feedbacks at these indices, in one pass from the end where they begin."""
        forward = chosen.step > 0
        stack: list[Feedback | Gradient] = [self]
        passed = 0
        for index in chosen:
            ahead = index if forward else self._length - 1 - index
            while True:
                part = stack.pop()
                size = part._length if isinstance(part, Gradient) else 1
                if passed + size <= ahead:  # a whole part at once
                    passed += size
                elif isinstance(part, Gradient):
                    stack.extend(reversed(part._parts) if forward else part._parts)
                else:
                    break
            passed += 1
            yield part

    def distinct(self) -> Iterator[Feedback]:
        """Each feedback once, where it comes first. Takes no longer than the sums that made this
        gradient, however often they share a part."""
        if self._length == 1:
            yield from self._parts  # type: ignore[misc]  # one part is no rope
            return
        stack: list[Feedback | Gradient] = [self]
        seen: set[Feedback | int] = set()
        while stack:
            part = stack.pop()
            key = id(part) if isinstance(part, Gradient) else part
            if key in seen:
                continue
            seen.add(key)
            if isinstance(part, Gradient):
                stack.extend(reversed(part._parts))
            else:
                yield part

    @overload
    def __getitem__(self, index: int) -> Feedback: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Feedback]: ...
    def __getitem__(self, index: int | slice) -> Feedback | Sequence[Feedback]:
        if isinstance(index, slice):
            return tuple(self._at(range(self._length)[index]))
        if index < -self._length or index >= self._length:
            raise IndexError(f"index {index} of a gradient with {self._length} feedbacks")
        index %= self._length
        return next(self._at(range(index, index + 1)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Gradient):
            return NotImplemented
        return self is other or (
            self._length == other._length and all(map(Feedback.__eq__, self, other))
        )

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __str__(self) -> str:
        return listed([f.text for f in self])

    def __repr__(self) -> str:
        shown = ", ".join(repr(f.text) for f in islice(self, 3))
        return f"Gradient([{shown}{', …' if self._length > 3 else ''}], {self._length} in all)"

    def __reduce__(self) -> tuple[type["Gradient"], tuple[tuple[Feedback, ...]]]:
        return Gradient, (tuple(self),)  # a rope may be too deep for pickle


def listed(texts: Sequence[str]) -> str:
    """Texts as one: a list, unless there is but one."""
    return texts[0] if len(texts) == 1 else "\n".join(f"- {text}" for text in texts)


def as_gradient(value: "Gradient | str") -> Gradient:
    """A gradient from what a rule or a user may give for one."""
    if isinstance(value, Gradient):
        return value
    if isinstance(value, str):
        return Gradient([Feedback(value)])
    raise UsageError(f"a gradient is a str or a Gradient, not {type(value).__name__}")
