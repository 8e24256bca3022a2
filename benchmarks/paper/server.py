"""Local models behind one OpenAI-compatible address that meters every run.

    python -m benchmarks.paper.server --model qwen2.5-coder-0.5b --model qwen2.5-coder-1.5b
    python -m benchmarks.paper.server --upstream NAME=http://127.0.0.1:8091/v1

The API key is the name of a run, and may name a phase of it: "Bearer RUN" or "Bearer RUN/phase".
`GET /v1/usage?run=RUN` tells calls, tokens, errors and seconds (of all calls, added up) by phase.
So systems that know nothing of each other are counted in the same way. The body's "model" chooses
the model; `max_tokens` is set where it is missing, so that nothing runs for ever; `n` replies are
`n` calls, as llama.cpp makes one at a time. All else is forwarded as it came. With `--keep FILE`
good replies at temperature 0 are kept, and are the answer, metered as they were, when the same is
asked again, or at the same time: so what systems ask in common is computed once, and a run that
broke off goes on fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.paper.numbers import at_least, is_count
from benchmarks.paper.served import meta
from textautograd.engines._store import Store
from textautograd.errors import Error
from textautograd.identity import digest

MAX_TOKENS = 512
SLOTS = 8  # requests computed at once
SOON = aiohttp.ClientTimeout(total=5)  # what a model is must not be waited for
REPLIES = 128  # to one request at most, as OpenAI's
CONTEXT = 3072  # tokens for each of them; one may use what the others leave


@dataclass
class Usage:
    """What a phase of a run has used; seconds are those of its calls, added up."""

    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    errors: int = 0
    seconds: float = 0.0

    def add(self, usage: Any) -> None:
        """What a reply says that it took; what is no number of tokens counts as none."""
        self.input_tokens += _tokens(usage, "prompt_tokens")
        self.output_tokens += _tokens(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details") if isinstance(usage, dict) else None
        self.cached_tokens += _tokens(details, "cached_tokens")


@dataclass(frozen=True)
class Upstream:
    """A model's own server: its base URL, which ends in /v1, and its key."""

    url: str
    key: str = ""


@dataclass
class Answer:
    """An upstream's, good or bad."""

    status: int
    body: Any


