"""The call cache: what is kept, under which key, and what happens to a file that is not well."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import textautograd as ta
from textautograd import errors, nn
from textautograd.engines import (
    Budget,
    Cached,
    Reply,
    Request,
    Scripted,
    Usage,
    caching,
    call,
    call_now,
)
from textautograd.engines._checks import finished
from textautograd.engines._identity import identity_of
from textautograd.engines.cache import Coalesced, key_of
from textautograd.errors import BudgetExceeded


def ask(text: str = "hi", **fields: Any) -> Request:
    return Request([{"role": "user", "content": text}], **fields)


def counting() -> Scripted:
    model = Scripted(lambda request: Reply(f"reply {len(model.calls)}", usage=Usage(3, 4, calls=1)))
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "calls.sqlite"


def ways(model: Scripted, path: Path, request: Request) -> list[Reply]:
    """The reply through both entries, each of a cache that is opened anew."""
    replies = []
    for now in (True, False):
        engine = Cached(model, path)
        reply = call_now(engine, request) if now else asyncio.run(call(engine, request))
        assert reply is not None
        replies.append(reply)
        asyncio.run(engine.close())
    return replies


def test_a_reply_is_paid_once(path: Path) -> None:
    model = counting()
    with Budget() as budget:
        first, second = ways(model, path, ask())
    assert (first.text, first.cached, first.usage) == ("reply 1", False, Usage(3, 4, calls=1))
    assert (second.text, second.cached, second.usage) == ("reply 1", True, Usage())
    assert budget.spent == first.usage + second.usage == Usage(3, 4, calls=1)


def test_a_hit_needs_no_budget(path: Path) -> None:
    model = counting()
    ways(model, path, ask())
    with Budget(calls=0):
        assert {reply.text for reply in ways(model, path, ask())} == {"reply 1"}


@pytest.mark.parametrize(
    "other",
    [
        ask("ho"),
        ask(temperature=0.0),
        ask(max_tokens=5),
        ask(top_p=0.5),
        ask(stop=["x"]),
        ask(seed=1),
        ask(schema={"type": "object"}),
        ask(sample=1),
        Request([{"role": "system", "content": "hi"}]),
        Request([*ask().messages, *ask().messages]),
    ],
)
def test_what_a_reply_depends_on_is_in_the_key(other: Request) -> None:
    assert key_of("e", other) != key_of("e", ask())


def test_what_it_does_not_depend_on_is_not() -> None:
    assert key_of("e", ask(purpose="judge")) == key_of("e", ask())
    assert key_of("e", ask(temperature=0)) == key_of("e", ask(temperature=0.0))
    assert key_of("e", ask(stop=("a",))) == key_of("e", ask(stop=["a"]))
    assert key_of("e", ask(schema={"a": 1, "b": 2})) == key_of("e", ask(schema={"b": 2, "a": 1}))
    assert key_of("e", ask()) != key_of("f", ask())


def test_the_key_is_the_same_in_every_process() -> None:
    code = (
        "from textautograd.engines import Request; from textautograd.engines.cache import key_of;"
        "print(key_of('e', Request([{'role': 'user', 'content': 'hi'}], schema={'b': 1, 'a': 2})))"
    )
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert keys == {key_of("e", ask(schema={"a": 2, "b": 1}))}


@pytest.mark.parametrize("reason", ["length", "max_tokens"])
@pytest.mark.parametrize("raises", [False, True])
def test_what_was_cut_off_at_max_tokens_is_paid_once(path: Path, reason: str, raises: bool) -> None:
    def answer(request: Request) -> Reply:
        reply = Reply("half", reason, Usage(3, 4, calls=1))
        return finished(reply, request) if raises else reply

    model, seen = Scripted(answer), []
    with Budget() as budget:
        for request in (ask(max_tokens=4), ask(max_tokens=4), ask(max_tokens=5)):
            with pytest.raises(errors.IncompleteReplyError, match="raise max_tokens") as caught:
                ways(model, path, request)
            with pytest.raises(errors.IncompleteReplyError) as again:
                asyncio.run(call(Cached(model, path), request))
            seen += [caught.value, again.value]
    assert {(str(e), e.text, e.finish_reason) for e in seen[:4]} == {(str(seen[0]), "half", reason)}
    assert "max_tokens = 5" in str(seen[4])
    assert [error.usage for error in seen[:2]] == [Usage(3, 4, calls=1), None]
    assert len(model.calls) == budget.spent.calls == 2


def test_twins_in_flight_share_what_was_cut_off(path: Path) -> None:
    async def answer(request: Request) -> Reply:
        await asyncio.sleep(0)
        return finished(Reply("half", "length"), request)

    async def thrice() -> list[Reply | BaseException]:
        one = Cached(Coalesced(model), path)
        twins = (call(one, ask(temperature=0)) for _ in range(2))
        seen = await asyncio.gather(*twins, return_exceptions=True)
        return [*seen, *await asyncio.gather(call(one, ask(temperature=0)), return_exceptions=True)]

    model = Scripted(answer)
    with Budget() as budget:
        assert {type(each) for each in asyncio.run(thrice())} == {errors.IncompleteReplyError}
    assert len(model.calls) == budget.spent.calls == 1


@pytest.mark.parametrize("reply", [Reply("", "error"), Reply("  "), Reply("x", "abort")])
def test_only_whole_replies_are_kept(path: Path, reply: Reply) -> None:
    model = Scripted(lambda request: reply)
    engine = Cached(model, path)
    for _ in range(2):
        with pytest.raises(errors.IncompleteReplyError):
            call_now(engine, ask())
        with pytest.raises(errors.IncompleteReplyError):
            asyncio.run(call(engine, ask()))
    assert len(model.calls) == 4
    asyncio.run(engine.close())


class Mine:
    """A user's engine, with what its answers depend on."""

    def __init__(self, says: str) -> None:
        self.says = says

    async def complete(self, request: Request) -> Reply:
        return Reply(self.says)


