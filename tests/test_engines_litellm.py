"""The same faults through litellm mean the same. Its import takes seconds: one file, one loop."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from typing import Any

import pytest
from fault_server import Step, answer, faults, refusal

from textautograd import errors
from textautograd.engines import Budget, LiteLLM, Reply, Request, Retrying, Usage, call

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

KEY = "sk-planted-0123456789"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


async def no_wait(seconds: float) -> None:
    pass


def ask(**fields: Any) -> Request:
    return Request([{"role": "user", "content": "hi"}], **fields)


def is_imported() -> bool:
    module = sys.modules.get("litellm")
    return module is not None and not module.__spec__._initializing  # type: ignore[union-attr]


def test_the_import_leaves_the_loop_free(loop: asyncio.AbstractEventLoop) -> None:
    if is_imported():
        pytest.skip("another test has imported it")

    async def main() -> int:
        beats = 0
        with faults(answer()) as server:
            model = LiteLLM("openai/tiny", api_base=server.url, api_key=KEY)
            task = asyncio.create_task(call(model, ask()))
            while not task.done():
                await asyncio.sleep(0.01)
                beats += not is_imported()
            await task
        return beats

    assert loop.run_until_complete(main()) > 3
    assert os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] == "True"


def test_sends_the_request_and_reads_reply_and_usage(loop: asyncio.AbstractEventLoop) -> None:
    with faults(answer("hello")) as server:
        model = LiteLLM("openai/tiny", api_base=server.url, api_key=KEY)
        sampling = {"temperature": 0.5, "max_tokens": 9, "top_p": 0.9, "stop": ["x"], "seed": 3}
        request = ask(**sampling, schema=SCHEMA)
        reply = loop.run_until_complete(call(model, request))
    assert reply == Reply("hello", "stop", Usage(7, 3, 2, None, 1))
    [body] = server.bodies
    assert {key: body[key] for key in ("model", *sampling)} == {"model": "tiny", **sampling}
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_a_known_price_is_charged(loop: asyncio.AbstractEventLoop) -> None:
    step = answer()
    step["json"]["model"] = "gpt-4o-mini"
    with faults(step) as server, Budget(usd=1.0) as budget:
        model = LiteLLM("openai/gpt-4o-mini", api_base=server.url, api_key=KEY)
        for _ in range(2):
            loop.run_until_complete(call(model, ask()))
    assert budget.spent.cost == pytest.approx(2 * (5 * 0.15e-6 + 2 * 0.075e-6 + 3 * 0.6e-6))


def test_retry_after_reaches_the_retries(loop: asyncio.AbstractEventLoop) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with faults(refusal(429, retry_after="7"), answer()) as server:
        model = LiteLLM("openai/tiny", api_base=server.url, api_key=KEY)
        loop.run_until_complete(call(Retrying(model, 2, sleep=sleep), ask()))
    assert len(waits) == 1 and 7 <= waits[0] <= 8


def test_no_server_and_no_answer(loop: asyncio.AbstractEventLoop) -> None:
    with faults({"hang": True}) as server:
        model = LiteLLM("openai/tiny", api_base=server.url, api_key=KEY, timeout=0.3)
        with pytest.raises(errors.TimeoutExpired):
            loop.run_until_complete(call(model, ask()))


def test_auto_becomes_tagged(loop: asyncio.AbstractEventLoop) -> None:
    with faults(refusal(400, "response_format is not supported"), answer()) as server:
        model = LiteLLM("openai/tiny", api_base=server.url, api_key=KEY)
        with pytest.raises(errors.SchemaRejected):
            loop.run_until_complete(call(model, ask(schema=SCHEMA)))
        assert model.structured == "tagged"
        loop.run_until_complete(call(model, ask()))
    assert "response_format" not in server.bodies[1]


@pytest.mark.parametrize("name", ["gpt-nope", "opnai/gpt-4o-mini", "nonsense:of-some-length"])
def test_a_name_without_a_provider_says_how_to_write_it(
    loop: asyncio.AbstractEventLoop, name: str
) -> None:
    with pytest.raises(errors.UsageError, match="openai/gpt-4o-mini"):
        loop.run_until_complete(call(Retrying(LiteLLM(name), 2, sleep=no_wait), ask()))


def test_a_model_that_the_user_made_known_is_known(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    monkeypatch.setattr(litellm, "model_alias_map", {"mine": "openai/tiny"})
    assert LiteLLM("mine").identity == "litellm mine"


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("openai/gpt-4o-mini", "OPENAI_API_KEY"),
        ("anthropic/claude-3-haiku", "ANTHROPIC_API_KEY"),
        ("gemini/gemini-1.5-flash", "GEMINI_API_KEY"),
    ],
)
def test_a_missing_key_names_the_variable_and_is_not_tried_again(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    for key in [key for key in os.environ if key.endswith("_API_KEY")]:
        monkeypatch.delenv(key)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    said = f"no key for '{name}': set .*{variable} in the environment or give api_key=$"
    with pytest.raises(errors.AuthenticationError, match=said) as caught:
        loop.run_until_complete(call(Retrying(LiteLLM(name), 5, sleep=sleep), ask()))
    assert waits == [] and str(caught.value).count(variable) == 1


def test_a_server_that_wants_a_key_costs_one_request_and_names_the_variable(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    with faults(refusal(401, "no key")) as server:
        model = Retrying(LiteLLM("groq/tiny", api_base=server.url), 5, sleep=no_wait)
        with pytest.raises(errors.AuthenticationError, match=r"not set .*GROQ_API_KEY.*api_key="):
            loop.run_until_complete(call(model, ask()))
    assert len(server.bodies) == 1


def test_no_timeout_waits_for_ever(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    given: list[float] = []

    async def acompletion(**fields: Any) -> None:
        given.append(fields["timeout"])
        raise KeyError("enough")

    monkeypatch.setattr(litellm, "acompletion", acompletion)
    for timeout in (None, 3.5):
        with pytest.raises(KeyError):
            loop.run_until_complete(LiteLLM("openai/tiny", timeout=timeout).complete(ask()))
    assert given == [1e7, 3.5]


@pytest.mark.parametrize(
    "step",
    [
        answer(None, refusal=f"no, {KEY}"),
        answer("", KEY),
        answer({"k": f"Bearer {KEY}"}),
        answer(["x", {"k": KEY}]),
        {"json": {"choices": [{"message": f"Bearer {KEY}"}]}},
    ],
)
def test_the_environments_key_is_never_shown(
    loop: asyncio.AbstractEventLoop,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    step: Step,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    warnings.simplefilter("always")
    with faults(step) as server:
        model = LiteLLM("openai/tiny", api_base=server.url)
        with pytest.raises(errors.EngineError) as caught:
            loop.run_until_complete(call(model, ask()))
    assert "sk-planted" not in f"{caught.value!r} {caught.value.__context__!r}"
    assert "sk-planted" not in "".join(capfd.readouterr())
    assert [w for w in recwarn if "sk-planted" in str(w.message)] == []


def test_a_key_is_never_shown(
    loop: asyncio.AbstractEventLoop, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    with faults(refusal(401, f"Incorrect API key provided: {KEY}.")) as server:
        model = LiteLLM("openai/tiny", api_base=server.url, api_key=KEY)
        with pytest.raises(errors.AuthenticationError) as caught:
            loop.run_until_complete(call(model, ask()))
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    assert "sk-planted" not in f"{caught.value!r} {model!r} {model.identity}"
    assert "sk-planted" not in "".join(capfd.readouterr()) + caplog.text
