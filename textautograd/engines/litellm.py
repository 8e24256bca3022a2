"""Every other provider, through litellm."""

from __future__ import annotations

import os
import threading
from typing import Any

from textautograd.engines._address import Address
from textautograd.engines._chat import Provider
from textautograd.engines._failures import Complaint, retry_after, shown
from textautograd.engines.base import Reply, Request
from textautograd.errors import (
    ConnectionFailed,
    ContentFilterError,
    ContextOverflowError,
    EngineError,
    TimeoutExpired,
    UsageError,
)

_importing = threading.Lock()


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
        super().__init__(model, structured, timeout)
        self._where = {"api_base": api_base, "api_key": api_key}
        self._where = {name: value for name, value in self._where.items() if value is not None}
        self._secrets = [api_key] if api_key else []
        self._place = ""
        if api_base is not None:
            address = Address(api_base)
            self._place = f" at {address.shown}"
            self._secrets += address.secrets

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
        return self.read(
            answer.model_dump(warnings=False), request, cost=hidden.get("response_cost")
        )

    async def _ask(self, payload: dict[str, Any], request: Request) -> Any:
        import asyncio

        litellm = await asyncio.to_thread(_litellm)
        import openai  # litellm's exceptions are openai's

        try:
            return await litellm.acompletion(
                **payload, **self._where, timeout=self.timeout, max_retries=0
            )
        except openai.OpenAIError as error:
            return self._translated(error, request)

    def _translated(self, error: Any, request: Request) -> EngineError | UsageError:
        kind = type(error).__name__
        self._secrets = list({*self._secrets, *_keys_of_the_environment()})
        words = shown(self.redacted(getattr(error, "message", None) or str(error)))
        status = getattr(error, "status_code", None)
        status = status if isinstance(status, int) else 500
        if "LLM Provider NOT provided" in words:
            return UsageError(
                f"{self.model!r} names no provider: write it as litellm does, as in "
                "'openai/gpt-4o-mini', or give the server's address as api_base="
            )
        if kind == "ContextWindowExceededError":
            return ContextOverflowError(words, status=status)
        if kind == "ContentPolicyViolationError":
            return ContentFilterError(words, status=status)
        if kind == "Timeout":
            return TimeoutExpired(f"no reply within {self.timeout} s: raise timeout=")
        if kind == "APIConnectionError" or "Connection error" in words:
            return ConnectionFailed(f"cannot connect: {words}")
        headers = getattr(error, "litellm_response_headers", None) or {}
        # The provider's own code is with the exception that litellm translated.
        body = getattr(error, "body", None) or getattr(error.__context__, "body", None)
        code = body.get("code") if isinstance(body, dict) else None
        code = self.redacted(str(code)) if isinstance(code, (str, int)) else ""
        return self.failed(Complaint(status, words, code, retry_after(headers)), request)

    async def close(self) -> None:
        """Closes litellm's connections, which all its models share."""
        import sys

        if "litellm" in sys.modules:
            from litellm.llms.custom_httpx.async_client_cleanup import close_litellm_async_clients

            await close_litellm_async_clients()


def _keys_of_the_environment() -> list[str]:
    """What litellm may have read there and a provider may repeat."""
    names = [name for name in os.environ if name.endswith(("_KEY", "_TOKEN", "_SECRET"))]
    return [os.environ[name] for name in names if len(os.environ[name]) > 7]


def _litellm() -> Any:
    """litellm, imported once and kept quiet."""
    import logging

    with _importing:
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm

        litellm.suppress_debug_info = True
        litellm.telemetry = False
        for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
            logging.getLogger(name).setLevel(logging.WARNING)
        return litellm
