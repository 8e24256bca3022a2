"""The chat protocol that OpenAI began: a `Request` to JSON, JSON to a `Reply`.

A `Provider` is an engine that speaks it; subclasses bring the transport.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from textautograd.checking import quantity
from textautograd.engines._checks import finished, model_name
from textautograd.engines._failures import Complaint, complaint_inside, shown
from textautograd.engines._secrets import Secrets
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import (
    ContentFilterError,
    EngineError,
    IncompleteReplyError,
    SchemaRejected,
    UsageError,
)

LARGEST_REPLY = 20 * 2**20  # bytes, or characters of an answer

_MODES = ("auto", "schema", "tagged")


class Provider:
    """An engine that sends `Request.schema` as `response_format`, where the model takes that.

    `structured` is the mode it is in, "schema" or "tagged". With "auto" it begins as "schema" and
    is "tagged" for good from the first refusal on, which is raised as `SchemaRejected`.
    """

    metered = False

    def __init__(
        self,
        model: str,
        structured: str,
        timeout: float | None,
        api_key: str | None,
        secrets: Iterable[str] = (),
    ) -> None:
        if structured not in _MODES:
            raise UsageError(f"structured must be one of {', '.join(_MODES)}, not {structured!r}")
        if timeout is not None and (quantity(timeout) is None or timeout == 0):
            raise UsageError(
                f"timeout must be a positive number of seconds, or None, not {timeout!r}"
            )
        self.model = model_name(model)
        self.timeout = timeout
        self._may_change = structured == "auto"
        self.structured = "schema" if structured == "auto" else structured
        self._key = None if api_key is None else _key(api_key)
        self._hidden = [*secrets, self._key or ""]
        self._own_secrets = Secrets(self._hidden)

    def __deepcopy__(self, memo: dict[int, Any]) -> Provider:
        return self

    @property
    def _secrets(self) -> Secrets:
        """What the server knows and may repeat."""
        return self._own_secrets

    @property
    def whose(self) -> str:
        """The model and where it is, without secrets, for errors."""
        return repr(self.model)

    def payload(self, request: Request) -> dict[str, Any]:
        """The request as the protocol writes it."""
        fields = {
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "top_p": request.top_p,
            "stop": list(request.stop) if isinstance(request.stop, tuple) else request.stop,
            "seed": request.seed,
            "response_format": self._response_format(request),
        }
        content: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
        }
        return content | {name: value for name, value in fields.items() if value is not None}

    def _response_format(self, request: Request) -> dict[str, Any] | None:
        if request.schema is None:
            return None
        if self.structured == "tagged":  # a prompt written before the mode changed
            raise SchemaRejected(f"{self!r} takes no JSON schema: ask for the tagged format")
        schema = {"name": "reply", "strict": True, "schema": dict(request.schema)}
        return {"type": "json_schema", "json_schema": schema}

    def failed(self, complaint: Complaint, request: Request) -> EngineError:
        """The error for a call that the server did not answer."""
        if request.schema is not None and self._may_change and complaint.rejects_schema:
            self.structured = "tagged"
            return SchemaRejected(f"{complaint.status}: {complaint.words}", status=complaint.status)
        return complaint.error(self.whose)

    def read(self, body: Any, request: Request, cost: float | None = None) -> Reply:
        """The reply in a parsed body.

        Raises:
            EngineError: there is no whole reply in it.
        """
        if not isinstance(body, dict):
            raise self._not_the_protocol("not an object", body, Usage(calls=1))
        usage = read_usage(body.get("usage"), cost)
        if body.get("error"):
            error = self.failed(complaint_inside(self._secrets.redacted_in(body["error"])), request)
            error.usage = usage if usage.tokens or usage.cost else None
            raise error
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self._not_the_protocol("without choices", body, usage)
        message = choices[0].get("message")
        if not isinstance(message, dict):
            raise self._not_the_protocol("without a message", body, usage)
        reason = choices[0].get("finish_reason") or "stop"
        text = _text(message.get("content"))
        if not isinstance(reason, str) or text is None:
            raise self._not_the_protocol("of the wrong type", body, usage)
        reason = self._secrets.redacted(reason)
        if len(text) > LARGEST_REPLY:
            too_long = IncompleteReplyError(f"the reply has more than {LARGEST_REPLY:,} characters")
            too_long.usage = usage
            raise too_long
        refusal = message.get("refusal")
        if not text and isinstance(refusal, str) and refusal:
            words = shown(self._secrets.redacted(refusal))
            withheld = ContentFilterError(f"the model refused: {words}")
            withheld.usage = usage
            raise withheld
        return finished(Reply(text, reason, usage), request)

    def _not_the_protocol(self, what: str, body: Any, usage: Usage) -> IncompleteReplyError:
        said = shown(repr(self._secrets.redacted_in(body)))
        error = IncompleteReplyError(f"the server sent a reply {what}: {said}")
        error.usage = usage  # it may have been paid for
        return error


def _key(api_key: str) -> str:
    key = api_key.strip() if isinstance(api_key, str) else ""
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError("api_key is empty or has characters that no key has")
    return key


def _text(content: Any) -> str | None:
    """The answer; reasoning, tool calls and other parts are not it. `None`: no such content."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return None
    texts = [part.get("text") for part in content if part.get("type") == "text"]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def read_usage(usage: Any, cost: float | None = None) -> Usage:
    """What the server says that the call consumed; what it does not count reads 0."""
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens") if isinstance(details, dict) else 0),
        cost=quantity(usage.get("cost") if cost is None else cost),
        calls=1,
    )


def _count(value: Any) -> int:
    number = quantity(value)
    return int(number) if number is not None and number < 2**53 else 0
