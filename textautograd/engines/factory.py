"""`engine(name, …)`: a model by its name, with everything around it that a call needs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import NoneType
from typing import Any, Literal

from textautograd.checking import quantity, whole
from textautograd.engines._address import Address
from textautograd.engines._checks import model_name
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.base import Engine, Reply, Request
from textautograd.engines.cache import Cached, Coalesced
from textautograd.engines.http import HTTP
from textautograd.engines.limit import Limited
from textautograd.engines.litellm import LiteLLM
from textautograd.engines.retry import Retrying
from textautograd.errors import UsageError
from textautograd.files import users_cache

_OPTIONS = (
    "structured, api_key, api_base, cache, max_concurrency, timeout, max_attempts, "
    "max_input_tokens, temperature, max_tokens, top_p, seed, stop"
)


def engine(
    name: str,
    *,
    structured: str = "auto",
    api_key: str | None = None,
    api_base: str | None = None,
    cache: str | os.PathLike[str] | bool | None = None,
    max_concurrency: int = 64,
    timeout: float | Literal["default"] | None = "default",
    max_attempts: int = 5,
    max_input_tokens: int | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    **unknown: object,
) -> Engine:
    """The model of that name, with retries, a limit on concurrency and, if wanted, a call cache.

    Args:
        name: as litellm writes it ("openai/gpt-4o-mini"); "local", "local/<name>" or
            "local/<path>.gguf" for llama.cpp in this process; with `api_base`, the server's name.
        structured: how replies with several parts are asked for. "schema": by JSON schema;
            "tagged": in words; "auto": by schema until the server refuses one.
        api_base: an OpenAI-compatible server, called directly, up to and without
            `/chat/completions`.
        api_key: the provider's key. By default litellm's environment variables; with `api_base`
            OPENAI_API_KEY, if it is set and the address is https or on this machine. A local model
            takes none.
        cache: the file of the call cache; True for one in the user's cache directory.
        max_concurrency: the most calls in flight at once.
        timeout: seconds for one attempt; None waits for ever. By default 120, and None for a local
            model, where calls that wait for one another count the wait.
        max_attempts: calls in all, where failures are worth another try.
        max_input_tokens: the most tokens of a prompt for gradients, judging and rewriting; leave
            room for the reply. What would make one longer (an input, output or feedback, never an
            instruction) is split, and its parts are summarised by further calls, until it fits.
            Tokens are estimated, from above (`textautograd.prompts.size`). By default no limit is
            kept. The agent's own calls are not concerned.
        temperature, max_tokens, top_p, seed, stop: used where a request leaves them open.

    By pickle it is sent to another process as this call. So a key that was given here goes with it,
    and the environment's does not: it is read again there.

    Raises:
        UsageError: an unknown option, or a value that cannot work.
    """
    given = {option: value for option, value in locals().items() if option != "unknown"}
    if unknown:
        raise UsageError(_no_such_option(next(iter(unknown))))
    name = model_name(name).strip()
    whole("max_concurrency", max_concurrency)
    whole("max_attempts", max_attempts)
    if max_input_tokens is not None:
        whole("max_input_tokens", max_input_tokens)
    if not isinstance(cache, (str, os.PathLike, bool, NoneType)) or cache == "":
        raise UsageError(f"cache must be a path, True or None, not {cache!r}")
    sampling = _sampling(temperature, max_tokens, top_p, seed, stop)

    options: dict[str, Any] = {"structured": structured}
    if timeout != "default":
        options["timeout"] = timeout
    raw: Engine
    place = ""
    if api_base is not None:
        raw = HTTP(
            name.removeprefix("openai/"),
            api_base,
            api_key=_key_for(api_base) if api_key is None else api_key,
            **options,
        )
        place = f", api_base={raw.api_base!r}"
    elif name == "local" or name.startswith("local/"):
        from textautograd.engines.local import Local

        if api_key is not None:
            raise UsageError("api_key is for a server: a local model takes none")
        raw = Local(name, **options)
    else:
        raw = LiteLLM(name, api_key=api_key, **options)

    stack: Engine = Coalesced(Retrying(Limited(raw, max_concurrency), max_attempts))
    if cache:
        stack = Cached(stack, users_cache() / "calls.sqlite" if cache is True else cache)
    return Named(stack, f"engine({name!r}{place})", sampling, max_input_tokens, given)


class Named(Wrapper):
    """A stack of engines with a readable name and its own values for what requests leave open."""

    def __init__(
        self,
        inner: Engine,
        name: str,
        sampling: Mapping[str, Any],
        max_input_tokens: int | None,
        given: Mapping[str, Any],
    ) -> None:
        super().__init__(inner)
        self.name = name
        self.sampling = dict(sampling)
        self._max_input_tokens = max_input_tokens
        self._given = given

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(engine, **self._given), ()

    @property
    def max_input_tokens(self) -> int | None:
        return self._max_input_tokens

    async def complete(self, request: Request) -> Reply:
        return await self.inner.complete(self._filled(request))

    def answer_now(self, request: Request) -> Reply | None:
        return super().answer_now(self._filled(request))

    @property
    def identity(self) -> str:
        inner = super().identity
        return f"{inner} {self.sampling}" if self.sampling else inner

    def _filled(self, request: Request) -> Request:
        missing = {k: v for k, v in self.sampling.items() if getattr(request, k) is None}
        return replace(request, **missing) if missing else request

    def __repr__(self) -> str:
        return self.name


def _no_such_option(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, _OPTIONS.split(", "), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"engine has no option {name!r}{hint}; its options are {_OPTIONS}"


def _sampling(
    temperature: Any, max_tokens: Any, top_p: Any, seed: Any, stop: Any
) -> dict[str, Any]:
    if temperature is not None and quantity(temperature) is None:
        raise UsageError(f"temperature must be a number of at least 0, not {temperature!r}")
    if top_p is not None and not 0 < (quantity(top_p) or 0) <= 1:
        raise UsageError(f"top_p must be a number above 0 and up to 1, not {top_p!r}")
    if max_tokens is not None:
        whole("max_tokens", max_tokens)
    if seed is not None:
        whole("seed", seed, None)
    stops = [stop] if isinstance(stop, str) else stop
    if stops is not None and not (
        isinstance(stops, (list, tuple)) and all(isinstance(s, str) and s for s in stops)
    ):
        raise UsageError(f"stop must be a text or a list of texts, not {stop!r}")
    values = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "top_p": top_p,
        "seed": seed,
        "stop": stops,
    }
    return {name: value for name, value in values.items() if value is not None}


def _key_for(api_base: str) -> str | None:
    """OPENAI_API_KEY, unless that would send it in clear text over a network."""
    key = os.environ.get("OPENAI_API_KEY")
    return key if key and Address(api_base).is_confidential else None
