"""What a provider says when it fails, read into the package's errors."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from textautograd.errors import (
    AuthenticationError,
    BadRequestError,
    ContentFilterError,
    ContextOverflowError,
    EngineError,
    NoCreditError,
    NotFoundError,
    RateLimitError,
    ServerError,
)

_SHOWN = 300  # characters of a server's own words

_CONTEXT = re.compile(
    r"context[_ ]length|maximum context|context[_ ]size|context window|prompt is too long", re.I
)
_FILTER = re.compile(r"content[_ ](filter|policy|management)|ResponsibleAI|moderation", re.I)
_SCHEMA = re.compile(
    r"response[_ ]format|json[_ ]?schema|structured[_ ]?outputs?|guided|grammar", re.I
)
_STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "insufficient_quota": 402,
}


@dataclass(slots=True, frozen=True)
class Complaint:
    """What a server says of a failure: its status, its words, and its own code for it."""

    status: int
    words: str
    code: str = ""
    retry_after: float | None = None

    @property
    def rejects_schema(self) -> bool:
        """Whether it is the JSON schema that the server does not take."""
        said = f"{self.code} {self.words}"
        is_other = _CONTEXT.search(said) or _FILTER.search(said)
        return self.status in (400, 422) and not is_other and bool(_SCHEMA.search(said))

    def error(self, whose: str) -> EngineError:
        """The package's error for it; `whose` names model and server."""
        message = f"{self.status}: {self.words or 'no explanation'} ({whose})"
        said = f"{self.code} {self.words}"
        status = self.status
        if status in (400, 413, 422, 500) and _CONTEXT.search(said):
            return ContextOverflowError(message, status=status)
        if status in (400, 403) and _FILTER.search(said):
            return ContentFilterError(message, status=status)
        if status in (401, 403):
            return AuthenticationError(f"{message}: check the key, api_key=", status=status)
        if status in (404, 405, 410):
            return NotFoundError(f"{message}: check model and address", status=status)
        if status == 402 or self.code == "insufficient_quota":
            return NoCreditError(f"{message}: no credit left", status=status)
        if status == 429:
            return RateLimitError(message, status=status, retry_after=self.retry_after)
        if status in (408, 409, 425) or status >= 500:
            return ServerError(message, status=status, retry_after=self.retry_after)
        return BadRequestError(message, status=status)


def complaint(status: int, content: Any, headers: Mapping[str, str]) -> Complaint:
    """Reads a reply whose status is no success: parsed JSON, or the text where it is none."""
    inner = content.get("error", content) if isinstance(content, dict) else content
    words, code = _words(inner)
    return Complaint(status, words, code, retry_after(headers))


def complaint_inside(error: Any) -> Complaint:
    """Reads an `error` that came with status 200: by its own code, else as the server's failure."""
    words, code = _words(error)
    kind = error.get("type") if isinstance(error, dict) else None
    if re.fullmatch("[45][0-9][0-9]", code):
        return Complaint(int(code), words, code)
    status = _STATUS_OF_CODE.get(code) or _STATUS_OF_CODE.get(str(kind)) or 500
    return Complaint(status, words, code)


def _words(error: Any) -> tuple[str, str]:
    if not isinstance(error, dict):
        return shown(error if isinstance(error, str) else json.dumps(error)), ""
    words = next((error[k] for k in ("message", "detail", "error") if error.get(k)), error)
    code = error.get("code")
    text = words if isinstance(words, str) else json.dumps(words)
    return shown(text), str(code) if isinstance(code, (str, int)) else ""


def shown(text: str) -> str:
    """A server's own words, on one line and of bounded length."""
    text = " ".join(text[: 10 * _SHOWN].split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds the server asks to wait, at least 0; `None` where it does not say."""
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return max(0.0, seconds) if abs(seconds) < 1e9 else None
