"""Any server that speaks OpenAI's chat protocol, called directly."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from contextvars import Context
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from textautograd.engines._address import Address
from textautograd.engines._chat import LARGEST_REPLY, Provider
from textautograd.engines._failures import complaint, shown
from textautograd.engines._per_loop import PerLoop
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import (
    ConnectionFailed,
    EngineError,
    IncompleteReplyError,
    NotFoundError,
    TimeoutExpired,
    UsageError,
)

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Task

    from aiohttp import ClientSession


class HTTP(Provider):
    """The chat model `model` of the server at `api_base`.

    `api_base` ends where `/chat/completions` begins. `timeout` is in seconds, for one call. A pool
    of connections is kept for each event loop; it closes with the loop, or by `close`. Proxies are
    those of the environment. Redirects are not followed: key and prompts go to no other address
    than the one given. Another process can be sent one by pickle, with its key.
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
        self._address = Address(api_base)
        super().__init__(model, structured, timeout, api_key, self._address.secrets)
        self._headers = {"Content-Type": "application/json"}
        if self._key is not None:
            self._headers["Authorization"] = f"Bearer {self._key}"
        if self._address.has_login and self._key is not None:
            raise UsageError("give either api_key= or a login in api_base=, not both")
        self._pools = PerLoop(self._pool)

    def _pool(self) -> _Pool:
        return _Pool(self._address.endpoint, self._headers, self.timeout)

    @property
    def api_base(self) -> str:
        """The server's address, without a login or a query."""
        return self._address.shown

    @property
    def whose(self) -> str:
        return f"{self.model!r} at {self._address.host}"

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
        content = _parsed(body)
        if 300 <= status < 400:
            raise self._redirected(status, headers.get("Location", ""))
        if status >= 400:
            raise self.failed(
                complaint(status, self._secrets.redacted_in(content), headers), request
            )
        if isinstance(content, str):
            content = self._secrets.redacted(content)
            error = IncompleteReplyError(
                f"{self._address.host} sent no JSON object: {shown(content)}",
                status=status,
                text=content,
            )
            error.usage = Usage(calls=1)  # it may have been paid for
            raise error
        return self.read(content, request)

    def _redirected(self, status: int, location: str) -> NotFoundError:
        try:
            there = Address(urljoin(self._address.endpoint, location)).shown
        except ValueError:  # a UsageError is one
            there = ""
        place = self._secrets.redacted(there)
        hint = (
            f"redirects to {place}: give that as api_base=" if location and place else "redirects"
        )
        return NotFoundError(f"{status}: {self._address.host} {hint}", status=status)

    async def _post(self, data: bytes) -> tuple[int, Mapping[str, str], bytes] | EngineError:
        import aiohttp

        session = self._pools.here().session
        body = bytearray()
        host = self._address.host
        try:
            async with session.post(
                self._address.endpoint, data=BytesIO(data), allow_redirects=False
            ) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > LARGEST_REPLY:
                        error = IncompleteReplyError(
                            f"{host} sent more than {LARGEST_REPLY:,} bytes",
                            status=response.status,
                        )
                        error.usage = Usage(calls=1) if response.status == 200 else None
                        return error
                return response.status, response.headers, bytes(body)
        except TimeoutError:
            return TimeoutExpired(f"{host} sent no reply within {self.timeout} s: raise timeout=")
        except aiohttp.ClientConnectorCertificateError:
            return EngineError(f"the certificate of {host} is not trusted")
        except aiohttp.ClientSSLError:
            return ConnectionFailed(f"no TLS with {host}: is it http:// and not https://?")
        except aiohttp.ClientProxyConnectionError:
            return ConnectionFailed("cannot connect to the proxy that the environment names")
        except aiohttp.ClientConnectorError as error:
            reason = _reason(error.os_error)
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
    """One event loop's connections. A task closes them when it is cancelled: when this is dropped,
    and, as every task is, when its loop ends."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float | None) -> None:
        import asyncio

        import aiohttp

        self.session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout),
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=_goes_through_a_proxy(url),
        )
        self._keeper = asyncio.create_task(_keep(self.session), context=Context())
        loop = asyncio.get_running_loop()
        dropped = weakref.finalize(self, _cancel, loop, self._keeper)
        dropped.atexit = False
        self._keeper.add_done_callback(lambda _: dropped.detach())

    async def close(self) -> None:
        import asyncio

        self._keeper.cancel()
        await asyncio.wait([self._keeper])


async def _keep(session: ClientSession) -> None:
    import asyncio

    async with session:
        await asyncio.get_running_loop().create_future()


def _cancel(loop: AbstractEventLoop, keeper: Task[None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(keeper.cancel)


def _goes_through_a_proxy(url: str) -> bool:
    # Asked once for each pool: aiohttp's `trust_env` asks, and reads ~/.netrc, at every request.
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    return parts.scheme in getproxies() and not proxy_bypass(parts.hostname or "")


def _parsed(body: bytes) -> Any:
    """The JSON in a body, or its text."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def _reason(error: OSError) -> str:
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or type(error).__name__
