"""Scripted, the budget, retries, limits and the single flight, without any server."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import json
import random
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import textautograd as ta
from textautograd import errors
from textautograd.cancelling import Cancelled, cancel_scope
from textautograd.engines import (
    HTTP,
    Budget,
    Cached,
    Coalesced,
    Limited,
    LiteLLM,
    Reply,
    Request,
    Retrying,
    Scripted,
    Usage,
    caching,
    call,
    call_now,
    engine,
)
from textautograd.prompts.size import limit_of


def ask(text: str = "hi", **fields: Any) -> Request:
    return Request([{"role": "user", "content": text}], **fields)


async def no_wait(seconds: float) -> None:
    pass


class Plain:
    """A user's engine with nothing but `complete`."""

    def __init__(self, fn: Callable[[Request], Awaitable[Any]]) -> None:
        self.complete = fn


def gathered(*calls: Awaitable[Any]) -> list[Any]:
    async def together() -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(together())


# Scripted


def test_scripted_answers_in_the_callers_thread() -> None:
    threads = []
    model = Scripted(lambda request: threads.append(threading.get_ident()) or "yes")  # type: ignore[func-returns-value]
    assert call_now(model, ask()) == Reply("yes", usage=Usage(calls=1))
    assert threads == [threading.get_ident()]
    assert model.calls == [ask()]


def test_scripted_never_runs_a_plain_function_on_the_loop() -> None:
    name = contextvars.ContextVar("name", default="")
    seen = []
    model = Scripted(lambda request: seen.append((threading.get_ident(), name.get())) or "yes")  # type: ignore[func-returns-value]

    async def main() -> int:
        name.set("mine")
        assert (await call(model, ask())).text == "yes"
        return threading.get_ident()

    loop_thread = asyncio.run(main())
    assert seen[0][0] != loop_thread
    assert seen[0][1] == "mine"


def test_scripted_takes_an_async_function() -> None:
    async def fn(request: Request) -> Reply:
        await asyncio.sleep(0)
        return Reply("later", usage=Usage(3, 4, calls=1))

    model = Scripted(fn)
    assert call_now(model, ask()) is None
    assert model.calls == []
    assert asyncio.run(call(model, ask())).text == "later"
    assert model.calls == [ask()]


@pytest.mark.parametrize("error", [KeyError("k"), errors.ServerError("down")])
def test_what_a_scripted_function_raises_is_raised(error: Exception) -> None:
    def fn(request: Request) -> str:
        raise error

    with pytest.raises(type(error)):
        call_now(Scripted(fn), ask())
    with pytest.raises(type(error)):
        asyncio.run(call(Scripted(fn), ask()))


@pytest.mark.parametrize("error", [StopIteration, SystemExit])
def test_what_would_end_a_loop_does_not(error: type[BaseException]) -> None:
    def fn(request: Request) -> str:
        raise error

    with pytest.raises(RuntimeError, match=error.__name__):
        asyncio.run(call(Scripted(fn), ask()))


async def _coroutine() -> str:
    return "x"


@pytest.mark.parametrize("answer", [3, None, b"x"])
def test_scripted_must_return_a_text_or_a_reply(answer: Any) -> None:
    with pytest.raises(errors.UsageError, match=type(answer).__name__):
        call_now(Scripted(lambda request: answer), ask())


def test_scripted_says_what_is_wrong_with_a_function() -> None:
    with pytest.raises(errors.UsageError, match="async def"):
        call_now(Scripted(lambda request: _coroutine()), ask())
    with pytest.raises(errors.UsageError, match="function"):
        Scripted("yes")  # type: ignore[arg-type]


# The call site


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_reply_is_none(text: str) -> None:
    with pytest.raises(errors.IncompleteReplyError):
        call_now(Scripted(lambda request: text), ask())
    with pytest.raises(errors.IncompleteReplyError):
        asyncio.run(call(Scripted(lambda request: text), ask()))


