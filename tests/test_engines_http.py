"""The HTTP engine against a server that misbehaves: which error, how many requests, no secrets."""

from __future__ import annotations

import asyncio
import base64
import html
import itertools
import json
import math
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import yarl
from fault_server import Step, answer, faults, refusal
from hypothesis import given
from hypothesis import strategies as st

from textautograd import errors
from textautograd.engines import HTTP, Budget, Reply, Request, Retrying, Usage, call, engine
from textautograd.engines._failures import retry_after

KEY = "sk-planted-0123456789"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def ask(text: str = "hi", **fields: Any) -> Request:
    return Request([{"role": "user", "content": text}], **fields)


def run(model: Any, request: Request | None = None) -> Reply:
    async def once() -> Reply:
        try:
            return await call(model, request or ask())
        finally:
            await model.close()

    return asyncio.run(once())


async def no_wait(seconds: float) -> None:
    pass


def everything_said(error: BaseException) -> str:
    """The error and whatever is chained to it, as any log could show them."""
    said, seen = "", set()
    queue: list[BaseException | None] = [error]
    while queue:
        e = queue.pop()
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        said += f"{e!r} {e} {vars(e)!r} {''.join(traceback.format_exception(e))}"
        queue += [e.__cause__, e.__context__]
    return said


def test_sends_the_request_and_reads_reply_and_usage() -> None:
    with faults(answer("hello")) as server:
        request = ask(temperature=0.5, max_tokens=9, top_p=0.9, stop=("x",), seed=3, sample=4)
        reply = run(HTTP("tiny", server.url, api_key=KEY), request)
    assert reply == Reply("hello", "stop", Usage(7, 3, 2, None, 1))
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0.5,
            "max_tokens": 9,
            "top_p": 0.9,
            "stop": ["x"],
            "seed": 3,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


OVERFLOW = "This model's maximum context length is 8192 tokens"


@pytest.mark.parametrize(
    ("limits", "fit_in"),
    [({"calls": 41}, 41), ({"tokens": 41 * 30 + 29}, 41), ({"usd": 0.415}, 41)],
)
def test_64_calls_in_flight_pass_no_budget(limits: dict[str, Any], fit_in: int) -> None:
    """Every call costs all that it may. The server answers none of the second wave, after the one
    call that tells the price, before as many are there as the budget has room for."""
    together, calls = threading.Barrier(fit_in - 1), itertools.count()

    def dear(body: dict[str, Any]) -> Step:
        if next(calls):
            together.wait(60)
        step = answer()
        step["json"]["usage"] = {"prompt_tokens": 10, "completion_tokens": 20, "cost": 0.01}
        return step

    request = Request([{"role": "user", "content": "x" * 40}], max_tokens=20)

    async def flight(url: str) -> list[Any]:
        model = HTTP("tiny", url, api_key=KEY)
        first = await call(model, request)
        others = [call(model, request) for _ in range(64)]
        seen = await asyncio.gather(*others, return_exceptions=True)
        await model.close()
        return [first, *seen]

    with faults(dear) as server, Budget(**limits) as budget:
        seen = asyncio.run(flight(server.url))
    assert len(server.bodies) == fit_in == budget.spent.calls
    assert sum(isinstance(one, errors.BudgetExceeded) for one in seen) == 65 - fit_in
    assert budget.spent.tokens <= (budget.tokens or math.inf)
    assert (budget.spent.cost or 0) <= (budget.usd or math.inf)


