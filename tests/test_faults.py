"""One table of faults, through both engines that call servers: the error that is seen, the requests
that it took, and that nothing unusable is kept."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from fault_server import Step, answer, faults, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from textautograd import errors
from textautograd.engines import HTTP, Budget, Cached, LiteLLM, Reply, Request, Retrying, call

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

KEY = "sk-planted-0123456789"
ATTEMPTS = 3
REQUEST = Request([{"role": "user", "content": "hi"}], temperature=0, max_tokens=100)


def inside(**error: Any) -> Step:
    """A step that fails with status 200."""
    return {"json": {"error": error}}


def usage(**counts: Any) -> Step:
    """A step that answers and counts oddly."""
    step = answer()
    step["json"]["usage"] |= counts
    return step


OVERFLOW = "This model's maximum context length is 8192 tokens"

# what the server does, what the user sees: an error or the text
TABLE: dict[str, tuple[Step, type[errors.Error] | str]] = {
    "429": (refusal(429), errors.RateLimitError),
    "429 with retry-after": (refusal(429, retry_after="2"), errors.RateLimitError),
    "no credit": (refusal(402, "pay"), errors.NoCreditError),
    "no quota": (refusal(429, "pay", "insufficient_quota"), errors.NoCreditError),
    "500": (refusal(500), errors.ServerError),
    "500 as HTML": ({"status": 500, "raw": b"<html>oops</html>"}, errors.ServerError),
    "502": (refusal(502), errors.ServerError),
    "503": (refusal(503), errors.ServerError),
    "504": (refusal(504), errors.ServerError),
    "529": (refusal(529), errors.ServerError),
    "400": (refusal(400, "bad"), errors.BadRequestError),
    "413": (refusal(413, "bad"), errors.BadRequestError),
    "422": (refusal(422, "bad"), errors.BadRequestError),
    "context overflow": (refusal(400, OVERFLOW), errors.ContextOverflowError),
    "overflow by code": (
        refusal(400, "no", "context_length_exceeded"),
        errors.ContextOverflowError,
    ),
    "content filter": (refusal(400, "no", "content_filter"), errors.ContentFilterError),
    "401": (refusal(401), errors.AuthenticationError),
    "403": (refusal(403), errors.AuthenticationError),
    "404": (refusal(404), errors.NotFoundError),
    "408": (refusal(408), errors.ServerError),
    "hangs": ({"hang": True}, errors.TimeoutExpired),
    "cut mid-body": ({"cut": b'{"choices"'}, errors.ConnectionFailed),
    "cut at once": ({"cut": b""}, errors.ConnectionFailed),
    "malformed JSON": ({"raw": b'{"choices": ['}, errors.IncompleteReplyError),
    "no body": ({"raw": b""}, errors.IncompleteReplyError),
    "HTML": ({"raw": b"<html>a proxy</html>", "type": "text/html"}, errors.IncompleteReplyError),
    "no object": ({"raw": b"[1]"}, errors.IncompleteReplyError),
    "null": ({"raw": b"null"}, errors.IncompleteReplyError),
    "too deep": ({"raw": b"[" * 100_000}, errors.IncompleteReplyError),
    "error in a 200": (inside(message="m"), errors.ServerError),
    "429 in a 200": (inside(message="m", code=429), errors.RateLimitError),
    "'429' in a 200": (inside(message="m", code="429"), errors.RateLimitError),
    "bad key in a 200": (inside(message="m", code="invalid_api_key"), errors.AuthenticationError),
    "odd code in a 200": (inside(message="m", code="²²²"), errors.ServerError),
    "choices: []": ({"json": {"choices": []}}, errors.IncompleteReplyError),
    "no choices": ({"json": {}}, errors.IncompleteReplyError),
    "choices of the wrong type": ({"json": {"choices": [7]}}, errors.IncompleteReplyError),
    "a message of the wrong type": (
        {"json": {"choices": [{"message": "x"}]}},
        errors.IncompleteReplyError,
    ),
    "content: null": (answer(None), errors.IncompleteReplyError),
    "content: blank": (answer(" \n\t"), errors.IncompleteReplyError),
    "content: 7": (answer(7), errors.IncompleteReplyError),
    "a reason of the wrong type": (answer("x", ["stop"]), errors.IncompleteReplyError),
    "cut off": (answer("half", "length"), errors.IncompleteReplyError),
    "aborted": (answer("half", "abort"), errors.IncompleteReplyError),
    "failed in the middle": (answer("half", "error"), errors.IncompleteReplyError),
    "withheld": (answer("x", "content_filter"), errors.ContentFilterError),
    "refused in words": (answer(None, refusal="I will not"), errors.ContentFilterError),
    "only reasoning": (answer(None, reasoning_content="hm"), errors.IncompleteReplyError),
    "more than anyone reads": (answer("x" * 60_000), errors.IncompleteReplyError),
    "reasoning before the answer": (answer("42", reasoning_content="hm"), "42"),
    "no reason": (answer("42", None), "42"),
    "slow": ({"delay": 0.05} | answer("42"), "42"),
    "counts of the wrong sign": (usage(prompt_tokens=-7, cost=-1), "fine"),
    "a price that is none": (usage(cost=float("nan")), "fine"),
}
assert len(TABLE) > 50


async def no_wait(seconds: float) -> None:
    pass


def through(kind: str, url: str, timeout: float = 30.0) -> HTTP | LiteLLM:
    if kind == "http":
        return HTTP("tiny", url, api_key=KEY, timeout=timeout)
    return LiteLLM("openai/tiny", api_base=url, api_key=KEY, timeout=timeout)


@pytest.mark.parametrize("kind", ["http", "litellm"])
@pytest.mark.parametrize("name", TABLE)
def test_each_fault(
    loop: asyncio.AbstractEventLoop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    kind: str,
) -> None:
    step, expected = TABLE[name]
    for module in ("http", "_chat"):  # 20 MB would take seconds
        monkeypatch.setattr(f"textautograd.engines.{module}.LARGEST_REPLY", 50_000)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def twice() -> list[Reply | errors.Error]:
        seen: list[Reply | errors.Error] = []
        raw = through(kind, server.url, 0.3 if name == "hangs" else 30.0)
        model = Cached(Retrying(raw, ATTEMPTS, sleep=sleep), tmp_path / "calls.sqlite")
        for _ in range(2):
            try:
                seen.append(await call(model, REQUEST))
            except errors.Error as error:
                seen.append(error)
        if kind == "http":
            await model.close()
        return seen

    with faults(step) as server, Budget() as budget:
        first, second = loop.run_until_complete(twice())
    if isinstance(expected, str):
        assert isinstance(first, Reply) and isinstance(second, Reply)
        assert (first.text, second.text, second.cached) == (expected, expected, True)
        assert (len(server.bodies), budget.spent.calls) == (1, 1)
        assert budget.spent.cost is None and budget.spent.tokens >= 0
        return
    assert type(first) is type(second) is expected
    asked = ATTEMPTS if issubclass(expected, errors.TransientError) else 1
    assert len(waits) == 2 * (asked - 1)
    if name != "hangs":  # a timeout may come before the request does
        kept = name == "cut off"  # what else is of no use is not
        assert len(server.bodies) == asked * (1 if kept else 2)
    if "retry-after" in name:
        assert all(wait >= 2 for wait in waits)
    assert "sk-planted" not in f"{first!r} {first.__context__!r} {first.__cause__!r}"


@pytest.mark.parametrize("kind", ["http", "litellm"])
def test_a_server_that_is_not_there(loop: asyncio.AbstractEventLoop, kind: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        model = through(kind, f"http://127.0.0.1:{free.getsockname()[1]}/v1")
        with pytest.raises(errors.ConnectionFailed) as caught:
            loop.run_until_complete(call(Retrying(model, ATTEMPTS, sleep=no_wait), REQUEST))
    assert caught.value.__notes__ == [f"after {ATTEMPTS} attempts"]


def is_worth_a_retry(name: str) -> bool:
    kind = TABLE[name][1]
    return not isinstance(kind, str) and issubclass(kind, errors.TransientError)


def is_paid(step: Step) -> bool:
    """Or may have been: an answer that cannot be read."""
    body = step.get("json", {})
    is_read = step.get("status", 200) == 200 and "cut" not in step and "error" not in body
    return "usage" in body or is_read


QUICK = [name for name in TABLE if name not in ("hangs", "slow", "more than anyone reads")]


@pytest.mark.parametrize("kind", ["http", "litellm"])
@settings(max_examples=25)
@given(script=st.lists(st.sampled_from(QUICK), max_size=6), attempts=st.integers(1, 5))
def test_any_run_of_faults(
    loop: asyncio.AbstractEventLoop, kind: str, script: list[str], attempts: int
) -> None:
    """Calls never pass the attempts, what is not worth another try costs one call, and usage adds
    up to what was paid for."""
    steps = [*(TABLE[name][0] for name in script), answer()]
    ends = next((n for n, name in enumerate(script, 1) if not is_worth_a_retry(name)), len(steps))
    with faults(*steps) as server, Budget() as budget:
        model = through(kind, server.url)
        outcome: Any = None
        try:
            outcome = loop.run_until_complete(
                call(Retrying(model, attempts, sleep=no_wait), REQUEST)
            )
        except errors.EngineError as error:
            outcome = error
        if kind == "http":
            loop.run_until_complete(model.close())
    asked = min(ends, attempts)
    assert len(server.bodies) == asked
    last = script[asked - 1] if asked <= len(script) else None
    expected = TABLE[last][1] if last else "fine"
    if isinstance(expected, str):
        assert isinstance(outcome, Reply) and outcome.text == expected
        assert budget.spent == outcome.usage
    else:
        assert type(outcome) is expected
        assert budget.spent.calls == (outcome.usage is not None)
    if budget.spent.calls:
        assert is_paid(steps[asked - 1])