def test_a_users_engine_is_held_to_the_contract() -> None:
    async def cut(request: Request) -> Reply:
        return Reply("half", "length")

    async def text(request: Request) -> str:
        return "x"

    with pytest.raises(errors.IncompleteReplyError, match="max_tokens"):
        asyncio.run(call(Plain(cut), ask()))
    with pytest.raises(errors.UsageError, match=r"Reply\(text\)"):
        asyncio.run(call(Plain(text), ask()))  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="async def"):
        asyncio.run(call(Plain(lambda request: Reply("x")), ask()))  # type: ignore[arg-type, return-value]
    assert call_now(Plain(cut), ask()) is None


WRONG: list[tuple[str, Reply]] = [
    ("text", Reply(b"x")),  # type: ignore[arg-type]
    ("text", Reply(None)),  # type: ignore[arg-type]
    ("finish_reason", Reply("x", ["stop"])),  # type: ignore[arg-type]
    ("finish_reason", Reply("x", None)),  # type: ignore[arg-type]
    ("usage", Reply("x", usage={"input_tokens": 3})),  # type: ignore[arg-type]
    ("usage", Reply("x", usage=None)),  # type: ignore[arg-type]
    (r"usage\.input_tokens", Reply("x", usage=Usage("3"))),  # type: ignore[arg-type]
    (r"usage\.output_tokens", Reply("x", usage=Usage(3, 2.5))),  # type: ignore[arg-type]
    (r"usage\.calls", Reply("x", usage=Usage(calls=-1))),
    (r"usage\.calls", Reply("x", usage=Usage(calls=True))),
    (r"usage\.cached_tokens", Reply("x", usage=Usage(cached_tokens=2**53))),
    (r"usage\.cost", Reply("x", usage=Usage(cost=float("nan")))),
    (r"usage\.cost", Reply("x", usage=Usage(cost=-1.0))),
    (r"usage\.cost", Reply("x", usage=Usage(cost="free"))),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("field", "reply"), WRONG)
def test_a_reply_with_a_wrong_field_names_engine_and_field(field: str, reply: Reply) -> None:
    class Mine:
        async def complete(self, request: Request) -> Reply:
            return reply

        def __repr__(self) -> str:
            return "Mine()"

    with pytest.raises(errors.UsageError, match=rf"Mine\(\) returned a Reply whose {field} is"):
        asyncio.run(call(Mine(), ask()))
    with pytest.raises(errors.UsageError, match=rf"returned a Reply whose {field} is"):
        call_now(Scripted(lambda request: reply), ask())


@pytest.mark.parametrize(
    ("field", "reply"), [w for w in WRONG if "usage" in w[0] and w[1].usage is not None]
)
def test_what_a_failed_call_has_used_is_held_to_the_same(field: str, reply: Reply) -> None:
    def fail(request: Request) -> Reply:
        error = errors.IncompleteReplyError("cut off", text="x")
        error.usage = reply.usage
        raise error

    async def fail_later(request: Request) -> Reply:
        return fail(request)

    said = f"raised IncompleteReplyError whose {field} is"
    with Budget(usd=1.0) as budget:
        with pytest.raises(errors.UsageError, match=said):
            call_now(Scripted(fail), ask())
        with pytest.raises(errors.UsageError, match=said):
            asyncio.run(call(Scripted(fail_later), ask()))
    assert budget.spent == Usage() and "in flight" not in repr(budget)


# Retrying and Limited


def failing(*failures: Exception) -> Scripted:
    left = list(failures)

    async def fn(request: Request) -> str:
        if left:
            raise left.pop(0)
        return "at last"

    return Scripted(fn)


def waits_of(model: Scripted, attempts: int = 5) -> tuple[Any, list[float]]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    [result] = gathered(call(Retrying(model, attempts, sleep=sleep), ask()))
    return result, waits


def test_what_fails_at_once_is_tried_again_too() -> None:
    def flaky(request: Request) -> str:
        if len(model.calls) < 3:
            raise errors.ServerError("down")
        return "x"

    model = Scripted(flaky)
    agent = ta.nn.LLM("Answer.").to(Retrying(model, 3, sleep=no_wait))
    assert agent(question="1").data == "x" and len(model.calls) == 3


