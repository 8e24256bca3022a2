"""Where a server is, with and without what must not be shown."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit, urlunsplit

from textautograd.errors import UsageError

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


class Address:
    """Where the server is: `endpoint` to call, `shown` and `host` to show, without secrets."""

    def __init__(self, api_base: str) -> None:
        try:
            parts = urlsplit(api_base.strip())
            port = parts.port
        except (ValueError, AttributeError):
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("api_base must be an address such as http://127.0.0.1:8000/v1")
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.host = f"{name}:{port or (443 if parts.scheme == 'https' else 80)}"
        self.shown = f"{parts.scheme}://{name}{f':{port}' if port else ''}{path}"
        self.endpoint = urlunsplit(parts._replace(path=f"{path}/chat/completions", fragment=""))
        self.is_confidential = parts.scheme == "https" or parts.hostname in _THIS_MACHINE
        self.has_login = parts.username is not None
        values = [pair.partition("=")[2] for pair in parts.query.split("&")]
        hidden = [parts.username, parts.password, *values]
        self.secrets = {form for s in hidden if s and len(s) > 5 for form in (s, unquote(s))}
