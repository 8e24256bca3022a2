"""Budgets: never passed, never in the way of what has room, and never waited for in vain."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import math
import multiprocessing
import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_engines_wrappers import Plain, ask, gathered

import textautograd as ta
from textautograd import errors
from textautograd.engines import (
    Budget,
    Coalesced,
    Limited,
    Reply,
    Request,
    Retrying,
    Scripted,
    Usage,
    call,
    call_now,
)
from textautograd.engines._hold import PATIENCE, Hold, Share, is_within_a_call


def priced(cost: float | None = 0.5) -> Scripted:
    return Scripted(lambda request: Reply("x", usage=Usage(10, 5, 0, cost, 1)))


async def within(budgets: Iterable[Budget], engine: Any, request: Request) -> Reply:
    """A call that is made in these."""
    with contextlib.ExitStack() as stack:
        for budget in budgets:
            stack.enter_context(budget)
        return await call(engine, request)


def test_budget_counts_what_is_spent() -> None:
    model = priced()
    with Budget() as outer:
        call_now(model, ask())
        with Budget() as inner:
            asyncio.run(call(model, ask()))
    call_now(model, ask())
    assert inner.spent == Usage(10, 5, 0, 0.5, 1)
    assert outer.spent == Usage(20, 10, 0, 1.0, 2)


def test_budget_raises_before_the_call_that_would_pass_it() -> None:
    model = priced()
    with Budget(calls=2):
        call_now(model, ask())
        asyncio.run(call(model, ask()))
        for again in (call_now, lambda m, r: asyncio.run(call(m, r))):
            with pytest.raises(errors.BudgetExceeded):
                again(model, ask())
    assert len(model.calls) == 2


@given(st.integers(0, 10))
def test_concurrent_calls_never_pass_a_budget(limit: int) -> None:
    async def slow(request: Request) -> str:
        await asyncio.sleep(0)
        return "x"

    model = Scripted(slow)
    with Budget(calls=limit) as budget:
        results = gathered(*(call(model, ask()) for _ in range(64)))
    assert len(model.calls) == budget.spent.calls == limit
    assert sum(isinstance(r, errors.BudgetExceeded) for r in results) == 64 - limit


@pytest.mark.parametrize("max_tokens", [None, 100])
@given(limit=st.integers(0, 600))
def test_concurrent_calls_of_unknown_length_never_pass_a_budget(
    max_tokens: int | None, limit: int
) -> None:
    """The first tells how long replies are; the others wait for it."""

    async def slow(request: Request) -> Reply:
        await asyncio.sleep(0)
        return Reply("x", usage=Usage(1, 100, calls=1))

    with Budget(tokens=limit) as budget:
        model = Scripted(slow)
        gathered(*(call(model, ask(max_tokens=max_tokens)) for _ in range(64)))
    most = 100 if max_tokens is None else 0  # a first reply of unknown length
    assert budget.spent.tokens <= limit + most
    assert limit < 200 or budget.spent.tokens > limit - 202


def answering(*, length: int = 1, cost: float | None = None, of: str = "") -> Scripted:
    """Replies of so many tokens, after some turns of the loop; `of` a purpose only, else of one."""

    async def answer(request: Request) -> Reply:
        for _ in range(3):
            await asyncio.sleep(0)
        is_meant = not of or request.purpose == of
        return Reply("x", usage=Usage(1, length if is_meant else 1, cost=cost, calls=1))

    return Scripted(answer)


def kinds(results: list[Any]) -> Counter[str]:
    return Counter(type(result).__name__ for result in results)


def test_after_calls_that_timed_out_twice_as_many_go_at_once() -> None:
    """Else calls would go one at a time for as long as a server hangs."""
    at_once: list[int] = []

    async def hanging(request: Request) -> str:
        running.add(request.sample)
        at_once.append(len(running))
        for _ in range(500):
            await asyncio.sleep(0)
        running.discard(request.sample)
        raise errors.TimeoutExpired("no reply")

    running: set[int] = set()
    for limits in ({"tokens": 10**6}, {"usd": 1.0}):
        at_once.clear()
        with Budget(**limits):  # type: ignore[arg-type]
            model = Scripted(hanging)
            gathered(*(call(model, ask(sample=i)) for i in range(64)))
        assert at_once[:2] == [1, 1] and max(at_once) > 8


def test_a_first_call_that_fails_unpaid_tells_nothing() -> None:
    model = answering(length=1000)
    calls = itertools.count()

    async def answer(request: Request) -> Reply:
        reply = await model.complete(request)
        if next(calls) < 3:
            raise errors.ServerError("loading")
        if request.sample == 3:
            return Reply("x", cached=True)
        return reply

    engine = Scripted(answer)
    with Budget(tokens=3000) as budget:
        found = gathered(*(call(engine, ask(sample=i)) for i in range(64)))
    assert kinds(found) == {"ServerError": 3, "Reply": 3, "BudgetExceeded": 58}
    assert budget.spent.tokens == 2002


@pytest.mark.parametrize(
    ("limits", "dear", "cheap"),
    [
        ({"usd": 1.0}, {"cost": 0.2}, {"cost": 0.001}),
        ({"tokens": 10_000}, {"length": 2000}, {}),
        ({"tokens": 10_000}, {}, {"max_tokens": 1000}),
        ({"calls": 65}, {}, {}),
    ],
)
def test_a_call_that_has_no_room_beside_those_in_flight_waits(
    limits: dict[str, Any], dear: dict[str, Any], cheap: dict[str, Any]
) -> None:
    rewriter, agent = answering(**dear), answering(cost=cheap.get("cost"))
    with Budget(**limits) as budget:
        gathered(call(rewriter, ask(purpose="optimize")))
        request = ask(max_tokens=cheap.get("max_tokens"))
        found = gathered(*(call(agent, request) for _ in range(64)))
    assert kinds(found) == {"Reply": 64}
    assert "held" not in repr(budget) and "in flight" not in repr(budget)


def test_what_waits_for_room_takes_no_slot_of_others() -> None:
    agent, other = Limited(answering(), 1), answering(of="backward", length=10)
    order: list[str] = []

    async def named(name: str, engine: Any, purpose: str) -> None:
        await call(engine, ask(purpose=purpose))
        order.append(name)

    async def within() -> None:
        with Budget(tokens=10**6):
            slow = asyncio.create_task(named("slow", other, "backward"))
            await asyncio.sleep(0)
            waits = asyncio.create_task(named("waits", agent, "forward"))
            await asyncio.sleep(0)
        await named("outside", agent, "forward")
        await asyncio.gather(slow, waits)

    async def both() -> None:
        await asyncio.gather(within())

    asyncio.run(both())
    assert sorted(order) == ["outside", "slow", "waits"] and order[-1] == "waits"


def test_a_call_within_another_waits_for_nobody() -> None:
    """Whoever is waited for comes back: it has room, or is refused at once."""
    model, other = answering(), answering()
    found: list[Any] = []

    async def asks(request: Request) -> Reply:
        for tokens in (800, 700):
            calls = (call(model, ask(max_tokens=tokens)) for _ in range(1))
            found.extend(await asyncio.gather(*calls, return_exceptions=True))
        return Reply("x", usage=Usage(1, 1, calls=1))

    with Budget(tokens=1000) as budget:
        waits = call(other, ask())  # nothing is known of it
        gathered(call(Plain(asks), ask(max_tokens=200)), waits)
    assert kinds(found) == {"BudgetExceeded": 1, "Reply": 1} and budget.spent.calls == 3


def test_anothers_flight_is_not_waited_for_within_a_call() -> None:
    """It may itself be waiting for this one to come back."""
    model = Coalesced(answering())

    async def asks(request: Request) -> Reply:
        for _ in range(5):
            await asyncio.sleep(0)
        return await call(model, ask(temperature=0))

    async def both() -> list[Any]:
        calls = call(Plain(asks), ask()), call(model, ask(temperature=0))
        return await asyncio.wait_for(asyncio.gather(*calls), 60)

    with Budget(tokens=10**6):
        assert kinds(asyncio.run(both())) == {"Reply": 2}


def test_a_call_within_one_waits_for_none_that_waits_for_that_ones_slot() -> None:
    model = answering()

    async def asks(request: Request) -> Reply:
        for _ in range(5):
            await asyncio.sleep(0)
        return await call(model, ask(max_tokens=1))

    engine = Limited(Plain(asks), 1)

    async def both() -> list[Any]:
        calls = [call(engine, ask(max_tokens=1, sample=i)) for i in range(2)]
        together = asyncio.gather(*calls, return_exceptions=True)
        return await asyncio.wait_for(together, 60)

    with Budget(calls=2) as budget:
        found = asyncio.run(both())
    assert kinds(found) == {"BudgetExceeded": 1, "Reply": 1} and budget.spent.calls == 2


class Tree(NamedTuple):
    """A call that makes others first, at once or in turn, and what its reply takes."""

    is_stated: bool
    length: int
    at_once: bool
    within: list[Any]


def calls_of(within: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[Tree]:
    return st.builds(Tree, st.booleans(), st.integers(1, 30), st.booleans(), within)


trees = st.recursive(
    calls_of(st.just([])), lambda inner: calls_of(st.lists(inner, max_size=3)), max_leaves=12
)


@given(
    st.lists(trees, min_size=1, max_size=6),
    st.integers(0, 300),
    st.integers(0, 30),
    st.booleans(),
    st.integers(1, 3),
)
def test_calls_within_calls_end_whatever_waits_for_whatever(
    forest: list[Tree], tokens: int, calls: int, nested: bool, slots: int
) -> None:
    """Each is answered or refused; what states its length passes no budget."""

    async def grow(request: Request) -> Reply:
        tree, depth = waiting.pop(request.sample)
        await asyncio.sleep(0)
        made = [made_of(each, depth + 1) for each in tree.within]
        if tree.at_once:
            await asyncio.gather(*made, return_exceptions=True)
        else:
            for each in made:
                await asyncio.gather(each, return_exceptions=True)
        return Reply("x", usage=Usage(1, tree.length, calls=1))

    def made_of(tree: Tree, depth: int = 0) -> Coroutine[Any, Any, Reply]:
        waiting[number := next(numbers)] = tree, depth
        stated = tree.length if tree.is_stated else None
        model = models.setdefault(depth, Limited(Plain(grow), slots))  # each asks the next
        return call(model, ask("x", sample=number, max_tokens=stated))

    async def all_of_them() -> list[Any]:
        if nested:
            with Budget(tokens=tokens // 2 + 1):
                return await asyncio.gather(*map(made_of, forest), return_exceptions=True)
        return await asyncio.gather(*map(made_of, forest), return_exceptions=True)

    numbers, waiting = itertools.count(), dict[int, tuple[Tree, int]]()
    models: dict[int, Limited] = {}
    with Budget(calls=calls, tokens=tokens) as budget:
        found = asyncio.run(asyncio.wait_for(all_of_them(), 60))
    assert set(kinds(found)) <= {"Reply", "BudgetExceeded"}
    assert budget.spent.calls <= calls and "in flight" not in repr(budget)
    if all_stated(forest):
        assert budget.spent.tokens <= tokens


def all_stated(forest: list[Tree]) -> bool:
    return all(tree.is_stated and all_stated(tree.within) for tree in forest)


def test_one_who_waits_and_is_given_up_holds_nobody_up() -> None:
    async def some() -> list[Any]:
        first = asyncio.create_task(call(model, ask()))
        given_up = asyncio.create_task(call(model, ask()))
        last = asyncio.create_task(call(model, ask()))
        await asyncio.sleep(0)
        given_up.cancel()
        return await asyncio.gather(first, given_up, last, return_exceptions=True)

    model = answering()
    with Budget(calls=2, tokens=100) as budget:
        found = asyncio.run(some())
    assert kinds(found) == {"Reply": 2, "CancelledError": 1} and budget.spent.calls == 2


@pytest.mark.parametrize("is_closed", [False, True])
def test_one_whose_loop_has_ended_while_it_waits_holds_nobody_up(
    is_closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textautograd.engines._hold.PATIENCE", 0.01)
    release = threading.Event()

    def slow(request: Request) -> Reply:
        release.wait(60)
        return Reply("x", usage=Usage(1, 1, calls=1))

    model = Scripted(slow)
    with Budget(tokens=100) as budget:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(call_now, model, ask()))
        thread.start()
        while not model.calls:
            pass
        loop = asyncio.new_event_loop()
        left = loop.create_task(call(model, ask()))
        loop.run_until_complete(asyncio.sleep(0))
        if is_closed:
            loop.close()
        release.set()
        thread.join()
        assert asyncio.run(asyncio.wait_for(call(model, ask()), 60)).text == "x"
        if not is_closed:  # when its loop goes on, so does it
            assert loop.run_until_complete(left).text == "x"
            loop.close()
    assert budget.spent.calls == 3 - is_closed


def test_one_that_is_in_flight_on_a_loop_that_has_stopped_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("textautograd.engines._hold.PATIENCE", 0.01)

    async def fails() -> None:
        left.append(asyncio.create_task(call(model, ask())))
        await asyncio.sleep(0)
        raise ValueError

    left: list[Any] = []
    model, loop = answering(), asyncio.new_event_loop()
    with Budget(tokens=100) as budget:
        with pytest.raises(ValueError):
            loop.run_until_complete(fails())
        assert "1 calls in flight" in repr(budget)
        assert isinstance(gathered(call(model, ask()))[0], Reply)
        loop.run_until_complete(left[0])
        loop.close()
    assert budget.spent.calls == 2 and "in flight" not in repr(budget)


def test_one_that_was_woken_on_a_loop_that_then_stopped_holds_nobody_up() -> None:
    model, loop = answering(), asyncio.new_event_loop()

    async def started() -> list[Any]:
        return [asyncio.create_task(call(model, ask())) for _ in range(2)]

    with Budget(tokens=100) as budget:
        first, second = loop.run_until_complete(started())
        loop.run_until_complete(first)
        assert not second.done()
        assert isinstance(gathered(call(model, ask()))[0], Reply)
        assert loop.run_until_complete(second).text == "x"
        loop.close()
    assert budget.spent.calls == 3


def test_a_loop_that_stops_while_another_waits_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("textautograd.engines._hold.PATIENCE", 0.01)
    stop, model, loop = threading.Event(), answering(), asyncio.new_event_loop()

    async def in_flight_and_then_stopped() -> None:
        left.append(asyncio.create_task(call(model, ask())))
        await asyncio.sleep(0)
        stop.wait(60)

    left: list[Any] = []
    with Budget(tokens=100) as budget:
        context = contextvars.copy_context()
        work = in_flight_and_then_stopped()
        thread = threading.Thread(target=context.run, args=(loop.run_until_complete, work))
        thread.start()
        while not model.calls:
            pass

        async def waits() -> Reply:
            asyncio.get_running_loop().call_later(0.05, stop.set)
            return await asyncio.wait_for(call(model, ask()), 60)

        assert asyncio.run(waits()).text == "x"
        thread.join()
        loop.run_until_complete(left[0])
        loop.close()
    assert budget.spent.calls == 2


def test_a_loop_that_is_blocked_while_it_waits_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its program reads another call in between, which waits in the same budget."""
    monkeypatch.setattr("textautograd.engines._hold.PATIENCE", 0.01)
    release = threading.Event()

    async def slow(request: Request) -> Reply:
        await asyncio.to_thread(release.wait, 60)
        return Reply("x", usage=Usage(1, 1, calls=1))

    async def reads_while_one_waits() -> str:
        waits = asyncio.create_task(call(model, ask()))
        await asyncio.sleep(0)
        last = agent(question="3")
        release.set()
        read: str = last.data
        return read + (await waits).text

    model = Scripted(slow)
    agent = ta.nn.LLM("Answer.").to(model)
    with Budget(tokens=10**6) as budget:
        first = agent(question="1")  # holds all that is left, as nothing is known of the engine
        while not model.calls:
            pass
        context, read = contextvars.copy_context(), list[str]()
        go = partial(context.run, lambda: read.append(asyncio.run(reads_while_one_waits())))
        thread = threading.Thread(target=go, daemon=True)  # a hang ends with the test
        thread.start()
        thread.join(30)
        assert read == ["xx"]
    assert first.data == "x" and budget.spent.calls == 3


