"""Keys and logins, and texts without them."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote

_SHORTEST = 6  # characters; shorter ones are no secrets ("EMPTY", "x") but parts of words


class Secrets:
    """What a server may repeat, in every form in which it may, and nobody may see."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= _SHORTEST}
        self._forms = sorted(forms, key=len, reverse=True)  # a part would spoil the whole

    def redacted(self, text: str) -> str:
        """The text without secrets."""
        for form in self._forms:
            text = text.replace(form, "[redacted]")
        return text

    def redacted_in(self, value: Any) -> Any:
        """Parsed JSON without secrets."""
        try:
            return self._redacted_in(value)
        except RecursionError:
            return "(nested too deeply to be shown)"

    def _redacted_in(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, list):
            return [self._redacted_in(v) for v in value]
        if isinstance(value, dict):
            return {self.redacted(str(k)): self._redacted_in(v) for k, v in value.items()}
        return value


def _forms(secret: str) -> set[str]:
    """It itself, and as JSON, Python, an address, HTML and base64 write it."""
    plain = {secret, unquote(secret)}
    forms = set(plain)
    for form in plain:
        forms |= {json.dumps(form)[1:-1], json.dumps(form, ensure_ascii=False)[1:-1]}
        forms |= {
            repr(form)[1:-1],
            quote(form, errors="replace"),
            quote(form, "", errors="replace"),
            html.escape(form),
            html.escape(form, quote=False),
            base64.b64encode(form.encode(errors="replace")).decode().rstrip("="),
        }
    return forms