class Named(Mine):
    @property
    def identity(self) -> str:
        return f"named {self.says}"


def test_engines_that_answer_otherwise_share_no_entry(path: Path) -> None:
    def says(engine: Any) -> str:
        return asyncio.run(call(Cached(engine, path), ask())).text

    assert [says(Named(text)) for text in "xyx"] == ["x", "y", "x"]
    assert [says(Mine(text)) for text in "abca"] == ["a", "b", "c", "a"]
    rotated = Mine("a")
    rotated.api_key = "sk-new"  # type: ignore[attr-defined]
    assert identity_of(rotated) == identity_of(Mine("a"))


class Counting:
    """Remembers how often it was asked."""

    def __init__(self, model: str, temperature: float) -> None:
        self.model, self.temperature = model, temperature
        self.asked, self.max_tokens = 0, 5

    async def complete(self, request: Request) -> Reply:
        self.asked += 1
        return Reply(f"{self.model} at {self.temperature}")


def test_numbers_tell_engines_apart_but_what_they_count_does_not(path: Path) -> None:
    engines = [Counting("m", 0.0), Counting("m", 1.0), Counting("n", 1.0)]
    for _ in range(2):
        said = [asyncio.run(call(Cached(engine, path), ask())).text for engine in engines]
        assert said == ["m at 0.0", "m at 1.0", "n at 1.0"]
    assert [engine.asked for engine in engines] == [1, 1, 1]
    assert identity_of(engines[1]) == identity_of(Counting("m", 1.0))


class Slotted:
    __slots__ = ("model",)

    def __init__(self, model: Any) -> None:
        self.model = model

    async def complete(self, request: Request) -> Reply:
        return Reply(str(self.model))


