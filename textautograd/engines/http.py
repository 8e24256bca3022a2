"""Any server that speaks OpenAI's chat protocol, called directly."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextvars import Context
from io import BytesIO
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from textautograd.engines._chat import Provider
from textautograd.engines._failures import complaint, shown
from textautograd.engines._wrapper import PerLoop
from textautograd.engines.base import Reply, Request
from textautograd.errors import (
    ConnectionFailed,
    EngineError,
    IncompleteReplyError,
    NotFoundError,
    TimeoutExpired,
    UsageError,
)

if TYPE_CHECKING:
    from asyncio import Future, Task

    from aiohttp import ClientSession

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_LARGEST_BODY = 20 * 2**20  # bytes


class HTTP(Provider):
    """The chat model `model` of the server at `api_base`.

    `api_base` ends where `/chat/completions` begins. `timeout` is in seconds, for one call. A pool
    of connections is kept for each event loop; it closes with the loop, or by `close`. Proxies are
    those of the environment. Redirects are not followed: key and prompts go to no other address
    than the one given.
    """

    def __init__(
        self,
        model: str,
        api_base: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 120.0,
        structured: str = "auto",
    ) -> None:
        super().__init__(model, structured, timeout)
        self._address = Address(api_base)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {_header_value(api_key)}"
        if self._address.has_login and api_key is not None:
            raise UsageError("give either api_key= or a login in api_base=, not both")
        self._secrets = [s for s in (api_key and api_key.strip(), *self._address.secrets) if s]
        self._pools: PerLoop[_Pool] = PerLoop(lambda: _Pool(self._headers, self.timeout))

    @property
    def api_base(self) -> str:
        """The server's address, without a login or a query."""
        return self._address.shown

    @property
    def identity(self) -> str:
        return f"{self.model} at {self._address.shown}"

    def __repr__(self) -> str:
        return f"HTTP({self.model!r}, {self._address.shown!r})"

    async def complete(self, request: Request) -> Reply:
        data = json.dumps(self.payload(request)).encode()
        answer = await self._post(data)
        if isinstance(answer, EngineError):
            raise answer  # out here, where no exception that holds headers is its context
        status, headers, body = answer
        if 300 <= status < 400:
            target = urlsplit(headers.get("Location", ""))
            raise NotFoundError(
                f"{status}: {self._address.host} redirects to "
                f"{target.scheme}://{target.hostname}{target.path}: give that as api_base=",
                status=status,
            )
        if status >= 400:
            text = self.redacted(body.decode(errors="replace"))
            raise self.failed(complaint(status, text, headers), request)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError):
            content = body
        if isinstance(content, bytes):
            text = self.redacted(content.decode(errors="replace"))
            raise IncompleteReplyError(
                f"{self._address.host} sent no JSON: {shown(text)}", status=status, text=text
            )
        return self.read(content, request)

    async def _post(self, data: bytes) -> tuple[int, Mapping[str, str], bytes] | EngineError:
        import aiohttp

        session = await self._pools.here().session()
        body = bytearray()
        host = self._address.host
        try:
            async with session.post(
                self._address.endpoint, data=BytesIO(data), allow_redirects=False
            ) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _LARGEST_BODY:
                        return IncompleteReplyError(
                            f"{host} sent more than {_LARGEST_BODY >> 20} MB",
                            status=response.status,
                        )
                return response.status, response.headers, bytes(body)
        except TimeoutError:
            return TimeoutExpired(f"{host} sent no reply within {self.timeout} s: raise timeout=")
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno
            reason = os.strerror(number) if number and number > 0 else type(error).__name__
            return ConnectionFailed(f"cannot connect to {host} ({reason}): is the server running?")
        except aiohttp.ClientResponseError as error:
            return IncompleteReplyError(f"{host} sent what is not HTTP: {error.status}")
        except (aiohttp.ClientError, ConnectionError) as error:
            return ConnectionFailed(f"{host} cut the connection ({type(error).__name__})")

    async def close(self) -> None:
        """Closes the running loop's connections. The next call opens new ones."""
        pool = self._pools.pop()
        if pool is not None:
            await pool.close()


class _Pool:
    """One event loop's connections, owned by a task: they close when it is cancelled, as every
    task is when its loop ends."""

    def __init__(self, headers: Mapping[str, str], timeout: float | None) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        self._ready: Future[ClientSession] = loop.create_future()
        self._keeper: Task[None] = loop.create_task(self._keep(headers, timeout), context=Context())

    async def session(self) -> ClientSession:
        return self._ready.result() if self._ready.done() else await self._ready

    async def _keep(self, headers: Mapping[str, str], timeout: float | None) -> None:
        import asyncio

        import aiohttp

        async with aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout),
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=True,
        ) as session:
            self._ready.set_result(session)
            await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        import asyncio

        self._keeper.cancel()
        await asyncio.wait([self._keeper])


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


def _header_value(api_key: str) -> str:
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UsageError("api_key is empty or has characters that no key has")
    return key
