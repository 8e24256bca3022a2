"""`map`: one thread a call, each with the caller's context; results in order."""

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import textautograd as ta
from textautograd import nn, optim
from textautograd.data import Example
from textautograd.engines import Request, Scripted
from textautograd.errors import EngineError, NoCreditError, UsageError
from textautograd.loop import the_loop


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
        if thread.name == "textautograd-map":
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


class Twice(nn.Module):
    """Asks twice, and reads the first reply in between."""

    def __init__(self) -> None:
        self.first, self.second = nn.LLM("first"), nn.LLM("second")

    def forward(self, question: str) -> ta.TextVariable:
        hint = self.first(question=question)
        assert str(hint)
        return self.second(question=hint)


def _in_a_map(agent: nn.Module, data: list[Example]) -> None:
    with ta.no_grad():
        ta.map(lambda part: ta.map(lambda e: str(agent(e.question)), part), [data[:2], data[2:]])


def _in_a_gate(agent: nn.Module, data: list[Example]) -> None:
    optimizer = optim.SGD(agent.parameters())
    for parameter in optimizer.params:
        parameter.grad = ta.Gradient(["better"])
    optimizer.step(lambda: ta.evaluate(agent, data, nn.ExactMatchLoss()).loss)


def _in_fit(agent: nn.Module, data: list[Example]) -> None:
    optimizer = optim.SGD(agent.parameters())
    ta.fit(agent, data, nn.ExactMatchLoss(), optimizer, steps=1, batch_size=2, progress=False)


@pytest.mark.parametrize("run", [_in_a_map, _in_a_gate, _in_fit])
def test_nothing_is_sent_after_an_interrupt_however_deep(
    run: Callable[[nn.Module, list[Example]], None],
) -> None:
    interrupted, main = threading.Event(), threading.get_ident()
    gated: list[str] = []

    def play(request: Request) -> str:
        if request.purpose == "optimize":
            return '{"prompt": "better"}'
        if request.purpose == "backward" or ta.is_grad_enabled():
            return '{"question": "better"}'
        gated.append(request.messages[0]["content"])
        if len(gated) == 1:
            signal.pthread_kill(main, signal.SIGINT)
        assert interrupted.wait(60)
        return "wrong"

    data = [Example(f"{i}?", "right") for i in range(5)]
    with ta.use_engine(Scripted(play)), pytest.raises(KeyboardInterrupt):
        run(Twice(), data)
    interrupted.set()
    for thread in threading.enumerate():
        if thread.name == "textautograd-map":
            thread.join()
    assert gated and not [system for system in gated if "second" in system]


def test_what_concerns_the_whole_run_ends_the_other_states_of_a_gate() -> None:
    agent, refused, is_there = Twice(), [], threading.Event()
    sent: list[str] = []

    def play(request: Request) -> str:
        if request.purpose == "optimize":
            return '{"prompt": "better"}'
        sent.append(request.messages[0]["content"])
        assert is_there.wait(60)
        refused[0].join()
        return "wrong"

    def closure() -> float:
        if agent.first.instruction.data == "first":
            return ta.evaluate(agent, data, nn.ExactMatchLoss()).loss
        refused.append(threading.current_thread())
        is_there.set()
        raise NoCreditError("no credit")

    data = [Example(f"{i}?", "right") for i in range(100)]
    optimizer = optim.SGD(agent.parameters())
    for parameter in optimizer.params:
        parameter.grad = ta.Gradient(["better"])
    with ta.use_engine(Scripted(play)), pytest.raises(NoCreditError):
        optimizer.step(closure)
    assert len(sent) <= 64 and not [system for system in sent if "second" in system]


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


def test_what_was_left_in_flight_by_an_error_says_so_to_whoever_reads_it_later() -> None:
    """Here as in another evaluation it is an error like others, with the line of the call."""

    async def answer(request: Request) -> str:
        await began.wait()
        return "x"

    began = asyncio.Event()
    engine = Scripted(answer)
    hint, solve = nn.LLM("H", engine=engine), nn.LLM("S", engine=engine)
    kept: dict[int, ta.TextVariable] = {}

    def work(i: int) -> None:
        kept[i] = solve(question=f"q{i}", hint=hint(f"q{i}"))
        if i == 3:
            raise ValueError("user code")

    with pytest.raises(ValueError, match="user code"):
        ta.map(work, range(4), max_workers=1)
    the_loop().loop.call_soon_threadsafe(began.set)
    for variable in kept.values():
        with pytest.raises(EngineError, match="was not made") as caught:
            print(variable.data)
        assert any("called at" in note and __file__ in note for note in caught.value.__notes__)
        with pytest.raises(EngineError, match="was not made"):
            asyncio.run(read(variable))
        with pytest.raises(EngineError, match="was not made"):
            print((variable + "!").data)

    class Keeps(nn.Module):
        def forward(self, question: str) -> ta.TextVariable:
            return kept[0] if question == "0" else ta.TextVariable("x")

    found = ta.evaluate(Keeps(), [Example("0", "x"), Example("1", "x")], nn.ExactMatchLoss())
    assert [type(row.error) for row in found.rows] == [EngineError, type(None)]


async def read(variable: ta.TextVariable) -> str:
    return await variable