def test_waits_grow_and_stay_below_their_bounds() -> None:
    result, waits = waits_of(failing(*[errors.ServerError("down")] * 4))
    assert result.text == "at last"
    assert len(waits) == 4
    assert all(0 <= wait <= 2**n for n, wait in enumerate(waits))


def test_the_first_failure_of_each_kind_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    waits_of(failing(*[errors.ServerError("do\x1bwn")] * 2, errors.RateLimitError("slow")))
    assert [record.getMessage() for record in caplog.records] == [
        rf"{said}; trying again, up to 5 attempts in all" for said in (r"do\x1bwn", "slow")
    ]
    caplog.clear()
    waits_of(failing(errors.ServerError("down")), attempts=1)
    assert not caplog.records


def test_the_server_is_given_the_time_that_it_asked_for() -> None:
    _, waits = waits_of(failing(errors.RateLimitError("slow", retry_after=30.0)))
    assert 30.0 <= waits[0] <= 31.0


def test_a_server_that_asks_for_an_hour_is_not_waited_for() -> None:
    model = failing(errors.RateLimitError("slow", retry_after=3600.0))
    error, waits = waits_of(model)
    assert waits == [] and len(model.calls) == 1
    assert "3600 s" in error.__notes__[0]


def test_the_last_error_is_raised_as_it_came_with_the_attempts_made() -> None:
    last = errors.ServerError("still down")
    error, _ = waits_of(failing(errors.ServerError("down"), last), attempts=2)
    assert error is last
    assert error.__notes__ == ["after 2 attempts"]


@pytest.mark.parametrize(
    "error",
    [
        errors.BadRequestError("no"),
        errors.AuthenticationError("no"),
        errors.NotFoundError("no"),
        errors.ContextOverflowError("no"),
        errors.IncompleteReplyError("no"),
        errors.BudgetExceeded("no"),
        ValueError("no"),
    ],
)
def test_what_will_not_change_is_not_tried_again(error: Exception) -> None:
    model = failing(error)
    raised, _ = waits_of(model)
    assert raised is error
    assert len(model.calls) == 1


def test_retries_leave_the_users_random_numbers_alone() -> None:
    random.seed(1)
    before = random.getstate()
    waits_of(failing(*[errors.ServerError("down")] * 3))
    assert random.getstate() == before


def test_each_attempt_is_charged_once_it_succeeds() -> None:
    with Budget(calls=1) as budget:
        result, _ = waits_of(failing(errors.ServerError("down"), errors.ServerError("down")))
    assert result.text == "at last"
    assert budget.spent.calls == 1


def test_at_most_n_calls_are_in_flight_on_each_of_several_loops() -> None:
    flying = most = 0

    async def fn(request: Request) -> str:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        for _ in range(3):
            await asyncio.sleep(0)
        flying -= 1
        return "x"

    model = Limited(Scripted(fn), 3)
    for _ in range(2):
        results = gathered(*(call(model, ask(str(n))) for n in range(20)))
        assert [r.text for r in results] == ["x"] * 20
    assert most == 3


def test_a_failure_or_a_cancellation_frees_its_slot() -> None:
    model = Limited(failing(ValueError("no")), 1)

    async def main() -> str:
        with pytest.raises(ValueError, match="no"):
            await call(model, ask())
        task = asyncio.create_task(call(model, ask()))
        await asyncio.sleep(0)
        task.cancel()
        return (await call(model, ask())).text

    assert asyncio.run(main()) == "at last"


# Coalesced


