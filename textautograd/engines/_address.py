"""Where a server is, with and without what must not be shown."""

from __future__ import annotations

import base64
import hashlib
import re
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from textautograd.errors import UsageError

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_KEY = re.compile(r"(sk|pk|key|token)[-_].{6,}|(?=.*[0-9])[A-Za-z0-9_-]{32,}", re.I)
_HOST = re.compile(rb"[A-Za-z0-9._:%-]+")


class Address:
    """Where the server is: `endpoint` to call, `shown` and `host` to show, without secrets: login,
    query, and those parts of the path that look like a key."""

    def __init__(self, api_base: str) -> None:
        parts = _parts(api_base)
        if parts is None:
            raise UsageError("api_base must be an address such as http://127.0.0.1:8000/v1")
        host, port = parts.hostname or "", parts.port
        name = f"[{host}]" if ":" in host else host
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self.host = f"{name}:{port or (443 if parts.scheme == 'https' else 80)}"
        shown = "/".join(map(_without_key, path.split("/")))
        self.shown = f"{parts.scheme}://{name}{f':{port}' if port else ''}{shown}"
        self.endpoint = urlunsplit(parts._replace(path=f"{path}/chat/completions", fragment=""))
        self.is_confidential = parts.scheme == "https" or host in _THIS_MACHINE
        self.has_login = parts.username is not None
        values = [pair.partition("=")[2] for pair in parts.query.split("&")]
        keys = [segment for segment in path.split("/") if _KEY.fullmatch(segment)]
        login = [parts.username, parts.password, *_basic(parts.username, parts.password)]
        hidden = [*login, *values, *keys]
        self.secrets = [secret for secret in hidden if secret]


def _without_key(segment: str) -> str:
    """A part of the path; of one that looks like a key only what tells it from another."""
    if not _KEY.fullmatch(segment):
        return segment
    return f"[key {hashlib.sha256(segment.encode()).hexdigest()[:8]}]"


def _parts(api_base: str) -> SplitResult | None:
    """The address, taken apart; `None` where a client could not use it."""
    import yarl  # the client's own reader, which is stricter than the standard library's

    try:
        parts = urlsplit(api_base.strip())
        yarl.URL(parts.geturl())
        api_base.encode()
        host = (parts.hostname or "").encode("idna")
        is_one = _HOST.fullmatch(host) and parts.port != 0 and "\\" not in parts.netloc
    except (ValueError, AttributeError, TypeError):
        return None
    return parts if is_one and parts.scheme in ("http", "https") else None


def _basic(username: str | None, password: str | None) -> list[str]:
    """The login as the Authorization header writes it."""
    login = unquote(f"{username or ''}:{password or ''}")
    ways = [login.encode(code, "replace") for code in ("latin-1", "utf-8")]
    return [base64.b64encode(way).decode().rstrip("=") for way in ways if login != ":"]
