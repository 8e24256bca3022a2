"""Every other provider, through litellm."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

from textautograd.engines._address import Address
from textautograd.engines._chat import Provider
from textautograd.engines._checks import CUT_OFF
from textautograd.engines._failures import Complaint, complaint_inside, retry_after, shown
from textautograd.engines._secrets import Secrets
from textautograd.engines.base import Reply, Request
from textautograd.errors import (
    AuthenticationError,
    ConnectionFailed,
    ContentFilterError,
    ContextOverflowError,
    EngineError,
    IncompleteReplyError,
    TimeoutExpired,
    UsageError,
)

_importing = threading.Lock()

_FOR_EVER = 1e7  # seconds; None is 600 to litellm
_NO_PROVIDER = (
    "{0!r} names no provider, and litellm knows no such model: write it as litellm does, as in "
    "'openai/gpt-4o-mini', or give the server's address as api_base="
)
_NO_KEY = re.compile(r"credential|api[_ ]?key", re.I)
_NOT_THE_PROTOCOL = re.compile("Invalid response object|Empty or invalid response|no 'choices'")


class LiteLLM(Provider):
    """The model that litellm knows by the name `model`, such as "openai/gpt-4o-mini".

    `timeout` is in seconds, for one call. Keys are litellm's: the provider's environment variable,
    or `api_key`. litellm is imported by the first call, which takes seconds, off the event loop.
    """

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None = None,
        api_key: str | None = None,
        timeout: float | None = 120.0,
        structured: str = "auto",
    ) -> None:
        address = None if api_base is None else Address(api_base)
        hidden = address.secrets if address else []
        super().__init__(model, structured, timeout, api_key, hidden)
        if address is None and not _is_known(model):
            raise UsageError(_NO_PROVIDER.format(model))
        where = {"api_base": api_base, "api_key": self._key}
        self._where = {name: value for name, value in where.items() if value is not None}
        self._place = f" at {address.shown}" if address else ""

    @property
    def _secrets(self) -> Secrets:
        return Secrets([*self._hidden, *_keys_of_the_environment()])

    @property
    def whose(self) -> str:
        return f"{self.model!r}{self._place}"

    @property
    def identity(self) -> str:
        return f"litellm {self.model}{self._place}"

    def __repr__(self) -> str:
        return f"LiteLLM({self.model!r})"

    async def complete(self, request: Request) -> Reply:
        answer = await self._ask(self.payload(request), request)
        if isinstance(answer, Exception):
            raise answer  # out here, where litellm's exception is not its context
        hidden = getattr(answer, "_hidden_params", None) or {}
        body = _as_sent(answer.model_dump(warnings=False))
        return self.read(body, request, cost=hidden.get("response_cost"))

    async def _ask(self, payload: dict[str, Any], request: Request) -> Any:
        import asyncio

        litellm = await asyncio.to_thread(_litellm)
        import openai  # litellm's exceptions are openai's

        try:
            return await litellm.acompletion(
                **payload, **self._where, timeout=self.timeout or _FOR_EVER, max_retries=0
            )
        except openai.OpenAIError as error:
            return self._translated(error, request, self._missing(litellm))

    def _missing(self, litellm: Any) -> list[str]:
        """The environment's variables that litellm would read, and that are not set."""
        if "api_key" in self._where:
            return []
        return list(litellm.validate_environment(self.model)["missing_keys"])

    def _translated(
        self, error: Any, request: Request, missing: list[str]
    ) -> EngineError | UsageError:
        secrets = self._secrets
        words = shown(secrets.redacted(getattr(error, "message", None) or str(error)))
        headers = getattr(error, "litellm_response_headers", None) or {}
        status = getattr(error, "status_code", None)
        status = status if isinstance(status, int) else 500
        kind = type(error).__name__
        if "LLM Provider NOT provided" in words:
            return UsageError(_NO_PROVIDER.format(self.model))
        unset = ", ".join(missing)
        if missing and not headers and (status == 401 or _NO_KEY.search(words)):
            return AuthenticationError(
                f"no key for {self.model!r}: set {unset} in the environment or give api_key="
            )
        if missing and status in (401, 403):
            words += f" (not set in the environment: {unset})"
        if kind == "ContextWindowExceededError":
            return ContextOverflowError(words, status=status)
        if kind == "ContentPolicyViolationError":
            return ContentFilterError(words, status=status)
        chain = _chain(error)
        inside = [e for e in chain if type(e) is Exception and hasattr(e, "status_code")]
        if inside:  # an `error` that came with status 200; litellm's 422 says that it had no code
            code = getattr(inside[0], "status_code", None)
            said = {"message": words, "code": "" if code == 422 else code}
            return self.failed(complaint_inside(secrets.redacted_in(said)), request)
        if not headers:  # no reply, or none with a status that says so
            if kind == "Timeout":
                return TimeoutExpired(
                    f"{self.whose} sent no reply within {self.timeout} s: raise timeout="
                )
            if status == 500 and (_NOT_THE_PROTOCOL.search(words) or _is_malformed(chain)):
                return IncompleteReplyError(f"the server sent what is no reply: {words}")
            if kind == "APIConnectionError" or "Connection error" in words:
                return ConnectionFailed(f"cannot connect to {self.whose}: {words}")
        # The provider's own code is with the exception that litellm translated.
        body = getattr(error, "body", None) or getattr(error.__context__, "body", None)
        code = body.get("code") if isinstance(body, dict) else None
        code = secrets.redacted(str(code)) if isinstance(code, (str, int)) else ""
        return self.failed(Complaint(status, words, code, retry_after(headers)), request)

    async def close(self) -> None:
        """Closes litellm's connections, which all its models share."""
        if "litellm" in sys.modules:
            from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients

            await close_litellm_async_clients()