def test_who_needs_two_budgets_comes_before_those_who_came_later_to_one() -> None:
    came: list[str] = []
    ends: dict[str, asyncio.Event] = {}

    async def until_it_ends(request: Request) -> Reply:
        name = request.messages[0]["content"]
        came.append(name)
        await ends[name].wait()
        return Reply("x", usage=Usage(0, 1, calls=1))

    async def steps() -> None:
        going = []

        async def settle() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        async def begin(name: str, *budgets: Budget) -> None:
            ends[name] = asyncio.Event()
            request = Request([{"content": name}], max_tokens=600)
            going.append(asyncio.create_task(within(budgets, model, request)))
            await settle()

        async def end(name: str) -> None:
            ends[name].set()
            await settle()

        await begin("first of one", one)
        await begin("first of two", two)
        await begin("both", one, two)
        await begin("second of one", one)
        await end("first of one")
        await begin("second of two", two)
        await end("first of two")
        for name in ("both", "second of one", "second of two"):
            await end(name)
        await asyncio.gather(*going)

    model = Plain(until_it_ends)
    one, two = Budget(tokens=1000), Budget(tokens=1000)
    asyncio.run(steps())
    assert came[:3] == ["first of one", "first of two", "both"]


def test_a_refusal_is_that_of_all_who_wait_for_the_same_call() -> None:
    asked: list[int] = []

    class Counting(Budget):
        def room(self, call: Hold) -> Share | None:
            asked.append(1)
            return super().room(call)

    with Counting(calls=0):
        engine = Coalesced(answering())
        found = gathered(*(call(engine, ask(temperature=0)) for _ in range(50)))
    assert kinds(found) == {"BudgetExceeded": 50} and len(asked) == 1


