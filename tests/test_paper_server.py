"""The benchmarks' model server: it routes by model, and meters by run and phase."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fault_server import Faults, answer, faults, refusal
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.served import served
from benchmarks.paper.server import MAX_TOKENS, Upstream, application, main
from benchmarks.paper.unpack import FIVE_BITS, unpacked

MESSAGES = [{"role": "user", "content": "Hi."}]


class Client:
    """What a run sees of the server."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def chat(self, key: str = "r", model: str = "a", **body: Any) -> tuple[int, Any]:
        sent = {"model": model, "messages": MESSAGES} | body
        headers = {"Authorization": f"Bearer {key}"}
        address = f"{self.url}/chat/completions"
        async with self.session.post(address, json=sent, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> Any:
        async with self.session.get(f"{self.url}/{path}") as response:
            return await response.json()


def through(
    use: Callable[[Client], Awaitable[Any]], keep: Path | None = None, **models: Faults | str
) -> Any:
    """What `use` finds behind the server in front of these models."""
    routes = {
        name: Upstream(up if isinstance(up, str) else up.url, f"key of {name}")
        for name, up in models.items()
    }

    async def run() -> Any:
        app = application(routes, keep)
        async with TestServer(app) as server, aiohttp.ClientSession() as session:
            return await use(Client(session, str(server.make_url("/v1"))))

    return asyncio.run(run())


def test_it_routes_by_model_and_forwards_the_rest_as_it_is() -> None:
    async def use(client: Client) -> Any:
        extra = {"temperature": 0, "max_tokens": 3, "stop": ["x"], "unknown": {"a": [1]}}
        return await client.chat(model="b", **extra), await client.get("models")

    with faults(answer("from a")) as a, faults(answer("from b")) as b:
        (status, reply), models = through(use, a=a, b=b)
    assert status == 200 and reply["choices"][0]["message"]["content"] == "from b"
    assert not a.bodies and b.paths == ["/v1/chat/completions"]
    assert b.bodies == [
        {"model": "b", "messages": MESSAGES, "temperature": 0, "max_tokens": 3}
        | {"stop": ["x"], "unknown": {"a": [1]}}
    ]
    assert b.headers[0]["Authorization"] == "Bearer key of b"  # never the run's
    assert b.headers[0]["Connection"] == "close"  # an idle connection may be closed as it is used
    assert [model["id"] for model in models["data"]] == ["a", "b"]


def test_no_reply_runs_for_ever() -> None:
    async def use(client: Client) -> None:
        await client.chat()
        await client.chat(max_tokens=None)
        await client.chat(max_completion_tokens=5)

    with faults(answer()) as a:
        through(use, a=a)
    assert [body.get("max_tokens") for body in a.bodies] == [MAX_TOKENS, MAX_TOKENS, None]


def test_it_meters_by_run_and_phase() -> None:
    async def use(client: Client) -> Any:
        await client.chat("r/forward")
        await client.chat("r/forward")
        await client.chat("r")
        await client.chat("other/forward")
        return [await client.get(f"usage?run={run}") for run in ("r", "other", "none")]

    with faults(answer()) as a:
        r, other, none = through(use, a=a)
    seconds = r["forward"].pop("seconds")
    counts = {"input_tokens": 14, "cached_tokens": 4, "output_tokens": 6, "errors": 0}
    assert seconds > 0 and r["forward"] == {"calls": 2, **counts}
    assert r[""]["calls"] == 1 and r[""]["output_tokens"] == 3
    assert set(r) == {"forward", ""} and set(other) == {"forward"} and none == {}


def test_what_is_kept_is_asked_once_and_metered_each_time(tmp_path: Path) -> None:
    async def use(client: Client) -> Any:
        found = [
            await client.chat("r/before", temperature=0),
            await client.chat("s", temperature=0),
        ]
        found += [await client.chat("s", temperature=0, max_tokens=9)]
        found += [await client.chat("s", temperature=1), await client.chat("s", temperature=1)]
        return found, await client.get("usage?run=r"), await client.get("usage?run=s")

    script = [refusal(500, "busy"), *(answer(f"reply {i}") for i in range(4))]
    with faults(*script) as a:
        (first, second, *others), r, s = through(use, tmp_path / "kept.sqlite", a=a)
        again = through(lambda client: client.chat(temperature=0), tmp_path / "kept.sqlite", a=a)
    assert first[0] == 500 and second[0] == 200  # a failure is not kept
    assert again == second and len(a.bodies) == 5
    assert len({str(reply) for _, reply in (second, *others)}) == 4
    assert r["before"]["output_tokens"] == 0 and s[""]["output_tokens"] == 12

    async def twice(client: Client) -> Any:
        await client.chat("r", temperature=0), await client.chat("r/before", temperature=0)
        return await client.get("usage?run=r")

    with faults() as a:
        metered = through(twice, tmp_path / "kept.sqlite", a=a)
    counts = {"calls": 1, "output_tokens": 3, "errors": 0}
    assert all(metered[phase].items() >= counts.items() for phase in ("", "before"))
    assert not a.bodies


def test_what_is_kept_is_computed_once_where_it_is_asked_at_the_same_time(tmp_path: Path) -> None:
    here, asked = threading.Event(), threading.Event()

    def slow(body: Any) -> Any:
        here.set()
        assert asked.wait(60)
        return answer("once")

    async def use(client: Client) -> Any:
        first = asyncio.create_task(client.chat("r", temperature=0))
        await asyncio.to_thread(here.wait, 60)
        second = asyncio.create_task(client.chat("s", temperature=0))
        while not await client.get("usage?run=s"):
            await asyncio.sleep(0)
        first.cancel()  # who asked first is gone
        asked.set()
        return await second, await client.chat("r", temperature=0), await client.get("usage?run=s")

    with faults(slow, answer("twice")) as a:
        second, third, used = through(use, tmp_path / "kept.sqlite", a=a)
    assert second == third and second[1]["choices"][0]["message"]["content"] == "once"
    assert len(a.bodies) == 1 and used[""]["output_tokens"] == 3


EMPTY: list[Any] = [
    {"choices": [{"message": None}]},
    {"choices": [{"message": {"content": None}, "finish_reason": "error"}]},
    {"choices": [{"message": {"content": "x"}}], "error": {"message": "overloaded"}},
    {"choices": [{}]},
]


@pytest.mark.parametrize("body", EMPTY)
def test_only_good_replies_are_kept(tmp_path: Path, body: Any) -> None:
    async def use(client: Client) -> Any:
        return [await client.chat(temperature=0) for _ in range(3)]

    with faults({"json": body}, answer("good")) as a:
        _, second, third = through(use, tmp_path / "kept.sqlite", a=a)
    assert second == third and second[1]["choices"][0]["message"]["content"] == "good"
    assert len(a.bodies) == 2


@pytest.mark.parametrize("damage", ["{", "[]", "{}"])
def test_a_damaged_reply_is_asked_for_again(tmp_path: Path, damage: str) -> None:
    keep = tmp_path / "kept.sqlite"

    async def use(client: Client) -> Any:
        return await client.chat(temperature=0)

    with faults(answer("first"), answer("second")) as a:
        through(use, keep, a=a)
        with sqlite3.connect(keep) as file:
            file.execute("UPDATE replies SET value = ?", [damage])
        file.close()
        found = [through(use, keep, a=a) for _ in range(2)]
    assert [body["choices"][0]["message"]["content"] for _, body in found] == ["second"] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--upstream", "FOO"], "NAME=http://"),
        (["--upstream", "=http://127.0.0.1:9/v1"], "NAME=http://"),
        (["--upstream", "a=http://127.0.0.1:9/v1", "--port", "99999"], "no port 99999"),
        (["--upstream", "a=http://127.0.0.1:9/v1", "--keep", "."], "cannot be used"),
        (["--model", "nope"], "no model 'local/nope'"),
        ([], "name a --model or an --upstream"),
    ],
)
def test_what_cannot_work_ends_the_command_in_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["server", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert said in f"{end.value.code}{capsys.readouterr().err}"


def test_what_a_models_server_says_of_its_weights_is_passed_on() -> None:
    async def listed(request: web.Request) -> web.Response:
        meta = {"size": 7, "n_params": 5, "ftype": "Q4", "n_ctx": 8}
        return web.json_response({"data": [{"id": "/a/path", "meta": meta}]})

    async def several(request: web.Request) -> web.Response:
        data = [{"id": "c", "meta": {"size": 3}}, {"id": "b", "meta": {"size": 4}}]
        return web.json_response({"data": data})

    async def run() -> Any:
        own = web.Application()
        own.router.add_get("/v1/models", listed)
        own.router.add_get("/v2/models", several)
        async with TestServer(own) as model:
            routes = {"a": Upstream(str(model.make_url("/v1"))), "gone": Upstream("http://[::1]:9")}
            routes["b"] = Upstream(str(model.make_url("/v2")))
            async with TestServer(application(routes)) as server:
                url = str(server.make_url("/v1"))
                return await asyncio.to_thread(served, url, ["a", "b", "gone", "other"])

    assert asyncio.run(run()) == {"a": {"size": 7, "n_params": 5, "ftype": "Q4"}, "b": {"size": 4}}
    assert served("http://127.0.0.1:9/v1", ["a"]) == {}


@pytest.mark.parametrize(
    "body", ["", "[]", '{"data": ["a"]}', '{"data": [{"id": "a", "meta": 7}]}']
)
def test_what_is_no_list_of_models_tells_nothing_of_them(body: str) -> None:
    async def listed(request: web.Request) -> web.Response:
        return web.Response(text=body)

    async def run() -> Any:
        own = web.Application()
        own.router.add_get("/v1/models", listed)
        async with TestServer(own) as model:
            return await asyncio.to_thread(served, str(model.make_url("/v1")), ["a"])

    assert asyncio.run(run()) == {}


def test_several_replies_are_several_calls() -> None:
    async def use(client: Client) -> Any:
        return await client.chat(n=3, seed=7), await client.get("usage?run=r")

    with faults(lambda sent: answer(f"of seed {sent['seed']}")) as a:
        (status, reply), usage = through(use, a=a)
    texts = [choice["message"]["content"] for choice in reply["choices"]]
    assert status == 200 and texts == ["of seed 7", "of seed 8", "of seed 9"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert all("n" not in body for body in a.bodies)
    assert reply["usage"]["completion_tokens"] == 9 == usage[""]["output_tokens"]
    assert usage[""]["calls"] == 3


def test_failures_are_forwarded_and_counted() -> None:
    async def use(client: Client) -> Any:
        found = [await client.chat(n=2), await client.chat(), await client.chat()]
        found += [await client.chat(model="c"), await client.chat(model="gone")]
        found += [await client.chat(stream=True), await client.chat(n="two")]
        return found, await client.get("usage?run=r")

    script = [answer(), refusal(400, "too long"), refusal(503, "loading"), {"cut": b""}]
    with faults(*script) as a:
        found, usage = through(use, a=a, gone="http://127.0.0.1:9/v1")
    assert [status for status, _ in found] == [400, 503, 502, 404, 502, 400, 400]
    assert found[0][1]["error"]["message"] == "too long"
    assert usage[""]["errors"] == 7 and usage[""]["calls"] == 8
    assert usage[""]["output_tokens"] == 3  # also of a draw whose sister failed


def test_garbage_is_refused_in_json_and_counts_no_tokens() -> None:
    choices = {"choices": [{"message": {"content": "x"}}]}
    garbage: list[Any] = [[], None, {}, {"choices": {}}, {"choices": [1]}]
    odd = [[1], {"prompt_tokens": "x", "completion_tokens": -5}, {"prompt_tokens": True}]

    async def use(client: Client) -> Any:
        bad = [await client.chat() for _ in garbage]
        good = [await client.chat() for _ in odd]
        good.append(await client.chat(n=2))
        refused = [await client.chat(n=n) for n in (-3, 0, True, 1.5, 10**9)]
        refused.append(await client.chat(n=2, seed="x"))
        return bad, good, refused, (await client.get("usage?run=r"))[""]

    script = [*garbage, *(choices | {"usage": usage} for usage in odd), choices, choices]
    with faults(*({"json": body} for body in script)) as a:
        bad, good, refused, usage = through(use, a=a)
    assert [status for status, _ in bad] == [502] * 5
    assert all("no choices" in body["error"]["message"] for _, body in bad)
    assert [status for status, _ in good] == [200] * 4
    assert [status for status, _ in refused] == [400] * 6
    assert usage["calls"] == 5 + 3 + 2 + 6 and usage["errors"] == 11
    assert usage["input_tokens"] == usage["output_tokens"] == usage["cached_tokens"] == 0


@given(st.binary(min_size=66, max_size=66))
def test_unpacked_weights_are_the_same_numbers(packed: bytes) -> None:
    blocks = np.frombuffer(packed, np.uint8).reshape(3, FIVE_BITS)
    for block, found in zip(blocks, unpacked(blocks), strict=True):
        fifth = int.from_bytes(block[2:6].tobytes(), "little")
        halves = [b & 15 for b in block[6:].tolist()] + [b >> 4 for b in block[6:].tolist()]
        numbers = [low + 16 * (fifth >> i & 1) - 16 for i, low in enumerate(halves)]
        assert found[:2].tolist() == block[:2].tolist()
        assert found[2:].view(np.int8).tolist() == numbers