def _as_sent(body: dict[str, Any]) -> dict[str, Any]:
    """A reply's body without what litellm makes of it: it calls an unknown `finish_reason` "stop",
    also that of a reply that was cut off, and moves a refusal."""
    for choice in body.get("choices") or ():
        native = (choice.get("provider_specific_fields") or {}).get("native_finish_reason")
        if isinstance(native, str) and native.lower() in CUT_OFF:
            choice["finish_reason"] = native.lower()
        message = choice.get("message") or {}
        refusal = (message.get("provider_specific_fields") or {}).get("refusal")
        message.setdefault("refusal", refusal)
    return body


def _is_known(model: str) -> bool:
    """Whether litellm can know the provider: it is named, or the model is in litellm's list, which
    is read without the import that takes seconds."""
    if "/" in model or ":" in model or "*" in model:
        return True
    litellm = sys.modules.get("litellm")
    added = [getattr(litellm, name, {}) for name in ("model_cost", "model_alias_map")]
    if any(model in names for names in added):
        return True
    spec = importlib.util.find_spec("litellm")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    prices = folder / "model_prices_and_context_window_backup.json"
    return not prices.is_file() or f'"{model}":'.encode() in prices.read_bytes()


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (below := chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    return chain


def _is_malformed(chain: list[BaseException]) -> bool:
    kinds = (json.JSONDecodeError, RecursionError)
    return any(isinstance(e, kinds) or type(e).__name__ == "ValidationError" for e in chain)


def _keys_of_the_environment() -> list[str]:
    """What litellm may have read there and a provider may repeat."""
    names = [name for name in os.environ if name.endswith(("_KEY", "_TOKEN", "_SECRET"))]
    return [os.environ[name] for name in names if len(os.environ[name]) > 7]


def _litellm() -> Any:
    """litellm, imported once and kept quiet."""
    import logging
    import warnings

    with _importing:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        litellm.suppress_debug_info = True
        litellm.telemetry = False
        # It serializes whatever a server sent, and pydantic's warning repeats that, keys and all.
        warnings.filterwarnings("ignore", "Pydantic serializer warnings", UserWarning)
        for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return litellm
