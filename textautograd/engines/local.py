"""llama.cpp in this process: a small model that comes with the extra `local`, or any GGUF file.

One server for each file and context runs in threads of this process and is shared by all engines
that name it. It listens on loopback, behind a key that only this process knows, so that a call is
one that `HTTP` makes: the same reading of replies and failures, and a call given up is a
connection closed, upon which llama.cpp stops generating.

A reply at temperature 0 may still depend on what else is in flight, because llama.cpp computes
concurrent requests as one batch, and sums in another order: rarely, and by a tie between tokens.
"""

from __future__ import annotations

import atexit
import os
import secrets
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textautograd.checking import whole
from textautograd.engines._checks import model_name
from textautograd.engines._model_files import INSTALL, fetch, place, size_of
from textautograd.engines.http import HTTP
from textautograd.errors import UsageError
from textautograd.loop import keep_for_good

if TYPE_CHECKING:
    from textautograd.engines.base import Reply, Request

_SLOTS = 4  # requests computed at once
_CONTEXT = 4096  # tokens for each of them
_MAX_TOKENS = 512  # where a request sets no limit, so that nothing runs for ever
_MOST_THREADS = 8  # small models gain nothing from more
_SEEDS = 2**32 - 1  # the number itself asks llama.cpp for a random one
_CACHE_MIB = 256  # for prompts whose slot went to another; llama.cpp's own default is 8192


class Local:
    """The model `name`: "local", "local/qwen2.5-coder-1.5b", "local/qwen2.5-coder-0.5b" or
    "local/<path>.gguf".

    "local" is SmolLM2-135M. The others are looked for in the user's cache directory and fetched
    there from the Hugging Face hub (HF_ENDPOINT names a mirror) by the first call, which loads the
    model as well, off the event loop. `n_ctx` is the context of one request in tokens. `timeout`
    is in seconds and counts the wait for the calls ahead; by default there is none, as every reply
    ends at `max_tokens`. What a request leaves open is filled from the sampling arguments.

    Raises:
        UsageError: no such model or file.
    """

    metered = False
    max_concurrency = _SLOTS

    def __init__(
        self,
        name: str = "local",
        *,
        structured: str = "auto",
        timeout: float | None = None,
        n_ctx: int = _CONTEXT,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> None:
        whole("n_ctx", n_ctx)
        self._name = name
        self.path = place(model_name(name))
        self._n_ctx = n_ctx
        sampling: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "seed": seed,
            "stop": [stop] if isinstance(stop, str) else stop,
        }
        self._sampling = {key: value for key, value in sampling.items() if value is not None}
        self._http: tuple[_Server, HTTP] | None = None
        self._unsent = HTTP(
            self.path.name, "http://127.0.0.1", timeout=timeout, structured=structured
        )

    async def complete(self, request: Request) -> Reply:
        import asyncio

        server = _running.get(self._key)
        if server is None:
            server = await asyncio.to_thread(_serve, self._name, *self._key)
        return await self._client(server).complete(self._filled(request))

    def _filled(self, request: Request) -> Request:
        # Draws are told apart by `sample`: as the seed, it makes each of them repeatable.
        defaults = {"max_tokens": _MAX_TOKENS, "seed": request.sample % _SEEDS, **self._sampling}
        missing: Any = {k: v for k, v in defaults.items() if getattr(request, k) is None}
        return replace(request, **missing)

    def _client(self, server: _Server) -> HTTP:
        if self._http is None or self._http[0] is not server:
            self._http = (
                server,
                _Free(
                    self.path.name,
                    server.address,
                    api_key=server.key,
                    timeout=self._unsent.timeout,
                    structured=self._unsent.structured,
                ),
            )
        return self._http[1]

    @property
    def _key(self) -> tuple[Path, int]:
        return self.path, self._n_ctx

    @property
    def structured(self) -> str:
        return (self._http[1] if self._http else self._unsent).structured

    @property
    def identity(self) -> str:
        """The file's name and size: other weights under the same name are another model."""
        size = size_of(self._name, self.path)
        extra = f":{self._sampling}" if self._sampling else ""
        return f"local:{self.path.name}:{size}{extra}"

    async def close(self) -> None:
        """Closes the running loop's connections. The model stays loaded, as others may share it."""
        if self._http is not None:
            await self._http[1].close()

    def __deepcopy__(self, memo: dict[int, Any]) -> Local:
        return self  # a handle, as a device is

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_http": None}  # another process has a server of its own

    def __repr__(self) -> str:
        return f"Local({self._name!r})"