FAULTS: list[tuple[Step, type[errors.Error], str]] = [
    (refusal(400, "bad"), errors.BadRequestError, "bad"),
    (refusal(422, "bad"), errors.BadRequestError, "bad"),
    (refusal(400, "no", "context_length_exceeded"), errors.ContextOverflowError, "no"),
    (refusal(400, OVERFLOW), errors.ContextOverflowError, "8192"),
    (refusal(400, "exceeds the available context size"), errors.ContextOverflowError, ""),
    (refusal(400, "no", "content_filter"), errors.ContentFilterError, "no"),
    (refusal(401), errors.AuthenticationError, "key"),
    (refusal(403), errors.AuthenticationError, "key"),
    (refusal(404), errors.NotFoundError, "model"),
    (refusal(408), errors.ServerError, "408"),
    (refusal(409), errors.ServerError, "409"),
    (refusal(425), errors.ServerError, "425"),
    (refusal(429), errors.RateLimitError, "429"),
    (refusal(429, "pay", "insufficient_quota"), errors.NoCreditError, "credit"),
    (refusal(402, "pay"), errors.NoCreditError, "credit"),
    (refusal(403, "moderation: input was flagged"), errors.ContentFilterError, "flagged"),
    (refusal(500), errors.ServerError, "500"),
    (refusal(503), errors.ServerError, "503"),
    (refusal(529), errors.ServerError, "529"),
    ({"status": 500, "raw": b"<html>oops</html>"}, errors.ServerError, "oops"),
    ({"status": 400, "json": {"detail": [{"msg": "x"}]}}, errors.BadRequestError, "x"),
    ({"status": 400, "json": ["odd"]}, errors.BadRequestError, "odd"),
    ({"json": {"error": {"message": "m", "code": 429}}}, errors.RateLimitError, "m"),
    (
        {"json": {"error": {"message": "m", "code": "invalid_api_key"}}},
        errors.AuthenticationError,
        "",
    ),
    ({"json": {"error": "broken"}}, errors.ServerError, "broken"),
    ({"json": {"error": {"code": ["odd"]}}}, errors.ServerError, "odd"),
    ({"json": {"error": {"code": "²²²"}}}, errors.ServerError, "500"),
    ({"json": {"error": {"code": "9" * 5000}}}, errors.ServerError, "500"),
    ({"json": {"error": {"code": "٤٠٠", "message": "m"}}}, errors.ServerError, "m"),
    ({"raw": b'{"error":' + b"[" * 900 + b"]" * 900 + b"}"}, errors.ServerError, "deeply"),
    ({"raw": b"[" * 900 + b"]" * 900}, errors.IncompleteReplyError, "deeply"),
    ({"raw": b"<html>proxy</html>"}, errors.IncompleteReplyError, "proxy"),
    ({"raw": b'{"choices": ['}, errors.IncompleteReplyError, "JSON"),
    ({"raw": b"[" * 100_000}, errors.IncompleteReplyError, "JSON"),
    ({"raw": b"\xff\xfe\xfd"}, errors.IncompleteReplyError, "JSON"),
    ({"raw": b"null"}, errors.IncompleteReplyError, "object"),
    ({"json": {}}, errors.IncompleteReplyError, "choices"),
    ({"json": {"choices": []}}, errors.IncompleteReplyError, "choices"),
    ({"json": {"choices": {"0": 1}}}, errors.IncompleteReplyError, "choices"),
    ({"json": {"choices": [7]}}, errors.IncompleteReplyError, "choices"),
    ({"json": {"choices": [{"message": "x"}]}}, errors.IncompleteReplyError, "message"),
    (answer(7), errors.IncompleteReplyError, "type"),
    (answer([{"type": "text"}]), errors.IncompleteReplyError, "type"),
    (answer(["x"]), errors.IncompleteReplyError, "type"),
    (answer("x", ["stop"]), errors.IncompleteReplyError, "type"),
    (answer(None), errors.IncompleteReplyError, "no text"),
    (answer(""), errors.IncompleteReplyError, "no text"),
    (answer(" \n\t"), errors.IncompleteReplyError, "no text"),
    (answer(None, reasoning_content="hm"), errors.IncompleteReplyError, "no text"),
    (answer("half", "length"), errors.IncompleteReplyError, "raise max_tokens"),
    (answer("half", "abort"), errors.IncompleteReplyError, "abort"),
    (answer("x", "content_filter"), errors.ContentFilterError, "filter"),
    (answer(None, refusal="I will not"), errors.ContentFilterError, "I will not"),
    ({"cut": b'{"choices"'}, errors.ConnectionFailed, "cut"),
    ({"cut": b""}, errors.ConnectionFailed, "cut"),
    (
        {"status": 307, "headers": {"Location": "http://evil.test/a?b"}},
        errors.NotFoundError,
        "http://evil.test/a:",
    ),
    (
        {"status": 301, "headers": {"Location": "/v2/chat/completions"}},
        errors.NotFoundError,
        "/v2:",
    ),
    (
        {"status": 308, "headers": {"Location": "https://x.test:84/v1/chat/completions"}},
        errors.NotFoundError,
        " https://x.test:84/v1: ",
    ),
    ({"status": 307, "headers": {"Location": "http://["}}, errors.NotFoundError, "redirects"),
    ({"status": 307}, errors.NotFoundError, "redirects"),
    ({"status": 204}, errors.IncompleteReplyError, "JSON"),
]