class Proxy:
    """The handlers, and what was used, by run and phase."""

    def __init__(self, models: Mapping[str, Upstream], kept: Store | None = None) -> None:
        self.models = models
        self.kept = kept
        self.used: dict[str, dict[str, Usage]] = {}
        self.asked: dict[str, asyncio.Task[Answer]] = {}  # what is to be kept, under way
        self.session: aiohttp.ClientSession

    async def connected(self, app: web.Application) -> AsyncIterator[None]:
        """The connections to the models, as long as the server runs."""
        # llama.cpp queues what finds no slot, so neither time nor connections are limited here.
        timeout = aiohttp.ClientTimeout(total=None)
        # It closes idle connections, also one on which a request is just being sent.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self.session:
            yield

    async def list_models(self, request: web.Request) -> web.Response:
        """GET /v1/models, with what each model's own server says of it."""
        told = await asyncio.gather(*starmap(self._meta, self.models.items()))
        data = [
            {"id": name, "object": "model", "owned_by": "local", "meta": meta}
            for name, meta in zip(self.models, told, strict=True)
        ]
        return web.json_response({"object": "list", "data": data})

    async def _meta(self, name: str, upstream: Upstream) -> dict[str, Any]:
        asked = self.session.get(f"{upstream.url}/models", headers=_of(upstream), timeout=SOON)
        try:
            async with asked as reply:
                models = (await reply.json(content_type=None))["data"]
                (model,) = [m for m in models if len(models) == 1 or m["id"] == name]
                return meta(model)
        except (aiohttp.ClientError, ValueError, LookupError, TypeError, AttributeError):
            return {}
        except TimeoutError:
            return {}

    async def usage(self, request: web.Request) -> web.Response:
        """GET /v1/usage?run=RUN."""
        phases = self.used.get(request.query.get("run", ""), {})
        return web.json_response({phase: asdict(used) for phase, used in phases.items()})

    async def chat(self, request: web.Request) -> web.Response:
        """POST /v1/chat/completions."""
        run, _, phase = _key(request).partition("/")
        used = self.used.setdefault(run, {}).setdefault(phase, Usage())
        used.calls += 1
        begun, failed = time.perf_counter(), True
        try:
            answer = await self._answer(request, used)
            failed = answer.status != 200
        finally:  # also where the client has gone
            used.errors += failed
            used.seconds += time.perf_counter() - begun
        return web.json_response(answer.body, status=answer.status)

    async def _answer(self, request: web.Request, used: Usage) -> Answer:
        try:
            body = await request.json()
        except (ValueError, RecursionError, LookupError, web.RequestPayloadError):
            body = None  # or in an encoding that there is none of
        if not isinstance(body, dict):
            return _refusal(400, "the body is no JSON object")
        upstream = self.models.get(str(body.get("model")))
        if upstream is None:
            return _refusal(404, f"no model {body.get('model')!r}: {', '.join(self.models)}")
        if body.get("stream"):
            return _refusal(400, "replies cannot be streamed: they are metered")
        if body.get("max_tokens") is None and body.get("max_completion_tokens") is None:
            body["max_tokens"] = MAX_TOKENS
        wanted = body.pop("n", None)
        wanted = 1 if wanted is None else wanted
        if type(wanted) is not int or not 1 <= wanted <= REPLIES:
            return _refusal(400, f"n must be from 1 to {REPLIES}, not {wanted!r:.80}")
        if wanted > 1 and type(body.get("seed", 0)) not in (int, type(None)):
            return _refusal(400, f"seed must be a whole number, not {body['seed']!r:.80}")
        used.calls += wanted - 1
        answers = await asyncio.gather(*(self._ask(upstream, b) for b in _draws(body, wanted)))
        for answer in answers:
            if answer.status == 200:
                used.add(answer.body.get("usage"))
        return next((a for a in answers if a.status != 200), None) or _joined(answers)

    async def _ask(self, upstream: Upstream, body: dict[str, Any]) -> Answer:
        if self.kept is None or body.get("temperature") != 0:
            return await self._send(upstream, body)
        key = digest(json.dumps(body, sort_keys=True))
        if (found := _read(self.kept.get(key))) is not None:
            return Answer(200, found)
        if key not in self.asked:
            self.asked[key] = asyncio.create_task(self._send(upstream, body))
            self.asked[key].add_done_callback(partial(self._keep, key))
        # Not cancelled with who asked: another may wait for it, too.
        return await asyncio.shield(self.asked[key])

    def _keep(self, key: str, task: asyncio.Task[Answer]) -> None:
        del self.asked[key]
        if task.cancelled() or task.exception() is not None or self.kept is None:
            return
        if (answer := task.result()).status == 200 and _is_good(answer.body):
            self.kept.replace(key, json.dumps(answer.body))

    async def _send(self, upstream: Upstream, body: dict[str, Any]) -> Answer:
        address = f"{upstream.url}/chat/completions"
        try:
            async with self.session.post(address, json=body, headers=_of(upstream)) as response:
                answer = Answer(response.status, await response.json(content_type=None))
        except (aiohttp.ClientError, ValueError, RecursionError, LookupError) as error:
            return _refusal(502, f"the model's server failed: {error}")
        if answer.status == 200 and not _is_completion(answer.body):
            return _refusal(502, f"the model's server sent no choices: {answer.body!r:.200}")
        return answer


def application(models: Mapping[str, Upstream], keep: Path | None = None) -> web.Application:
    """The server in front of these models."""
    kept = None if keep is None else Store(keep)
    if kept is not None:
        kept.get("")  # a file that cannot be used is found out now
    proxy = Proxy(models, kept)
    app = web.Application(client_max_size=2**26)
    app.cleanup_ctx.append(proxy.connected)
    app.router.add_post("/v1/chat/completions", proxy.chat)
    app.router.add_get("/v1/models", proxy.list_models)
    app.router.add_get("/v1/usage", proxy.usage)
    return app


def _key(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer").strip()


def _of(upstream: Upstream) -> dict[str, str]:
    return {"Authorization": f"Bearer {upstream.key}"} if upstream.key else {}


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, {"error": {"message": message, "type": "invalid_request_error"}})