def gate() -> tuple[Scripted, Callable[[], None]]:
    """A model that answers once it is opened, on the loop that asks it."""
    waiting: list[asyncio.Future[None]] = []

    async def fn(request: Request) -> Reply:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        await future
        return Reply("x", usage=Usage(10, 5, 0, 0.5, 1))

    def open_it() -> None:
        for future in waiting:
            if not future.done():
                future.set_result(None)

    return Scripted(fn), open_it


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_twins_in_flight_are_sent_once_and_paid_once() -> None:
    model, open_it = gate()

    async def main() -> list[Reply]:
        twins = [asyncio.create_task(call(engine, ask(temperature=0))) for _ in range(5)]
        await settled()
        open_it()
        return await asyncio.gather(*twins)

    engine = Coalesced(model)
    with Budget() as budget:
        replies = asyncio.run(main())
    assert [r.text for r in replies] == ["x"] * 5
    assert len(model.calls) == 1
    assert budget.spent == sum((r.usage for r in replies), Usage()) == Usage(10, 5, 0, 0.5, 1)
    assert [r.cached for r in replies].count(True) == 4


def test_a_twin_of_a_call_that_is_cancelled_while_it_waits_for_its_turn_is_sent() -> None:
    model, open_it = gate()
    engine = Coalesced(Limited(model, 1))

    async def main() -> list[Any]:
        first = asyncio.create_task(call(engine, ask("first", temperature=0)))
        await settled()
        with cancel_scope() as scope:
            cancelled = asyncio.create_task(call(engine, ask(temperature=0)))
        twin = asyncio.create_task(call(engine, ask(temperature=0)))
        await settled()
        scope.cancel()
        open_it()
        await settled()
        open_it()
        return await asyncio.gather(first, cancelled, twin, return_exceptions=True)

    first, cancelled, twin = asyncio.run(main())
    assert (first.text, type(cancelled), twin.text) == ("x", Cancelled, "x")
    assert len(model.calls) == 2


@pytest.mark.parametrize("ticks", range(8))
def test_a_twin_that_comes_while_a_reply_is_on_its_way_finds_it(ticks: int, tmp_path: Path) -> None:
    model, open_it = gate()
    engine = Coalesced(model)

    async def late() -> Reply:
        for _ in range(ticks):
            await asyncio.sleep(0)
        return await call(engine, ask(temperature=0))

    async def main() -> list[Reply]:
        first = asyncio.create_task(call(engine, ask(temperature=0)))
        await settled()
        open_it()
        return await asyncio.gather(first, late())

    with caching(tmp_path / "calls.sqlite"), Budget(calls=1) as budget:
        replies = asyncio.run(main())
    assert [r.text for r in replies] == ["x", "x"]
    assert budget.spent == replies[0].usage == Usage(10, 5, 0, 0.5, 1)
    with sqlite3.connect(tmp_path / "calls.sqlite") as connection:
        (kept,) = connection.execute("select value from replies").fetchall()
    assert json.loads(kept[0])["tokens"] == [10, 5]


@pytest.mark.parametrize(
    "other",
    [
        ask("other", temperature=0),
        ask(temperature=0, sample=1),
        ask(temperature=0, max_tokens=3),
        ask(temperature=0, schema={}),
    ],
)
def test_requests_that_differ_are_no_twins(other: Request) -> None:
    model, open_it = gate()

    async def main() -> None:
        tasks = [asyncio.create_task(call(engine, r)) for r in (ask(temperature=0), other)]
        await settled()
        open_it()
        await asyncio.gather(*tasks)

    engine = Coalesced(model)
    asyncio.run(main())
    assert len(model.calls) == 2


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_draws_are_no_twins(temperature: float | None) -> None:
    model = Scripted(lambda request: "x")
    engine = Coalesced(model)
    gathered(*(call(engine, ask(temperature=temperature)) for _ in range(3)))
    assert len(model.calls) == 3


def test_a_cancelled_caller_takes_nobody_along() -> None:
    model, open_it = gate()

    async def main() -> Reply:
        first, second = (asyncio.create_task(call(engine, ask(temperature=0))) for _ in range(2))
        await settled()
        first.cancel()
        await settled()
        open_it()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await second

    engine = Coalesced(model)
    assert asyncio.run(main()).text == "x"
    assert len(model.calls) == 1


