"""`map`: one thread a call, each with the caller's context; results in order."""

import signal
import threading
from typing import Any

import pytest

import textautograd as ta
from textautograd import nn, optim
from textautograd.engines import Request, Scripted
from textautograd.errors import UsageError


def test_results_in_the_order_of_the_items() -> None:
    done = [threading.Event() for _ in range(5)]

    def last_first(i: int) -> int:
        if i < 4:
            assert done[i + 1].wait(60)
        done[i].set()
        return i * i

    assert ta.map(last_first, range(5)) == [0, 1, 4, 9, 16]


def test_empty() -> None:
    assert ta.map(str, []) == []


def test_all_of_sixty_four_run_at_once() -> None:
    barrier = threading.Barrier(64)
    ta.map(lambda _: barrier.wait(60), range(64))


def test_max_workers_is_kept() -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def work(i: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if i < 2:
            barrier.wait(60)
        with lock:
            running -= 1
        return i

    barrier = threading.Barrier(2)
    assert ta.map(work, range(20), max_workers=2) == list(range(20))
    assert most == 2
    for wrong in (0, -1):
        with pytest.raises(UsageError, match="max_workers"):
            ta.map(str, [1], max_workers=wrong)


def test_the_first_failure_in_order_is_raised() -> None:
    second_failed = threading.Event()

    def work(i: int) -> int:
        if i == 1:
            second_failed.set()
            raise KeyError("second")
        assert second_failed.wait(60)
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        ta.map(work, range(2))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_program_is_raised_here_and_nowhere_else(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", elsewhere.append)

    def end(i: int) -> None:
        raise kind(i)

    with pytest.raises(kind):
        ta.map(end, range(3))
    x = nn.Parameter("old")
    x.grad = ta.Gradient(["better"])
    engine = Scripted(lambda r: '{"prompt": "new"}')
    with pytest.raises(kind):
        optim.SGD([x], engine=engine).step(lambda: end(0))  # type: ignore[arg-type,return-value]
    for thread in threading.enumerate():
        if thread.name in ("gate", "textautograd-map"):
            thread.join()
    assert elsewhere == [] and x.data == "old"


def test_nothing_is_started_after_an_interrupt() -> None:
    started, interrupted, main = [], threading.Event(), threading.get_ident()

    def work(i: int) -> None:
        started.append(i)
        if i == 0:
            signal.pthread_kill(main, signal.SIGINT)
        assert interrupted.wait(60)

    with pytest.raises(KeyboardInterrupt):
        ta.map(work, range(100), max_workers=2)
    interrupted.set()
    for thread in threading.enumerate():
        if thread.name == "textautograd-map":
            thread.join()
    assert len(started) <= 2


def test_nothing_is_started_after_a_failure() -> None:
    started = []

    def work(i: int) -> None:
        started.append(i)
        raise KeyError(i)

    with pytest.raises(KeyError):
        ta.map(work, range(100), max_workers=1)
    assert started == [0]


def test_each_call_has_a_copy_of_the_callers_context() -> None:
    one, other = Scripted(lambda r: "one"), Scripted(lambda r: "other")
    agent = nn.LLM("i")

    def work(i: int) -> tuple[str, bool]:
        before = agent("q").data
        ta.set_default_engine(other)
        assert agent("q").data == "other"
        return before, ta.is_grad_enabled()

    with ta.use_engine(one), ta.no_grad():
        assert ta.map(work, range(3), max_workers=1) == [("one", False)] * 3
        assert agent("q").data == "one"


def test_a_budget_holds_over_all_of_them() -> None:
    agent = nn.LLM("i", engine=Scripted(lambda r: "a"))
    with ta.Budget(calls=3) as budget, pytest.raises(ta.BudgetExceeded):
        ta.map(lambda q: agent(q).data, list("abcdef"), max_workers=2)
    assert budget.spent.calls == 3


def test_control_flow_that_reads_values() -> None:
    async def answer(request: Request) -> str:
        return "yes" if "even" in str(request.messages) else "no"

    decide = nn.LLM("Decide.", engine=Scripted(answer))

    def agent(question: str) -> str:
        return "E" if decide(question).data == "yes" else "O"

    assert ta.map(agent, ["even", "odd", "even"]) == ["E", "O", "E"]


def test_a_bare_modules_call_names_the_line_of_the_map() -> None:
    def fail(request: Request) -> Any:
        raise KeyError("k")

    agent = nn.LLM("i", engine=Scripted(fail))
    (y,) = ta.map(agent, ["q"])
    with pytest.raises(KeyError) as caught:
        y.data  # noqa: B018
    (note,) = caught.value.__notes__
    assert __file__ in note and "test_a_bare_modules_call" in note


@pytest.mark.parametrize("workers", [0, -1, 1.5, "4", True])
def test_a_number_of_workers_that_cannot_be_is_refused(workers: Any) -> None:
    with pytest.raises(ta.errors.UsageError, match="max_workers must be a whole number"):
        ta.map(str, [1], max_workers=workers)
