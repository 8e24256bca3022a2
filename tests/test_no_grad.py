"""`no_grad`: nothing is recorded inside, whatever it is put around, and only there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import textautograd as ta
from textautograd import TextVariable, is_grad_enabled, no_grad

x = TextVariable("x", requires_grad=True)


def test_nothing_is_recorded_inside() -> None:
    with no_grad():
        y = x + "!"
        assert not is_grad_enabled()
    assert y.data == "x!" and y.is_leaf and not y.requires_grad
    assert is_grad_enabled()
    assert (x + "!").requires_grad


def test_nests_and_ends_with_an_exception() -> None:
    guard = no_grad()
    with pytest.raises(ZeroDivisionError), guard:
        with guard, no_grad():
            pass
        assert not is_grad_enabled()
        1 / 0  # noqa: B018
    assert is_grad_enabled()


def test_around_a_function() -> None:
    @no_grad()
    def inside(a: int, *, b: int) -> tuple[int, bool]:
        """Says so."""
        return a + b, is_grad_enabled()

    assert inside(1, b=2) == (3, False)
    assert inside.__name__ == "inside" and inside.__doc__ == "Says so."
    assert is_grad_enabled()


def test_around_a_recursive_function() -> None:
    @no_grad()
    def down(n: int) -> list[bool]:
        return [is_grad_enabled()] if n == 0 else [*down(n - 1), is_grad_enabled()]

    assert down(3) == [False] * 4
    assert is_grad_enabled()


def test_a_generator_is_off_while_it_runs_and_not_while_it_is_suspended() -> None:
    seen: list[Any] = []

    @no_grad()
    def inside() -> Any:
        try:
            got = yield is_grad_enabled()
            seen.append(got)
            try:
                yield is_grad_enabled()
            except KeyError:
                seen.append(("caught", is_grad_enabled()))
            yield is_grad_enabled()
        finally:
            seen.append(("closed", is_grad_enabled()))
        return "end"

    generator = inside()
    assert next(generator) is False
    assert is_grad_enabled()
    assert generator.send("sent") is False
    assert generator.throw(KeyError()) is False
    assert is_grad_enabled()
    generator.close()
    assert seen == ["sent", ("caught", False), ("closed", False)]


def test_a_generators_return_value_and_exception_come_through() -> None:
    @no_grad()
    def returns() -> Any:
        yield 1
        return "end"

    @no_grad()
    def raises() -> Iterator[int]:
        yield 1
        raise KeyError("k")

    def outer() -> Any:
        return (yield from returns())

    running = outer()
    assert next(running) == 1
    with pytest.raises(StopIteration) as stop:
        next(running)
    assert stop.value.value == "end"
    with pytest.raises(KeyError):
        list(raises())
    assert is_grad_enabled()


def test_around_a_coroutine_function() -> None:
    @no_grad()
    async def inside() -> bool:
        await asyncio.sleep(0)
        return is_grad_enabled()

    async def main() -> list[bool]:
        task = asyncio.create_task(inside())
        seen = [is_grad_enabled()]
        await asyncio.sleep(0)
        return [*seen, is_grad_enabled(), await task, await inside(), is_grad_enabled()]

    assert asyncio.iscoroutinefunction(inside)
    assert asyncio.run(main()) == [True, True, False, False, True]


def test_around_an_async_generator() -> None:
    seen: list[Any] = []

    @no_grad()
    async def inside() -> Any:
        try:
            got = yield is_grad_enabled()
            await asyncio.sleep(0)
            seen.append(got)
            try:
                yield is_grad_enabled()
            except KeyError:
                seen.append(("caught", is_grad_enabled()))
            yield is_grad_enabled()
        finally:
            seen.append(("closed", is_grad_enabled()))

    async def main() -> None:
        generator = inside()
        assert await anext(generator) is False
        assert is_grad_enabled()
        assert await generator.asend("sent") is False
        assert await generator.athrow(KeyError()) is False
        assert is_grad_enabled()
        await generator.aclose()

    asyncio.run(main())
    assert seen == ["sent", ("caught", False), ("closed", False)]


def test_an_async_generator_ends_by_itself() -> None:
    @no_grad()
    async def inside() -> AsyncIterator[int]:
        for i in range(3):
            yield i

    async def main() -> list[int]:
        return [i async for i in inside()]

    assert asyncio.run(main()) == [0, 1, 2]


def test_another_thread_is_not_affected_and_does_not_affect() -> None:
    entered, leave = threading.Event(), threading.Event()
    seen: list[bool] = []

    def other() -> None:
        seen.append(is_grad_enabled())
        with no_grad():
            entered.set()
            assert leave.wait(60)

    with no_grad():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(60)
    assert is_grad_enabled()
    with no_grad():
        leave.set()
        thread.join()
        assert not is_grad_enabled()
    assert seen == [True]


def test_tasks_are_not_affected_by_one_another() -> None:
    async def main() -> list[bool]:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def inside() -> bool:
            with no_grad():
                entered.set()
                await leave.wait()
                return is_grad_enabled()

        async def outside() -> bool:
            await entered.wait()
            enabled = is_grad_enabled()
            leave.set()
            return enabled

        return await asyncio.gather(inside(), outside())

    assert asyncio.run(main()) == [False, True]


def test_a_task_and_map_inherit_it() -> None:
    async def enabled() -> bool:
        return is_grad_enabled()

    async def main() -> bool:
        with no_grad():
            task = asyncio.create_task(enabled())
        return await task

    assert asyncio.run(main()) is False
    with no_grad():
        assert ta.map(lambda _: is_grad_enabled(), range(3)) == [False] * 3
    assert ta.map(lambda _: is_grad_enabled(), range(3)) == [True] * 3


def test_it_decorates_without_parentheses() -> None:
    @ta.no_grad
    def records() -> bool:
        return ta.is_grad_enabled()

    assert records() is False and ta.is_grad_enabled()


def test_one_instance_may_be_entered_by_two_threads_that_leave_in_any_order() -> None:
    shared, entered, left = no_grad(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def other() -> None:
        assert entered.wait(60)
        with shared:
            left.set()
            seen.append(is_grad_enabled())
        seen.append(is_grad_enabled())

    thread = threading.Thread(target=other)
    thread.start()
    with shared:
        entered.set()
        assert left.wait(60)
        assert not is_grad_enabled()
    thread.join()
    assert is_grad_enabled() and seen == [False, True]