PAID = {"prompt_tokens": 9, "completion_tokens": 4, "cost": 0.5}


@pytest.mark.parametrize(
    ("body", "spent"),
    [
        ({"choices": [], "usage": PAID}, Usage(9, 4, 0, 0.5, 1)),
        ({"choices": [{"message": {"content": 5}}], "usage": PAID}, Usage(9, 4, 0, 0.5, 1)),
        ({"error": {"message": "late"}, "usage": PAID}, Usage(9, 4, 0, 0.5, 1)),
        ({"choices": []}, Usage(calls=1)),
        ("<html>", Usage(calls=1)),
        ({"error": {"message": "unpaid"}}, Usage()),
    ],
)
def test_what_cannot_be_read_is_paid_for(body: Any, spent: Usage) -> None:
    step: Step = {"raw": body.encode()} if isinstance(body, str) else {"json": body}
    with faults(step) as server, Budget() as budget, pytest.raises(errors.EngineError):
        run(HTTP("tiny", server.url, api_key=KEY))
    assert budget.spent == spent


@pytest.mark.parametrize(("step", "kind", "words"), FAULTS)
def test_each_fault_has_its_error_and_costs_the_calls_that_it_should(
    step: Step, kind: type[errors.Error], words: str
) -> None:
    with faults(step) as server:
        model = Retrying(HTTP("tiny", server.url, api_key=KEY), 3, sleep=no_wait)
        with pytest.raises(errors.Error) as caught:
            run(model)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert len(server.bodies) == (3 if issubclass(kind, errors.TransientError) else 1)


def test_a_cut_off_reply_keeps_its_text_and_names_the_limit() -> None:
    with faults(answer("half", "length")) as server:
        with pytest.raises(errors.IncompleteReplyError, match="max_tokens = 5") as caught:
            run(HTTP("tiny", server.url), ask(max_tokens=5))
    assert caught.value.text == "half"


def test_what_a_cut_off_reply_cost_is_charged() -> None:
    with faults(answer("half", "length")) as server, Budget() as budget:
        with pytest.raises(errors.IncompleteReplyError):
            run(HTTP("tiny", server.url))
    assert (budget.spent.calls, budget.spent.tokens) == (1, 10)


def test_reasoning_and_other_parts_are_not_the_answer() -> None:
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]
    with faults(answer("42", reasoning_content="hm"), answer(parts)) as server:
        assert run(HTTP("tiny", server.url)).text == "42"
        assert run(HTTP("tiny", server.url)).text == "yes"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        3,
        {},
        {"prompt_tokens": "7"},
        {"prompt_tokens": -7},
        {"prompt_tokens": True},
        {"prompt_tokens": 10**400},
        {"completion_tokens": float("inf")},
        {"prompt_tokens_details": [3]},
        {"cost": float("nan")},
        {"cost": float("inf")},
        {"cost": -1},
        {"cost": 10**400},
        {"cost": "free"},
    ],
)
def test_usage_that_is_missing_or_odd_reads_zero(usage: Any) -> None:
    step = answer()
    step["json"]["usage"] = usage
    with faults(step) as server:
        assert run(HTTP("tiny", server.url)).usage == Usage(calls=1)


@pytest.mark.parametrize("cost", [float("nan"), -1.0, 10**400])
def test_a_price_that_is_none_does_not_switch_a_budget_off(cost: float) -> None:
    step = answer()
    step["json"]["usage"]["cost"] = cost
    with faults(step) as server, Budget(usd=0.01):
        run(HTTP("tiny", server.url))
        with pytest.raises(errors.UsageError, match="price of a call is not known"):
            run(HTTP("tiny", server.url))
    assert len(server.bodies) == 1