class _Free(HTTP):
    """What this machine computes costs no dollars."""

    def read(self, body: Any, request: Request, cost: float | None = 0.0) -> Reply:
        return super().read(body, request, cost)


class _Server:
    """A running llama.cpp server: its address, its key, and the object that keeps it running."""

    def __init__(self, path: Path, n_ctx: int) -> None:
        params, make = _parameters()
        threads = min(
            len(os.sched_getaffinity(0)) if _has_affinity else os.cpu_count() or 1, _MOST_THREADS
        )
        params.model.path = str(path)
        params.n_parallel = _SLOTS
        params.n_ctx = _SLOTS * n_ctx  # all slots together
        params.fit_params = False  # which would lower n_ctx instead of failing
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib = _CACHE_MIB
        params.verbosity = -1  # nothing on the terminal
        self.key = secrets.token_urlsafe(24)
        params.api_keys = [self.key]
        params.ui = params.endpoint_slots = params.endpoint_props = False
        try:
            self._server = make(params)
        except RuntimeError as error:
            raise UsageError(f"llama.cpp cannot load {path}: {error}") from None
        self.address = f"{self._server.listening_address}/v1"

    def end(self) -> None:
        """Stops it, also in the middle of calls."""
        if _is_child:
            self.abandon()
        del self._server

    def abandon(self) -> None:
        """Leaves the server for good: its destructor waits for threads, also for one that all
        servers share, and those of before a fork are the parent's: that would be for ever."""
        keep_for_good(self._server)


_has_affinity = hasattr(os, "sched_getaffinity")
_running: dict[tuple[Path, int], _Server] = {}
_loading = threading.Lock()
_is_child = False  # of a process that had llama.cpp's threads


def _serve(name: str, path: Path, n_ctx: int) -> _Server:
    """The process's server for this file; the first caller loads it, others wait."""
    with _loading:
        server = _running.get((path, n_ctx))
        if server is None:
            if not path.is_file():
                fetch(name, path)
            server = _running[path, n_ctx] = _Server(path, n_ctx)
        return server


def _in_child() -> None:
    global _loading, _is_child
    _loading = threading.Lock()
    if "xllamacpp" in sys.modules:
        _is_child = True
        for server in _running.values():
            server.abandon()
        _running.clear()
        _exit_without_destructors()


def _exit_without_destructors() -> None:
    """llama.cpp's global objects, as its servers, would wait at exit for the parent's threads.
    The handler comes before theirs, after all of Python's own."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # in glibc, whose condition variables wait for their waiters
        libc.on_exit(libc._exit, None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _at_exit() -> None:
    """Ends the servers while the interpreter is whole, whoever still holds an engine."""
    for server in _running.values():
        server.end()
    _running.clear()


atexit.register(_at_exit)


def _parameters() -> tuple[Any, Any]:
    # llama.cpp's threads wait for each other by spinning, hundreds of times a token. Where another
    # process wants the processor too, spinning long makes that 5 to 10 times slower.
    spin = "GOMP_SPINCOUNT"
    if not {spin, "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ[spin] = "2000"
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        if error.name != "xllamacpp":
            raise
        raise UsageError(f"a local model needs llama.cpp: {INSTALL}") from None
    return xllamacpp.CommonParams(), xllamacpp.Server