class Configured:
    """With whatever settings, and with a log and a count that it keeps."""

    def __init__(self, max_tokens: Any, api_key: str = "") -> None:
        self.max_tokens, self.config = max_tokens, {"value": max_tokens, "api_key": api_key}
        self.log: list[str] = []
        self.times: dict[str, int] = {}
        self.heat = 0.0

    async def complete(self, request: Request) -> Reply:
        self._count()
        self.log.append("asked")
        return Reply(f"{self.config['value']} {self.heat}")

    def _count(self) -> None:
        self.times["asked"] = self.times.get("asked", 0) + 1
        self.times["asked"] += 1

    def hot(self) -> Configured:
        self.heat = 1.0
        return self


@dataclasses.dataclass
class Settings:
    model: str


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Slotted("a"), Slotted("b")),
        (Configured(5), Configured(5000)),
        (Configured(True), Configured(False)),
        (Configured(Path("a")), Configured(Path("b"))),
        (Configured(["a"]), Configured(["b"])),
        (Configured({"a"}), Configured({"b"})),
        (Configured(Settings("a")), Configured(Settings("b"))),
        (Configured(lambda: 1), Configured(lambda: 2)),
        (Configured(Slotted("a")), Configured(Slotted("b"))),
        (Configured(5), Configured(5).hot()),
    ],
)
def test_what_an_engine_is_made_with_tells_it_apart(one: Any, other: Any) -> None:
    before = identity_of(one)
    assert before != identity_of(other)
    asyncio.run(one.complete(ask()))
    assert identity_of(one) == before
    assert identity_of(Configured(5, "sk-1")) == identity_of(Configured(5, "sk-2"))


def test_all_scripted_engines_are_one_model_unless_they_say_otherwise(path: Path) -> None:
    first, second = Scripted(lambda request: "x"), Scripted(lambda request: "y")
    texts = [asyncio.run(call(Cached(engine, path), ask())).text for engine in (first, second)]
    assert (texts, len(second.calls)) == (["x", "x"], 0)
    second.identity = "another"
    assert asyncio.run(call(Cached(second, path), ask())).text == "y"


@pytest.mark.parametrize("text", ["\ud800 lone", "x" * 2**20, "\0", "{}", '"', "🙂"])
def test_any_text_is_kept_as_it_is(path: Path, text: str) -> None:
    model = Scripted(lambda request: request.messages[0]["content"])
    assert [reply.text for reply in ways(model, path, ask(text))] == [text, text]
    assert len(model.calls) == 1


NO_REPLIES: list[Any] = [
    *("", "{", "null", "7", "[]", '{"text": 1}', b"\xff\xfe", None, 7, 2.5, "[" * 100_000),
    '{"text": "", "finish_reason": "stop", "tokens": [1, 1]}',
    '{"text": " \\n\\t", "finish_reason": "stop", "tokens": [1, 1]}',
    '{"text": "half", "finish_reason": "abort", "tokens": [1, 1]}',
    '{"text": "withheld", "finish_reason": "content_filter", "tokens": [1, 1]}',
    '{"text": "x", "finish_reason": 3, "tokens": [1, 1]}',
    '{"text": "x", "finish_reason": "stop", "tokens": null}',
    '{"text": "x", "finish_reason": "stop", "tokens": [1, "1"]}',
    '{"text": "x", "finish_reason": "stop", "tokens": [1]}',
    '{"text": "x"}',
    '{"text": ["x"], "finish_reason": "stop", "tokens": [1, 1]}',
    '["text", "finish_reason"]',
]


@pytest.mark.parametrize("value", NO_REPLIES)
def test_a_value_that_is_no_whole_reply_is_a_miss_and_is_mended(path: Path, value: Any) -> None:
    ways(counting(), path, ask())
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE other AS SELECT key, value FROM replies")
        file.execute("DROP TABLE replies")
        file.execute("CREATE TABLE replies (key TEXT PRIMARY KEY, value)")
        file.execute("INSERT INTO replies SELECT key, ? FROM other", (value,))
    file.close()
    model = counting()
    first, second = ways(model, path, ask())
    assert not first.cached and second.cached