def _is_completion(body: Any) -> bool:
    choices = body.get("choices") if isinstance(body, dict) else None
    return isinstance(choices, list) and bool(choices) and all(isinstance(c, dict) for c in choices)


def _is_good(body: dict[str, Any]) -> bool:
    """Whether an answer is worth keeping: without a text, or an error, it may not come again."""
    messages = [choice.get("message") for choice in body["choices"]]
    texts = [m.get("content") for m in messages if isinstance(m, dict)]
    is_whole = len(texts) == len(messages) and all(isinstance(text, str) for text in texts)
    return is_whole and not body.get("error")


def _read(kept: str | None) -> Any:
    """A kept answer, or `None` where there is none, or a damaged one."""
    try:
        found = None if kept is None else json.loads(kept)
    except (ValueError, RecursionError):
        return None
    return found if _is_completion(found) else None


def _tokens(usage: Any, name: str) -> int:
    number = usage.get(name) if isinstance(usage, dict) else None
    return number if is_count(number) else 0


def _draws(body: dict[str, Any], wanted: int) -> list[dict[str, Any]]:
    # With one seed for all, the replies would be one.
    seed = body.get("seed")
    return [body if not i or seed is None else body | {"seed": seed + i} for i in range(wanted)]


def _joined(answers: list[Answer]) -> Answer:
    if len(answers) == 1:
        return answers[0]
    choices = [choice for answer in answers for choice in answer.body["choices"]]
    total = Usage()
    for answer in answers:
        total.add(answer.body.get("usage"))
    usage = {
        "prompt_tokens": total.input_tokens,
        "completion_tokens": total.output_tokens,
        "total_tokens": total.input_tokens + total.output_tokens,
    }
    numbered = [choice | {"index": i} for i, choice in enumerate(choices)]
    return Answer(200, answers[0].body | {"choices": numbered, "usage": usage})


def load(name: str, slots: int, context: int, threads: int) -> tuple[Any, Upstream]:
    """A llama.cpp server in this process, which runs while it is referred to."""
    from textautograd.engines._model_files import fetch
    from textautograd.engines.local import Local, _parameters

    engine = f"local/{name}" if name != "local" else name
    path = Local(engine).path
    if not path.is_file():
        fetch(engine, path)
    params, make = _parameters()
    params.model.path = str(path)
    params.n_parallel = slots
    params.n_ctx = slots * context  # of all slots together
    params.kv_unified = True
    params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 1024
    params.verbosity = -1
    key = secrets.token_urlsafe(24)
    params.api_keys = [key]
    params.ui = params.endpoint_slots = params.endpoint_props = False
    server = make(params)
    return server, Upstream(f"{server.listening_address}/v1", key)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", default=[], help="as of ta.engine: local/…")
    parser.add_argument(
        "--upstream", action="append", default=[], help="NAME=URL: a model that another server has"
    )
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--keep", type=Path, help="a file for replies at temperature 0")
    some = at_least(1)
    parser.add_argument("--slots", type=some, default=SLOTS, help="requests computed at once")
    parser.add_argument("--context", type=some, default=CONTEXT, help="tokens of each, on average")
    parser.add_argument("--threads", type=some, default=min(os.cpu_count() or 1, 8))
    given = parser.parse_args()
    named = [u.partition("=") for u in given.upstream]
    for text, (name, _, url) in zip(given.upstream, named, strict=True):
        if not (name and url.startswith(("http://", "https://"))):
            parser.error(f"argument --upstream: NAME=http://…/v1, not {text!r}")
    if not (given.model or named):
        parser.error("name a --model or an --upstream")
    if not 0 <= given.port < 2**16:
        parser.error(f"argument --port: there is no port {given.port}")
    try:
        loaded = {n: load(n, given.slots, given.context, given.threads) for n in given.model}
        models = {name: upstream for name, (_, upstream) in loaded.items()}
        app = application(models | {name: Upstream(url) for name, _, url in named}, given.keep)
        # A client that has gone is a call given up, upon which llama.cpp stops generating.
        web.run_app(app, host="127.0.0.1", port=given.port, handler_cancellation=True)
    except (Error, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