def test_one_in_flight_on_a_loop_that_runs_in_slices_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = itertools.count()  # each look at it is a second later
    monkeypatch.setattr("textautograd.engines._hold.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("textautograd.engines._hold.PATIENCE", 2.0)
    ends = asyncio.Event()

    async def slow(request: Request) -> Reply:
        await ends.wait()
        return Reply("x", usage=Usage(1, 1, calls=1))

    model, loop = Scripted(slow), asyncio.new_event_loop()
    with Budget(calls=1) as budget:
        flies = loop.create_task(call(model, ask()))
        loop.run_until_complete(asyncio.sleep(0))
        held = Hold(ask(), model, (budget,))
        for _ in range(5):
            assert not held.take_now()  # asked while it stands still
            loop.run_until_complete(asyncio.sleep(0))
        ends.set()
        assert loop.run_until_complete(flies).text == "x"
        loop.close()
    assert budget.spent.calls == 1


@pytest.mark.parametrize("limits", [{}, {"calls": 9}])
def test_a_coroutine_that_is_thrown_away_gives_back_its_share(limits: dict[str, Any]) -> None:
    async def never(request: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    def begin_and_leave() -> weakref.ref[Any]:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # that tasks are pending
        task = loop.create_task(call(Plain(never), ask()))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        del task
        return weakref.ref(loop)

    with Budget(**limits) as budget:
        loop = begin_and_leave()
        gc.collect()
        assert loop() is None and "in flight" not in repr(budget)


def test_all_that_lie_on_closed_loops_are_noticed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textautograd.engines._hold.PATIENCE", 1e6)  # none is needed

    async def never(request: Request) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    def left() -> asyncio.Task[Reply]:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda *_: None)  # that a task is pending
        task = loop.create_task(call(Plain(never), ask()))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        return task

    with Budget(calls=3) as budget:
        tasks = [left() for _ in range(3)]
        assert "3 calls in flight" in repr(budget)
        found = gathered(*(asyncio.wait_for(call(answering(), ask()), 60) for _ in range(4)))
        assert kinds(found) == {"Reply": 3, "BudgetExceeded": 1}
        del tasks


def test_an_engine_that_is_free_answers_when_all_dollars_are_spent() -> None:
    free, dear = priced(0.0), priced(0.5)
    with Budget(usd=1.0) as budget:
        for engine in (free, dear, dear, free):
            call_now(engine, ask())
        with pytest.raises(errors.BudgetExceeded, match="used up"):
            call_now(dear, ask())
    assert budget.spent.cost == 1.0


def test_a_price_that_is_charged_from_elsewhere_counts() -> None:
    with Budget(usd=1.0) as budget:
        for _ in range(2):
            budget.charge(Usage(100, 50, cost=0.75))
        assert budget.spent.cost == 1.5
        with pytest.raises(errors.BudgetExceeded):
            call_now(priced(), ask())


def test_an_engines_own_timeout_is_one() -> None:
    """As after `TimeoutExpired`, more go at once."""

    async def hangs(request: Request) -> Reply:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            for _ in range(9):
                await asyncio.sleep(0)
            raise TimeoutError
        finally:
            at_once -= 1

    at_once = most = 0
    with Budget(tokens=10**6):
        gathered(*(call(Plain(hangs), ask()) for _ in range(2)))
        engine = Plain(hangs)
        gathered(*(call(engine, ask(sample=i)) for i in range(16)))
    assert most > 1


def test_a_meter_keeps_no_engine_alive() -> None:
    def use() -> weakref.ref[Any]:
        engine = answering()
        asyncio.run(call(engine, ask()))
        return weakref.ref(engine)

    with Budget() as meter:
        assert use()() is None
    assert meter.spent.calls == 1


def test_two_who_wait_do_not_wake_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the first in a budget that the other asks: one has no room in one, one in neither."""
    tries: list[int] = []
    room = Budget.room
    monkeypatch.setattr(Budget, "room", lambda *each: tries.append(1) or room(*each))  # type: ignore[func-returns-value]
    release = asyncio.Event()

    async def slow(request: Request) -> Reply:
        await release.wait()
        return Reply("x", usage=Usage(0, 1, calls=1))

    async def four() -> None:
        going = []
        for max_tokens, *budgets in ((90, one), (50, two), (20, one, two), (60, one, two)):
            request = ask("", max_tokens=max_tokens)
            going.append(asyncio.create_task(within(budgets, model, request)))
            await asyncio.sleep(0)
        tries.clear()
        for _ in range(100):
            await asyncio.sleep(0)
        release.set()
        assert len(tries) <= 8
        await asyncio.gather(*going)

    model = Plain(slow)
    one, two = Budget(tokens=100), Budget(tokens=100)
    asyncio.run(four())


def test_all_who_wait_on_a_loop_that_is_silent_are_passed_over_and_later_given_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("textautograd.engines._hold.monotonic", lambda: now[0])

    async def wait_for_room() -> list[asyncio.Task[Reply]]:
        waiting = [asyncio.create_task(call(answering(), ask())) for _ in range(3)]
        await asyncio.sleep(0)
        return waiting

    loop = asyncio.new_event_loop()
    with Budget(tokens=100) as budget:
        flies = Hold(ask(), answering(), (budget,))
        assert flies.take_now()
        waiting = loop.run_until_complete(wait_for_room())
        flies.release(ValueError())
        asks = Hold(ask(), answering(), (budget,))
        assert not asks.take_now()  # those before it are asked to answer
        now[0] += PATIENCE
        assert asks.take_now()  # none did
        loop.run_until_complete(asyncio.sleep(0))  # and now they ask again
        asks.release(ValueError())
        again = Hold(ask(), answering(), (budget,))
        for _ in range(2):
            assert not again.take_now()
            now[0] += PATIENCE
        assert again.take_now()
        again.release(ValueError())
        loop.run_until_complete(asyncio.gather(*waiting))
        loop.close()


def test_what_a_collection_gives_back_while_one_asks_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    thrown_away: list[Hold] = []

    def is_lost(self: Hold) -> bool:
        if thrown_away:  # as the garbage collector closes a coroutine, at any time
            thrown_away.pop().release(GeneratorExit())
        return False

    monkeypatch.setattr(Hold, "is_lost", is_lost)
    with Budget(calls=2) as budget:
        for _ in range(2):
            thrown_away.append(Hold(ask(), answering(), (budget,)))
            assert thrown_away[-1].take_now()
        assert Hold(ask(), answering(), (budget,)).take_now()


def test_one_who_is_given_up_while_it_waits_is_forgotten() -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> Reply:
        await release.wait()
        return Reply("x", usage=Usage(1, 1, calls=1))

    async def most_are_given_up() -> list[int]:
        going, *others = [asyncio.create_task(call(model, ask(sample=i))) for i in range(101)]
        await asyncio.sleep(0)
        waiting = [len(budget._waiting)]
        for each in others[1:]:
            each.cancel()
        await asyncio.wait(others[1:])
        waiting.append(len(budget._waiting))
        release.set()
        await asyncio.gather(going, others[0])
        return waiting

    model = Plain(slow)
    with Budget(tokens=100) as budget:
        assert asyncio.run(most_are_given_up()) == [100, 1]


def test_a_budget_may_be_larger_than_any_float() -> None:
    with Budget(calls=10**400, tokens=10**400, usd=10**400):
        assert call_now(priced(), ask()) is not None


def test_a_message_without_text_is_metered() -> None:
    request = Request([{"role": "assistant", "tool_calls": "[]"}])
    with Budget(tokens=10) as budget:
        assert asyncio.run(call(answering(), request)).text
    assert budget.spent.calls == 1


def test_a_share_is_given_back_whatever_the_engine_raises() -> None:
    class Bad(Plain):
        def __repr__(self) -> str:
            raise AttributeError("no name")

    async def fails(request: Request) -> Reply:
        error = errors.ServerError("down")
        error.usage = "none"  # type: ignore[assignment]
        raise error

    with Budget(calls=1) as budget:
        for _ in range(2):
            with pytest.raises(AttributeError):
                asyncio.run(call(Bad(fails), ask()))
    assert "in flight" not in repr(budget)


def test_tokens_that_nobody_counted_are_told_as_that() -> None:
    with Budget(calls=3) as budget:
        call_now(Scripted(lambda request: Reply("x" * 40, usage=Usage(calls=1))), ask())
    assert "0 tokens (and about 11 uncounted) spent" in repr(budget)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 90), st.booleans()), max_size=12))
def test_calls_in_budgets_within_budgets_all_end(made: list[tuple[bool, int, bool]]) -> None:
    """Whichever of them has no room for which, and whoever is given up: no two give way to each
    other for ever."""
    model, outer, inner = answering(), Budget(tokens=200), Budget(tokens=100)

    def one(is_inner: bool, tokens: int) -> Coroutine[Any, Any, Reply]:
        budgets = [outer, inner] if is_inner else [outer]
        return within(budgets, model, ask("", max_tokens=tokens))

    async def all_of_them() -> list[Any]:
        tasks = [asyncio.create_task(one(is_inner, n)) for is_inner, n, _ in made]
        await asyncio.sleep(0)
        for task, (_, _, is_given_up) in zip(tasks, made, strict=True):
            if is_given_up:
                task.cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

    found = asyncio.run(all_of_them())
    assert set(kinds(found)) <= {"Reply", "BudgetExceeded", "CancelledError"}
    for budget in (outer, inner):
        assert "in flight" not in repr(budget) and budget.spent.tokens <= (budget.tokens or 0)


@pytest.mark.parametrize("tokens", [sys.maxsize, 10**17 - 1])
def test_a_limit_may_be_larger_than_floats_are_exact(tokens: int) -> None:
    with Budget(tokens=tokens):
        assert kinds(gathered(call(answering(), ask()))) == {"Reply": 1}


def test_a_budget_for_each_sample_and_an_engine_with_fewer_slots() -> None:
    """Who waits for a slot that others hold, in budgets of their own, comes back."""
    engine = Retrying(Limited(answering(), 2))

    def sample(number: int) -> int:
        with Budget(tokens=100) as own:
            both = [ta.nn.LLM(name).to(engine)(question=str(number)) for name in "AB"]
            assert [each.data for each in both] == ["x", "x"]
        return own.spent.calls

    assert ta.map(sample, range(8)) == [2] * 8


@pytest.mark.parametrize("late", range(12))
def test_a_slot_that_changes_hands_refuses_nobody(late: int) -> None:
    engine = Limited(answering(), 1)

    async def after() -> Reply:
        for _ in range(late):
            await asyncio.sleep(0)
        return await call(engine, ask(max_tokens=150))

    with Budget(tokens=250):
        calls = [call(engine, ask(max_tokens=100)) for _ in range(2)]
        assert kinds(gathered(*calls, after())) == {"Reply": 3}


def test_who_has_no_budget_does_not_wait_for_anothers() -> None:
    order: list[str] = []
    engine, dear = Coalesced(answering()), answering()

    async def inside() -> None:
        with Budget(tokens=100):
            first = asyncio.create_task(call(dear, ask()))
            await asyncio.sleep(0)
            await call(engine, ask(temperature=0))
            order.append("inside")
            await first

    async def outside() -> None:
        await asyncio.sleep(0)
        await call(engine, ask(temperature=0))
        order.append("outside")

    gathered(inside(), outside())
    assert order == ["outside", "inside"]


def test_calls_that_outlive_the_one_they_were_made_in_are_nobodys() -> None:
    around: list[bool] = []

    async def chain(request: Request) -> Reply:
        around.append(is_within_a_call())
        if request.sample:
            following.append(asyncio.create_task(call(model, ask(sample=request.sample - 1))))
        return Reply("x", usage=Usage(1, 1, calls=1))

    async def all_of_them() -> None:
        await call(model, ask(sample=9))
        while following:
            await following.pop()
            around.append(is_within_a_call())

    following: list[Any] = []
    model = Plain(chain)
    with Budget(tokens=10**6):
        asyncio.run(all_of_them())
    assert around.count(True) == 10  # each within itself alone


def test_work_for_waiting_calls_grows_no_faster_than_they_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries: list[int] = []
    room = Budget.room
    monkeypatch.setattr(Budget, "room", lambda *each: tries.append(1) or room(*each))  # type: ignore[func-returns-value]
    for n in (50, 200):
        tries.clear()
        model = answering()
        with Budget(tokens=1000):
            found = gathered(*(call(model, ask(max_tokens=100, sample=i)) for i in range(n)))
        assert kinds(found) == {"Reply": n} and len(tries) <= 4 * n


@pytest.mark.parametrize("limits", [{"tokens": math.inf}, {"usd": math.inf}, {"calls": math.inf}])
def test_no_limit_can_be_written_as_infinity(limits: dict[str, Any]) -> None:
    with Budget(**limits) as budget:
        assert kinds(gathered(*(call(answering(), ask()) for _ in range(3)))) == {"Reply": 3}
    assert (budget.calls, budget.tokens, budget.usd) == (None, None, None)


def test_a_server_that_hangs_for_ever_overflows_nothing() -> None:
    def hangs(request: Request) -> str:
        raise errors.TimeoutExpired("no reply")

    model = Scripted(hangs)
    with Budget(usd=1.0, tokens=10**6):
        for _ in range(1100):
            with pytest.raises(errors.TimeoutExpired):
                call_now(model, ask())


def test_each_purpose_has_its_length() -> None:
    async def answer(request: Request) -> Reply:
        return Reply("x", usage=Usage(1, 1000 if request.purpose == "optimize" else 2, calls=1))

    model = Scripted(answer)
    with Budget(tokens=2000) as budget:
        gathered(call(model, ask(purpose="optimize")))
        results = gathered(*(call(model, ask()) for _ in range(64)))
    assert all(isinstance(result, Reply) for result in results)
    assert budget.spent.tokens == 1001 + 64 * 3


def test_engines_that_ask_each_other_do_not_wait_for_each_other() -> None:
    def falling_back_on(others: list[Any]) -> Any:
        async def complete(request: Request) -> Reply:
            await asyncio.sleep(0)
            if request.sample:
                return Reply("x", usage=Usage(1, 1, calls=1))
            return await call(others[0], ask(sample=1))

        return Plain(complete)

    of_a: list[Any] = []
    of_b: list[Any] = []
    a, b = falling_back_on(of_a), falling_back_on(of_b)
    of_a.append(b)
    of_b.append(a)
    with Budget(tokens=10**6):
        results = gathered(*(asyncio.wait_for(call(x, ask()), 60) for x in (a, b)))
    assert [result.text for result in results] == ["x", "x"]


def test_the_first_calls_of_budgets_within_budgets_go_one_at_a_time() -> None:
    running, at_once = 0, []

    async def slow(request: Request) -> Reply:
        nonlocal running
        running += 1
        at_once.append(running)
        for _ in range(9):
            await asyncio.sleep(0)
        running -= 1
        return Reply("x", usage=Usage(1, 1, calls=1))

    async def inside(model: Any) -> None:
        with Budget(tokens=10**6):
            await call(model, ask())

    for _ in range(16):  # they are taken in the order of their addresses
        model = Scripted(slow)
        with Budget(tokens=10**6):
            gathered(inside(model), call(model, ask()))
    assert set(at_once) == {1}


def test_an_unreadable_reply_is_as_dear_as_the_dearest_of_its_engine_and_purpose() -> None:
    """To all budgets alike."""
    unreadable = errors.IncompleteReplyError("no JSON")
    unreadable.usage = Usage(calls=1)
    with Budget(usd=5) as budget, Budget() as meter:
        gathered(call(priced(2.0), ask()))
        model = InFlight(0.5, unreadable, 0.25)
        results = [gathered(call(model, ask()))[0] for _ in range(3)]
    assert isinstance(results[1], errors.IncompleteReplyError) and isinstance(results[2], Reply)
    assert budget.spent.cost == meter.spent.cost == 2.0 + 0.5 + 0.5 + 0.25


def test_a_reply_that_is_cut_off_and_has_no_price_is_not_free() -> None:
    cut_off = errors.IncompleteReplyError("cut off")
    cut_off.usage = Usage(10, 10, calls=1)
    model = InFlight(cut_off)
    with Budget(usd=0.001):
        results = at_once(model)
    assert kinds(results) == {"IncompleteReplyError": 1, "SetupError": 7} and model.calls == 1


def test_a_budget_without_a_price_is_nobody_elses() -> None:
    model = Coalesced(answering())

    async def inside() -> None:
        with Budget(usd=1):
            await call(model, ask())
            await call(model, ask("same", temperature=0))

    async def outside() -> Reply:
        while not model._flights.here():
            await asyncio.sleep(0)
        return await call(model, ask("same", temperature=0))

    assert kinds(gathered(inside(), outside())) == {"SetupError": 1, "Reply": 1}


def test_threads_never_pass_a_budget() -> None:
    model = priced()
    with Budget(calls=50) as budget:

        def work() -> None:
            try:
                while True:
                    call_now(model, ask())
            except errors.BudgetExceeded:
                pass

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(model.calls) == budget.spent.calls == 50


def test_loops_in_threads_wait_for_room_in_two_budgets_and_all_get_it() -> None:
    """Threads change places as often as they can, so between any two steps."""

    async def one_turn(request: Request) -> Reply:
        await asyncio.sleep(0)
        return Reply("x", usage=Usage(0, 1, calls=1))

    async def several() -> list[Any]:
        made = []
        for _ in range(40):
            made += await asyncio.gather(
                *(
                    within(some, model, ask(max_tokens=490))
                    for some in (both, both, both[:1], both[1:])
                )
            )
        return made

    model = Plain(one_turn)
    both = Budget(tokens=100_000), Budget(tokens=100_000)
    for budget in both:
        budget.charge(Usage(0, 99_000))
    replies: list[list[Any]] = []
    threads = [
        threading.Thread(target=lambda: replies.append(asyncio.run(several())), daemon=True)
        for _ in range(4)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert [kinds(made) for made in replies] == [{"Reply": 160}] * 4
    for budget in both:
        assert budget.spent.calls == 480 and "held" not in repr(budget)
        assert not budget._waiting


def test_tokens_are_held_by_the_requests_limit_and_settled_by_usage() -> None:
    model = priced()
    with Budget(tokens=130) as budget:
        with pytest.raises(errors.BudgetExceeded, match="tokens"):
            call_now(model, ask("x" * 400, max_tokens=31))
        call_now(model, ask("x" * 400, max_tokens=30))
        assert budget.spent.tokens == 15
        call_now(model, ask("x" * 400, max_tokens=15))
        with pytest.raises(errors.BudgetExceeded):
            call_now(model, ask("x" * 405))
    assert len(model.calls) == 2


def test_a_provider_that_counts_no_tokens_is_held_to_the_estimate() -> None:
    model = Scripted(lambda request: "x" * 40)
    with Budget(tokens=45) as budget:
        call_now(model, ask("x" * 40, max_tokens=20))
        call_now(model, ask("x" * 40))
        with pytest.raises(errors.BudgetExceeded):
            call_now(model, ask("x" * 40))
    assert budget.spent.tokens == 0


def test_dollars_stop_the_next_call() -> None:
    model = priced(0.5)
    with Budget(usd=1.0) as budget:
        call_now(model, ask())
        call_now(model, ask())
        with pytest.raises(errors.BudgetExceeded):
            call_now(model, ask())
    assert budget.spent.cost == 1.0


def test_an_unknown_price_is_not_free() -> None:
    model = priced(None)
    with Budget(usd=1.0) as budget:
        assert call_now(model, ask())
        with pytest.raises(errors.UsageError, match="price"):
            call_now(model, ask())
    assert budget.spent.cost is None
    assert len(model.calls) == 1


class InFlight:
    """An engine of a user: its price, how many of its calls were made, and at most at once."""

    def __init__(self, *costs: float | Exception | None) -> None:
        self.costs = list(costs)
        self.calls = self.now = self.most = 0

    async def complete(self, request: Request) -> Reply:
        cost = self.costs[min(self.calls, len(self.costs) - 1)]
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(100):
            await asyncio.sleep(0)
        self.now -= 1
        if isinstance(cost, Exception):
            raise cost
        return Reply("x", usage=Usage(1, 1, cost=cost, calls=1))


def at_once(engine: Any, n: int = 8) -> list[Any]:
    async def all_of_them() -> list[Any]:
        calls = (call(engine, ask(str(i))) for i in range(n))
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_an_unknown_price_costs_one_call() -> None:
    model = InFlight(None)
    with Budget(usd=1.0) as outer, Budget(usd=2.0):
        seen = at_once(Limited(model, 8))
    assert sorted(type(each).__name__ for each in seen) == ["Reply", *["SetupError"] * 7]
    assert model.calls == outer.spent.calls == 1


@pytest.mark.parametrize("first", [[], [errors.ServerError("down")]], ids=["", "after a failure"])
def test_what_has_a_price_flies_together_from_the_second_on(first: list[Exception]) -> None:
    model = InFlight(*first, 0.01)
    with Budget(usd=1.0) as outer, Budget(usd=1.0):
        assert len(at_once(Limited(model, 8))) == 8
    assert (model.calls, model.most) == (8, 7 - len(first))
    assert outer.spent.calls == 8 - len(first)
    model = InFlight(None)
    with Budget(calls=8):
        at_once(Limited(model, 8))
    assert model.most == 8


def test_a_call_within_the_one_that_finds_a_price_waits_for_nothing() -> None:
    class Asking(InFlight):
        async def complete(self, request: Request) -> Reply:
            if request.messages[0]["content"] != "within":
                await call(self, ask("within"))
            return await super().complete(request)

    model = Asking(0.01)
    with Budget(usd=1.0):
        at_once(model, 2)
    assert model.calls == 4


def test_a_call_that_fails_gives_back_what_it_held() -> None:
    def fail(request: Request) -> str:
        raise errors.ServerError("down")

    with Budget(calls=1, tokens=10) as budget:
        for _ in range(3):
            with pytest.raises(errors.ServerError):
                call_now(Scripted(fail), ask())
            with pytest.raises(errors.ServerError):
                asyncio.run(call(Scripted(fail), ask()))
        call_now(priced(), ask())
    assert budget.spent.calls == 1


def test_a_call_that_is_cancelled_gives_back_what_it_held() -> None:
    async def for_ever(request: Request) -> str:
        await asyncio.Event().wait()
        return "never"

    async def main() -> None:
        task = asyncio.create_task(call(Scripted(for_ever), ask()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Budget(calls=1) as budget:
        asyncio.run(main())
        call_now(priced(), ask())
    assert budget.spent.calls == 1


def test_an_inner_budget_that_refuses_leaves_the_outer_untouched() -> None:
    with Budget(calls=1) as outer:
        with Budget(calls=0), pytest.raises(errors.BudgetExceeded):
            call_now(priced(), ask())
        call_now(priced(), ask())
    assert outer.spent.calls == 1


def test_a_budget_is_used_again_but_not_within_itself() -> None:
    budget = Budget(calls=2)
    with budget:
        call_now(priced(), ask())
        with pytest.raises(errors.UsageError):
            budget.__enter__()
    with budget:
        call_now(priced(), ask())
    assert budget.spent.calls == 2
    call_now(priced(), ask())
    assert budget.spent.calls == 2


@pytest.mark.parametrize("limit", [-1, "3", True, float("nan")])
def test_a_limit_that_is_none_is_refused(limit: Any) -> None:
    with pytest.raises(errors.UsageError):
        Budget(calls=limit)


def test_a_budget_says_what_it_is() -> None:
    with Budget(calls=3, usd=2.5) as budget:
        call_now(priced(), ask())
    assert repr(budget) == "Budget(calls=3, usd=2.5) with 1 calls, 15 tokens, $0.5000 spent"


def test_a_budget_tells_what_is_in_flight() -> None:
    said: list[str] = []

    async def slow(request: Request) -> str:
        await asyncio.sleep(0)
        said.append(repr(budget))
        return "x"

    with Budget(calls=3) as budget:
        gathered(*(call(Scripted(slow), ask("x" * 40, max_tokens=20)) for _ in range(5)))
    told = "Budget(calls=3) with 0 calls, 0 tokens spent, 3 calls in flight, 90 tokens held"
    assert said[0] == told


def test_what_is_in_flight_in_the_parent_holds_nothing_in_a_child() -> None:
    release = threading.Event()
    model = Scripted(lambda request: "x" if release.wait(60) else "")

    def child() -> None:
        os._exit(0 if call_now(Scripted(lambda request: "x"), ask()) else 1)

    budget = Budget(calls=1, tokens=100)

    def elsewhere() -> None:
        with budget:
            call_now(model, ask())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    while not model.calls:
        pass
    with budget:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(60)
        release.set()
        thread.join()
    assert process.exitcode == 0


def test_what_a_users_engine_had_in_a_cache_of_its_own_is_free() -> None:
    with Budget() as budget:
        call_now(Scripted(lambda request: Reply("x", cached=True)), ask())
    assert budget.spent == Usage()