def test_text_that_is_no_utf8_is_a_miss(path: Path) -> None:
    ways(counting(), path, ask())
    with sqlite3.connect(path) as file:
        file.execute("UPDATE replies SET value = CAST(X'FFFE' AS TEXT)")
    file.close()
    assert not ways(counting(), path, ask())[0].cached


def test_the_first_of_two_replies_counts_for_both(path: Path) -> None:
    arrived: list[asyncio.Future[None]] = []

    async def fn(request: Request) -> str:
        n = len(model.calls)
        arrived.append(asyncio.get_running_loop().create_future())
        if n == 2:
            arrived[0].set_result(None)
        await arrived[0]
        return f"reply {n}"

    model = Scripted(fn)
    engine = Cached(model, path)

    async def main() -> list[Reply]:
        return await asyncio.gather(*(call(engine, ask(temperature=1.0)) for _ in range(2)))

    first, second = asyncio.run(main())
    assert len(model.calls) == 2
    assert first.text == second.text
    assert call_now(engine, ask(temperature=1.0)).text == first.text  # type: ignore[union-attr]
    asyncio.run(engine.close())


@pytest.mark.parametrize("content", [b"this is no database, whatever it is called" * 50])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calls.sqlite"
    path.write_bytes(content)
    model = counting()
    with pytest.raises(errors.UsageError, match="delete the file") as caught:
        call_now(Cached(model, path), ask())
    assert str(path) in str(caught.value)
    assert model.calls == []
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "calls.sqlite"):
        model = counting()
        with pytest.raises(errors.UsageError, match="cannot be used") as caught:
            call_now(Cached(model, path), ask())
        assert str(path) in str(caught.value)
        assert model.calls == []


def _for(request: Request) -> str:
    return f"for {request.messages[0]['content']}"


def _fill(path: Path, start: int) -> None:
    engine = Cached(Scripted(_for), path)
    for n in range(start, start + 60):
        call_now(engine, ask(str(n)))
    asyncio.run(engine.close())


def test_processes_share_a_file(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_fill, args=(path, start)) for start in (0, 30, 60)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    model = Scripted(_for)
    engine = Cached(model, path)
    texts = [call_now(engine, ask(str(n))).text for n in range(120)]  # type: ignore[union-attr]
    assert texts == [f"for {n}" for n in range(120)]
    assert model.calls == []
    asyncio.run(engine.close())


def test_another_process_that_writes_is_waited_for(path: Path) -> None:
    ways(counting(), path, ask("first"))
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO replies VALUES ('half', 'written')")
    engine = Cached(counting(), path)
    assert call_now(engine, ask("first")).cached  # type: ignore[union-attr]
    end = threading.Timer(0.1, writer.commit)
    end.start()
    assert call_now(engine, ask("second")).text == "reply 1"  # type: ignore[union-attr]
    end.join()
    writer.close()
    asyncio.run(engine.close())


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_another_process_that_makes_the_file_is_waited_for(path: Path, lock: str) -> None:
    path.parent.mkdir()
    maker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    maker.execute("CREATE TABLE other (x)")
    maker.execute(f"BEGIN {lock}")
    maker.execute("INSERT INTO other VALUES (1)")
    end = threading.Timer(0.1, maker.commit)
    end.start()
    engine = Cached(counting(), path)
    assert call_now(engine, ask("first")).text == "reply 1"  # type: ignore[union-attr]
    end.join()
    maker.close()
    asyncio.run(engine.close())


