"""The seam to whatever runs a model: a `Request` goes in, a `Reply` comes out.

Anything with `async def complete(request) -> Reply` is an engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Message = Mapping[str, str]


@dataclass(slots=True, frozen=True)
class Usage:
    """What calls consumed. Adds up with `+`.

    `input_tokens` and `output_tokens` as the provider counts them, `cached_tokens` the part of the
    input that its prompt cache served; `cost` in USD, `None` where no price is known; `calls` sent
    to the model (a reply from our own cache is no call).
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    calls: int = 0

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        costs = [u.cost for u in (self, other) if u.calls or u.cost is not None]
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            None if not costs or None in costs else sum(c for c in costs if c is not None),
            self.calls + other.calls,
        )


@dataclass(slots=True, frozen=True)
class Request:
    """One call of a chat model.

    `purpose` is "forward", "backward", "optimize" or "judge". A sampling field that is `None` is
    left to the engine's defaults. `schema`, a JSON schema, asks for a JSON object. `sample` tells
    repeated draws of one request apart (it is part of the cache's key and is not sent).
    """

    messages: Sequence[Message]
    purpose: str = "forward"
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    stop: Sequence[str] | None = None
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    sample: int = 0


@dataclass(slots=True, frozen=True)
class Reply:
    """A model's answer. `cached` says that it came from our own cache and cost nothing now."""

    text: str
    finish_reason: str = "stop"
    usage: Usage = Usage(calls=1)
    cached: bool = False


@runtime_checkable
class Engine(Protocol):
    """Whatever answers requests.

    Optional members: `answer_now(request) -> Reply | None`, called in the caller's thread, for what
    needs no waiting; `identity: str`, which names model and place without secrets, as the keys of a
    cache hold it (without it, class, texts, numbers, paths, functions, and lists and dicts
    of them tell engines apart, but for keys and what `complete` changes; other objects do not);
    `structured`, "schema" (the default) or "tagged", for how it takes `Request.schema`; `metered`,
    true where it charges the context's budgets itself, as one does that passes requests on to an
    engine of this package (else they are charged twice); `max_input_tokens`, the most tokens of a
    prompt that the framework itself writes to it (see `engine`).
    """

    async def complete(self, request: Request) -> Reply: ...