def test_a_price_that_the_server_states_is_charged() -> None:
    step = answer()
    step["json"]["usage"]["cost"] = 0.25
    with faults(step) as server, Budget(usd=1) as budget:
        run(HTTP("tiny", server.url))
    assert budget.spent.cost == 0.25


def test_a_body_without_end_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textautograd.engines.http.LARGEST_REPLY", 1000)
    with faults({"raw": b" " * 100_000}) as server:
        with pytest.raises(errors.IncompleteReplyError, match="more than"):
            run(HTTP("tiny", server.url))


def test_surrogates_and_a_megabyte_pass() -> None:
    text = "\ud800é" + "x" * 2**20
    with faults(answer(text)) as server:
        assert run(HTTP("tiny", server.url), ask(text)).text == text
    assert server.bodies[0]["messages"][0]["content"] == text


def test_no_server_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(errors.ConnectionFailed) as caught:
            run(HTTP("tiny", f"http://{address}/v1?token={KEY}"))
    said = str(caught.value)
    assert address in said and "refused" in said and "is the server running?" in said
    assert "sk-planted" not in everything_said(caught.value)


def test_a_server_that_hangs_times_out() -> None:
    with faults({"hang": True}) as server:
        with pytest.raises(errors.TimeoutExpired, match="timeout="):
            run(HTTP("tiny", server.url, timeout=0.2))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
        ({}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_retry_after_as_a_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert retry_after({"retry-after": formatdate(1030, usegmt=True)}) == 30.0


def test_auto_becomes_tagged_at_the_first_refusal_of_the_schema() -> None:
    refused = refusal(400, "This response_format type is unavailable now")
    with faults(refused, answer()) as server:
        model = engine("tiny", api_base=server.url)
        assert model.structured == "schema"
        with pytest.raises(errors.SchemaRejected):
            run(model, ask(schema=SCHEMA))
        assert model.structured == "tagged"
        with pytest.raises(errors.SchemaRejected):  # a prompt that was written for a schema
            run(model, ask(schema=SCHEMA))
        assert run(model).text == "fine"
    sent = [body.get("response_format") for body in server.bodies]
    assert sent == [
        {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": SCHEMA},
        },
        None,
    ]


@pytest.mark.parametrize(
    "words", ["bad temperature", "over the maximum context length with response_format"]
)
def test_another_refusal_leaves_auto_as_it_is(words: str) -> None:
    with faults(refusal(400, words)) as server:
        model = engine("tiny", api_base=server.url)
        with pytest.raises(errors.BadRequestError):
            run(model, ask(schema=SCHEMA))
    assert model.structured == "schema"


def test_a_mode_that_was_asked_for_stays() -> None:
    with faults(refusal(400, "no response_format here")) as server:
        model = engine("tiny", api_base=server.url, structured="schema")
        with pytest.raises(errors.BadRequestError) as caught:
            run(model, ask(schema=SCHEMA))
    assert type(caught.value) is errors.BadRequestError
    assert model.structured == "schema"


@pytest.mark.parametrize(
    "step",
    [
        refusal(401, f"Incorrect API key provided: {KEY}."),
        refusal(400, "x" * 290 + KEY),
        {"raw": KEY.encode()},
        {"json": {"error": {"message": KEY, "code": KEY}}},
        {"json": {"choices": KEY}},
        {"json": {KEY: 1}},
        {"json": [KEY]},
        {"json": KEY},
        answer(None, refusal=KEY),
        answer("", KEY),
        {"cut": KEY.encode()},
        {"status": 302, "headers": {"Location": f"http://a.test/?k={KEY}"}},
        {"raw": b"", "headers": {"Content-Encoding": "gzip"}},
    ],
)
def test_a_key_is_never_shown(step: Step) -> None:
    with faults(step) as server:
        model = engine("tiny", api_base=server.url, api_key=KEY, max_attempts=1)
        with pytest.raises(errors.EngineError) as caught:
            run(model)
    assert "sk-planted" not in everything_said(caught.value)
    assert "sk-planted" not in repr(model) + str(model) + model.identity  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "written",
    [lambda key: html.escape(key), lambda key: base64.b64encode(key.encode()).decode()],
    ids=["html", "base64"],
)
def test_a_key_is_never_shown_in_another_writing(written: Callable[[str], str]) -> None:
    key = "sk-planted&<0123>456"
    with faults(refusal(401, f"Who is {written(key)}?")) as server:
        model = engine("tiny", api_base=server.url, api_key=key, max_attempts=1)
        with pytest.raises(errors.AuthenticationError, match=r"Who is \[redacted\]=*\?"):
            run(model)