def test_threads_share_a_cache(path: Path) -> None:
    model = Scripted(lambda request: f"for {request.messages[0]['content']}")
    engine = Cached(model, path)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(50):
                reply = call_now(engine, ask(str(n)))
                assert reply is not None and reply.text == f"for {n}"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    asyncio.run(engine.close())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_opens_the_file_anew(path: Path) -> None:
    engine = Cached(Scripted(lambda request: "x"), path)
    call_now(engine, ask("parent"))
    with engine.store._lock:  # as if a thread were writing when the process forks
        child = os.fork()
        if child == 0:
            status = 1
            signal.alarm(20)  # a child that waits for ever would outlive the test
            try:
                call_now(engine, ask("child"))
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert call_now(engine, ask("child")).cached  # type: ignore[union-attr]
    asyncio.run(engine.close())


def test_caching_serves_any_engine_and_ends(path: Path) -> None:
    model = counting()
    with caching(path):
        assert call_now(model, ask()).text == "reply 1"  # type: ignore[union-attr]
        assert asyncio.run(call(model, ask())).text == "reply 1"
    assert call_now(model, ask()).text == "reply 2"  # type: ignore[union-attr]
    with caching(path), Budget(calls=0):
        assert call_now(model, ask()).text == "reply 1"  # type: ignore[union-attr]


def test_a_reply_is_in_the_file_before_it_is_returned(path: Path) -> None:
    with caching(path):
        call_now(counting(), ask())
        file = sqlite3.connect(path)
        [(value,)] = file.execute("SELECT value FROM replies").fetchall()
        file.close()
    assert json.loads(value)["text"] == "reply 1"


def test_a_flight_that_has_landed_is_not_waited_for_again() -> None:
    class Instant:
        async def complete(self, request: Request) -> Reply:
            return Reply("fine")

    async def main() -> list[str]:
        engine = Coalesced(Instant())
        request = Request(({"role": "user", "content": "q"},), temperature=0.0)

        async def one(turns: int) -> str:
            for _ in range(turns):
                await asyncio.sleep(0)
            try:
                return (await engine.complete(request)).text
            except BudgetExceeded:
                return "no budget"

        with Budget(calls=0):
            return await asyncio.gather(*map(one, range(4)))

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ["no budget"] * 4


class Votes(nn.Module):
    """Five draws of one call, and three by threads of its own."""

    def __init__(self, temperature: float) -> None:
        self.solve = nn.LLM("Solve.", temperature=temperature)

    def forward(self, question: str) -> ta.TextVariable:
        drawn = [self.solve(question) for _ in range(5)]
        drawn += ta.map(lambda _: self.solve(question), range(3))
        return ta.cat(sorted(x.data for x in drawn), " ")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_sample_draws_as_often_with_a_cache_as_without(tmp_path: Path, is_async: bool) -> None:
    """And once a run is resumed, or the same state evaluated again, they are the same draws."""

    async def later(request: Request) -> str:
        return f"{next(numbers)}"

    numbers = itertools.count()
    engine = Scripted(later if is_async else lambda request: f"{next(numbers)}")
    examples = [ta.data.Example(question, "x") for question in "ab"]
    outputs = []
    for paid in (16, 0):
        with caching(tmp_path / "calls.sqlite"), Budget() as budget:
            for _ in range(2):
                votes = Votes(1.0).to(engine)
                found = ta.evaluate(votes, examples, nn.ExactMatchLoss())
                outputs.append([row.output for row in found.rows])
        assert budget.spent.calls == paid
    assert outputs == [outputs[0]] * 4
    drawn = " ".join(map(str, outputs[0])).split()
    assert sorted(map(int, drawn)) == list(range(16))


def test_at_temperature_0_there_is_one_draw(tmp_path: Path) -> None:
    engine = Scripted(lambda request: str(len(engine.calls)))
    with caching(tmp_path / "calls.sqlite"), Budget() as budget:
        ta.evaluate(Votes(0.0).to(engine), [ta.data.Example("a", "x")], nn.ExactMatchLoss())
    assert budget.spent.calls == 1