@pytest.mark.parametrize("later", range(6))  # turns of the loop after the cancellation
def test_a_call_that_all_have_left_is_cancelled_and_not_joined(later: int) -> None:
    model, open_it = gate()

    async def main() -> Reply:
        left = [asyncio.create_task(call(engine, ask(temperature=0))) for _ in range(2)]
        await settled()
        for task in left:
            task.cancel()
        for _ in range(later):
            await asyncio.sleep(0)
        late = asyncio.create_task(call(engine, ask(temperature=0)))
        await settled()
        open_it()
        return await late

    engine = Coalesced(model)
    with Budget(calls=1):
        assert asyncio.run(main()).text == "x"
    assert len(model.calls) == 2


def test_a_failure_is_shared_and_not_kept() -> None:
    async def fail(request: Request) -> str:
        await settled()
        raise errors.ServerError("down")

    model = Scripted(fail)
    engine = Coalesced(model)
    failed = gathered(*(call(engine, ask(temperature=0)) for _ in range(3)))
    assert [type(f) for f in failed] == [errors.ServerError] * 3
    assert len(model.calls) == 1
    gathered(call(engine, ask(temperature=0)))
    assert len(model.calls) == 2


def test_anothers_budget_stops_nobody_else() -> None:
    model = Scripted(lambda request: "x")
    engine = Coalesced(model)

    async def main() -> list[Any]:
        with Budget(calls=0):
            poor = asyncio.create_task(call(engine, ask(temperature=0)))
        rich = asyncio.create_task(call(engine, ask(temperature=0)))
        return await asyncio.gather(poor, rich, return_exceptions=True)

    poor, rich = asyncio.run(main())
    assert isinstance(poor, errors.BudgetExceeded)
    assert rich.text == "x"


def test_copies_of_a_module_share_its_engine() -> None:
    engine = Limited(Scripted(lambda request: "x"), 2)
    assert copy.deepcopy(engine) is engine
    assert copy.deepcopy(engine.inner) is engine.inner


class Stating:
    """A user's engine that states its limit as a text."""

    max_input_tokens = "7"

    async def complete(self, request: Request) -> Reply:
        return Reply("x")


MODEL = Scripted(lambda request: "x")
HERE = "http://127.0.0.1/v1"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: engine("local/" + "a" * 5000 + ".gguf"), "no file"),
        (lambda: engine("local/\0.gguf"), "no file"),
        (lambda: engine("local/~nobody-of-this-name/x.gguf"), "no file"),
        (lambda: engine("\ud800"), "an engine's name"),
        (lambda: engine("m\ud800", api_base=HERE), "an engine's name"),
        (lambda: LiteLLM(5), "an engine's name"),  # type: ignore[arg-type]
        (lambda: HTTP(5, HERE), "an engine's name"),  # type: ignore[arg-type]
        (lambda: HTTP("", HERE), "an engine's name"),
        (lambda: Retrying(MODEL, "3"), "max_attempts must be"),  # type: ignore[arg-type]
        (lambda: Retrying(MODEL, 3, "3"), "max_wait must be"),  # type: ignore[arg-type]
        (lambda: Limited(MODEL, "3"), "n, the calls at once, must be"),  # type: ignore[arg-type]
        (lambda: Limited(MODEL, True), "n, the calls at once, must be"),
        (lambda: Retrying(None), "an engine is an object"),  # type: ignore[arg-type]
        (lambda: Coalesced("m"), "an engine is an object"),  # type: ignore[arg-type]
        (lambda: Limited(Scripted, 3), "an engine is an object"),  # type: ignore[arg-type]
        (lambda: Cached(None, "x"), "an engine is an object"),  # type: ignore[arg-type]
        (lambda: limit_of(Stating()), "max_input_tokens of .* must be a whole number"),
    ],
)
def test_what_cannot_work_is_one_clear_error(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(errors.UsageError, match=said) as caught:
        make()
    str(caught.value).encode()
    assert len(str(caught.value)) < 500