def test_a_key_in_the_path_is_used_and_never_shown() -> None:
    identities = set()
    for key in (KEY, KEY + "0", "0123456789abcdef" * 2):
        with faults(refusal(500, f"who is {key}?")) as server:
            address = server.url.replace("/v1", f"/{key}/v1")
            model = engine("tiny", api_base=address, max_attempts=1)
            with pytest.raises(errors.ServerError) as caught:
                run(model)
        assert server.paths == [f"/{key}/v1/chat/completions"]
        identity = model.identity  # type: ignore[attr-defined]
        assert key not in everything_said(caught.value) + repr(model) + identity
        identities.add(identity.partition("[key")[2])
    assert len(identities) == 3
    model = engine("tiny", api_base="http://a.test/openai/deployments/gpt-4o-mini-2024-07-18/v1")
    assert "/openai/deployments/gpt-4o-mini-2024-07-18/v1" in repr(model)


def test_a_login_in_the_address_is_used_and_never_shown() -> None:
    with faults(refusal(500, "who is planted-password?")) as server:
        address = server.url.replace("://", "://me:planted-password@")
        model = engine("tiny", api_base=f"{address}?k=planted-query", max_attempts=1)
        with pytest.raises(errors.ServerError) as caught:
            run(model)
    assert server.headers[0]["Authorization"].startswith("Basic ")
    shown = everything_said(caught.value) + repr(model) + model.identity  # type: ignore[attr-defined]
    assert "planted" not in shown


def test_the_environments_key_is_not_sent_in_clear_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with faults(answer()) as server:
        run(engine("openai/tiny", api_base=server.url))
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.bodies[0]["model"] == "tiny"
    far = engine("tiny", api_base="http://gpu.example:8000/v1")
    fake = engine("tiny", api_base="http://localhost.example/v1")
    near = engine("tiny", api_base="https://gpu.example/v1")
    assert [KEY in str(vars(raw(e))) for e in (far, fake, near)] == [False, False, True]


def raw(model: Any) -> Any:
    while hasattr(model, "inner"):
        model = model.inner
    return model


LOGIN = "planted-päss/wörd"


@pytest.mark.parametrize("encode", [lambda s: s, repr, quote, quote_plus, json.dumps])
@pytest.mark.parametrize("secret", ["basic", "login", "key"])
def test_a_secret_is_hidden_in_every_form(secret: str, encode: Any) -> None:
    key = 'sk-planted"/\\+key'
    basic = base64.b64encode(f"me:{LOGIN}".encode("latin-1")).decode()
    said = {"basic": f"Basic {basic}", "login": LOGIN, "key": f"Bearer {key}"}[secret]
    for step in (refusal(400, encode(said)), {"raw": f"<p>{encode(said)}</p>".encode()}):
        with faults(step) as server:
            login = server.url.replace("://", f"://me:{quote(LOGIN, safe='')}@")
            model = HTTP("tiny", server.url, api_key=key)
            if secret != "key":
                model = HTTP("tiny", login)
            with pytest.raises(errors.EngineError) as caught:
                run(model)
        shown = everything_said(caught.value)
        assert "[redacted]" in shown
        assert not [part for part in ("planted", basic[:-2], quote(basic)[:-6]) if part in shown]


def test_what_is_too_short_for_a_secret_is_left_in_the_servers_words() -> None:
    with faults(refusal(400, "context length exceeded")) as server:
        with pytest.raises(errors.ContextOverflowError, match="context length exceeded"):
            run(HTTP("tiny", server.url, api_key="x"))


ADDRESSES = [
    "",
    "localhost:8000",
    "ftp://x/v1",
    "http://",
    "http://x:y",
    "http://x:0/v1",
    "http://x:70000",
    "http://a..b/v1",
    f"http://{'a' * 64}.test/v1",
    "http://a b/v1",
    "http://[::1/v1",
    "http://x/\ud800",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(errors.UsageError, match="http://127"):
        HTTP("tiny", address)


@given(st.text(max_size=12), st.text(alphabet="ab.-_:[]%@/?#\\ ü0", max_size=12))
def test_an_address_is_refused_or_one_that_the_client_takes(host: str, rest: str) -> None:
    for address in (f"http://{host}{rest}", f"http://a.test:80/{host}", f"https://{rest}:8/{host}"):
        try:
            model = HTTP("tiny", address)
        except errors.UsageError:
            continue
        url = yarl.URL(model._address.endpoint)
        assert url.host and url.port and url.path.endswith("/chat/completions")


@pytest.mark.parametrize("timeout", [0, -1, True, float("inf"), float("nan"), "3"])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    with pytest.raises(errors.UsageError, match="timeout"):
        HTTP("tiny", "http://localhost", timeout=timeout)


@pytest.mark.parametrize("key", ["", "  ", "sk-a\nb", "sk-é"])
def test_a_key_that_is_none_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        HTTP("tiny", "http://localhost", api_key=key)
    assert "sk-" not in str(caught.value)


def test_connections_are_kept_for_a_loop_and_end_with_it() -> None:
    with faults(answer()) as server:
        model = HTTP("tiny", server.url)

        async def twice() -> None:
            await asyncio.gather(*(call(model, ask()) for _ in range(20)))
            await call(model, ask())

        asyncio.run(twice())  # not closed by hand: a warning here would fail the test
        asyncio.run(twice())
    assert len(server.bodies) == 42


def test_a_cancelled_first_call_leaves_the_pool_to_the_others() -> None:
    with faults(answer()) as server:
        model = HTTP("tiny", server.url)

        async def main() -> Reply:
            first, second = (asyncio.create_task(call(model, ask())) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            return await second

        assert asyncio.run(main()).text == "fine"


def test_past_loops_are_forgotten() -> None:
    with faults(answer()) as server:
        model = HTTP("tiny", server.url)
        for _ in range(3):
            asyncio.run(call(model, ask()))
    assert len(model._pools._values) == 1


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with faults(answer()) as proxy, faults(answer()) as direct:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert run(HTTP("far", "http://model.test/v1")).text == "fine"
        assert run(HTTP("near", direct.url)).text == "fine"
    assert [body["model"] for body in proxy.bodies] == ["far"]
    assert [body["model"] for body in direct.bodies] == ["near"]


def test_https_to_a_server_without_it_says_so() -> None:
    with faults(answer()) as server:
        with pytest.raises(errors.ConnectionFailed, match="http://"):
            run(HTTP("tiny", server.url.replace("http", "https")))


def test_a_server_that_speaks_no_http_says_so() -> None:
    def hello(listener: socket.socket) -> None:
        with listener.accept()[0] as peer:
            peer.recv(10_000)
            peer.sendall(b"220 mail.test ready\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=hello, args=(listener,))
        thread.start()
        with pytest.raises(errors.IncompleteReplyError, match="not HTTP"):
            run(HTTP("tiny", f"http://127.0.0.1:{listener.getsockname()[1]}"))
        thread.join()


def test_a_program_ends_without_a_word_while_calls_are_in_flight() -> None:
    code = """
from textautograd.dispatch import start, wait
from textautograd.engines import Request, engine
from textautograd.engines.ask import ask
request = Request([{"role": "user", "content": "hi"}])
model = engine("tiny", api_base="URL")
print(wait(start(ask(model, request))).text)
in_flight = start(ask(model, request))
"""
    with faults(answer(), {"hang": True}) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.replace("URL", server.url)],
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


def test_a_reply_is_never_altered_even_where_it_holds_the_key() -> None:
    with faults(answer("the list is EMPTY")) as server:
        engine = HTTP("m", server.url, api_key="EMPTY")
        request = Request(({"role": "user", "content": "q"},))
        assert asyncio.run(engine.complete(request)).text == "the list is EMPTY"
