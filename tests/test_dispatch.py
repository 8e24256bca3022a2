"""The concurrency rules, one by one. Nothing here waits for time to pass: events say when."""

import asyncio
import gc
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import textautograd as ta
from textautograd import Gradient, TextVariable, loop, nn, rules
from textautograd.engines import Request, Scripted
from textautograd.engines.ask import ask
from textautograd.errors import EngineError, UsageError
from textautograd.optim.gate import closure_gate

SOON = 30  # seconds, for what should be at once and would otherwise never be


def leaf(text: str = "x", name: str | None = None) -> TextVariable:
    return TextVariable(text, requires_grad=True, name=name)


def texts(gradient: Gradient | None) -> list[str]:
    assert gradient is not None
    return [f.text for f in gradient]


def said(request: Request) -> str:
    return "\n".join(m["content"] for m in request.messages)


def parts(request: Request, text: str = "better") -> str:
    """A backward reply that gives each asked name this text."""
    assert request.schema is not None
    return json.dumps({name: f"{name}: {text}" for name in request.schema["properties"]})


def soon(text: str = "reply") -> Scripted:
    """An engine that answers on the loop."""

    async def answer(request: Request) -> str:
        return parts(request) if request.schema else text

    return Scripted(answer)


class Held:
    """An engine that answers, on the loop, once `go` is set."""

    def __init__(self, answer: Callable[[Request], str] = lambda request: "late") -> None:
        self.asked, self.go, self.answered = (threading.Event() for _ in range(3))
        self.engine = Scripted(self._answer)
        self._reply = answer

    async def _answer(self, request: Request) -> str:
        self.asked.set()
        await asyncio.to_thread(self.go.wait, SOON)
        self.answered.set()
        return self._reply(request)

    def call(self, *text: Any) -> TextVariable:
        """A call that is pending until `go` is set."""
        y: TextVariable = nn.LLM("held", engine=self.engine)(*text or ("q",))
        return y


class Together:
    """An engine that answers only once `count` of its calls are in flight."""

    def __init__(self, count: int) -> None:
        self.count, self.waiting, self.all_here = count, 0, asyncio.Event()
        self.engine = Scripted(self._answer)

    async def _answer(self, request: Request) -> str:
        self.waiting += 1
        if self.waiting == self.count:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), SOON)
        return parts(request) if request.schema else "together"


def let_the_loop_finish() -> None:
    """What was about to end on the loop has ended once it has answered a few things more."""
    with ta.no_grad():
        for _ in range(5):
            assert nn.LLM("i", engine=soon())("q").data == "reply"


def line(marker: str) -> str:
    """`file:line` of the line in this file that ends in `# marker`."""
    (number,) = (
        n
        for n, text in enumerate(Path(__file__).read_text("utf-8").splitlines(), 1)
        if text.endswith("# " + marker)
    )
    return f"{__file__}:{number},"


def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


PRELUDE = """
import asyncio, os, sys, threading
import textautograd as ta
from textautograd import nn
from textautograd.engines import Scripted
from textautograd.errors import UsageError

asked = threading.Event()
async def hang(request):
    asked.set()
    await asyncio.Event().wait()
async def soon(request):
    return '{"input": "better"}' if request.schema else "reply"
go = threading.Event()
async def held(request):
    await asyncio.to_thread(go.wait)
    return "late"
hanging, quick, held = (nn.LLM("i", engine=Scripted(f)) for f in (hang, soon, held))
"""


# Independent calls overlap


def test_two_hints_of_one_forward_pass_overlap() -> None:
    hint = nn.LLM("hint", engine=Together(2).engine)
    solve = nn.LLM("solve", engine=soon("solved"))
    assert solve(a=hint("1"), b=hint("2")).data == "solved"


def test_all_samples_of_a_batch_overlap() -> None:
    hint, solve = (nn.LLM("i", engine=Together(20).engine) for _ in range(2))
    loss_fn = nn.ExactMatchLoss()
    losses = [loss_fn(solve(hint=hint(str(i))), "right") for i in range(20)]
    assert ta.mean(losses).item() == 1.0


def test_backward_calls_of_a_batch_overlap() -> None:
    together = Together(20)
    x = leaf()
    agent = nn.LLM("i", engine=soon())
    loss_fn = nn.ExactMatchLoss()
    ta.mean([loss_fn(agent(x), "right") for _ in range(20)]).backward(engine=together.engine)
    assert texts(x.grad) == ["input: better"] * 20


@pytest.mark.parametrize("rule", [rules.textgrad, rules.blind(rules.semantic)])
def test_calls_for_the_predecessors_of_one_node_overlap(rule: Any) -> None:
    x, y = leaf("x"), leaf("y")
    out = nn.LLM("i", engine=soon())(x=x, y=y)
    out.backward("f", rule=rule, engine=Together(2).engine)
    assert (texts(x.grad), texts(y.grad)) == (["x: better"], ["y: better"])


def test_there_is_no_barrier_between_waves_of_a_backward_pass() -> None:
    """The slow call is answered only when the other branch has come two nodes further."""
    far = asyncio.Event()

    async def slow(request: Request) -> str:
        if request.schema:
            await asyncio.wait_for(far.wait(), SOON)
            return parts(request, "slow")
        return "a"

    async def last(request: Request) -> str:
        if request.schema:
            far.set()
            return parts(request, "last")
        return "b"

    x, y = leaf("x"), leaf("y")
    slow_branch = nn.LLM("slow", engine=Scripted(slow))(x)
    fast = nn.LLM("1", engine=soon())(nn.LLM("2", engine=soon())(
        nn.LLM("3", engine=Scripted(last))(y)))  # fmt: skip
    ta.cat([slow_branch, fast]).backward("f")
    assert texts(x.grad) == ["input: slow"]
    assert texts(y.grad) == ["input: last"]


def test_a_slow_forward_call_holds_up_only_what_depends_on_it() -> None:
    held = Held()
    slow = held.call()
    assert nn.LLM("i", engine=soon())("q").data == "reply"
    depends = nn.LLM("i", engine=soon("after"))(slow)
    assert repr(depends) == "TextVariable(<pending>, grad_fn=<complete>)"
    held.go.set()
    assert depends.data == "after"


def test_a_deep_chain_of_pending_calls() -> None:
    held = Held()
    agent = nn.LLM("i", engine=soon())
    y = held.call()
    for _ in range(2000):
        y = agent(y)
    held.go.set()
    assert y.data == "reply"
    y.backward("f", engine=soon())
    assert agent.instruction.grad is not None
    assert len(agent.instruction.grad) == 2000


# Whatever the order of completion


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def trained(engine: Scripted) -> tuple[list[str], list[list[str]]]:
    """The requests (in no order) and gradients (in order) of a batch of three with two hints."""
    first, second, solve = (nn.LLM(i, engine=engine) for i in ("first", "second", "solve"))
    losses = []
    for q in ("a", "b", "c"):
        hint = first(q=q)
        losses.append(
            nn.ExactMatchLoss()(solve(q=q, hint=hint, other=second(q=q, hint=hint)), "right")
        )
    ta.mean(losses).backward()
    return (
        sorted(said(request) for request in engine.calls),
        [texts(module.instruction.grad) for module in (first, second, solve)],
    )


def by_content(request: Request) -> str:
    return parts(request, digest(said(request))) if request.schema else digest(said(request))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_prompts_and_gradients_are_the_same_in_any_order_of_completion(seed: int) -> None:
    async def answer(request: Request) -> str:
        turns = random.Random(f"{seed}{said(request)}").randrange(12)
        for _ in range(turns):
            await asyncio.sleep(0)
        return by_content(request)

    requests, gradients = trained(Scripted(answer))
    assert (requests, gradients) == trained(Scripted(by_content))
    assert list(map(len, gradients)) == [3, 3, 3] or list(map(len, gradients)) == [6, 3, 3]


# What is context-local is read where the call is written


def test_the_engine_is_read_where_the_call_is_written() -> None:
    held, agent = Held(), nn.LLM("i")
    with ta.use_engine(soon("then")):
        y = agent(held.call())
    with ta.use_engine(soon("now")):
        held.go.set()
        assert y.data == "then"


def test_grad_mode_is_read_where_the_call_is_written() -> None:
    held = Held()
    with ta.no_grad():
        y = nn.LLM("i", engine=soon())(held.call())
    z = nn.LLM("i", engine=soon())(held.call())
    assert y.is_leaf and not z.is_leaf
    with ta.no_grad():
        held.go.set()
        assert (y.data, z.data) == ("reply", "reply")
    assert z.requires_grad and not y.requires_grad


def test_the_budget_is_the_one_where_the_call_is_written() -> None:
    held = Held()
    with ta.Budget() as outer:
        with ta.Budget() as inner:
            y = nn.LLM("i", engine=soon())(held.call())
        held.go.set()
        with ta.Budget() as later:
            assert y.data == "reply"
    assert (outer.spent.calls, inner.spent.calls, later.spent.calls) == (2, 2, 0)


def test_parameters_are_read_where_the_call_is_written() -> None:
    held, engine = Held(), soon()
    agent = nn.LLM("old", engine=engine)
    y = agent(held.call())
    agent.instruction.data = "new"
    held.go.set()
    assert y.data == "reply"
    assert "old" in said(engine.calls[0]) and "new" not in said(engine.calls[0])


def test_overrides_are_read_where_the_call_is_written() -> None:
    held, engine = Held(), soon()
    agent = nn.LLM("own", engine=engine)
    with ta.no_grad():
        y = ta.functional_call(agent, {"instruction": "other"}, held.call())
        z = agent(y)
    held.go.set()
    assert z.data == "reply"
    assert ["other" in said(r) for r in engine.calls] == [True, False]
    assert agent.instruction.data == "own"


def test_candidates_run_in_threads_with_copied_contexts_where_parameters_read_as_theirs() -> None:
    agent = nn.LLM("old")
    p = agent.instruction
    together = threading.Barrier(3)
    seen = {}

    def closure() -> float:
        together.wait(SOON)
        text = agent("q").data
        seen[text] = (p.data, str(p), agent.state_dict(), ta.is_grad_enabled())
        with pytest.raises(UsageError, match="candidate"):
            p.data = "assigned"
        return float(text != "two")

    states = [{p: TextVariable(text)} for text in ("old", "one", "two")]
    with ta.use_engine(Scripted(lambda r: r.messages[0]["content"])):
        verdict = closure_gate(closure)(states[0], states[1:])
    assert (verdict.before, verdict.losses, verdict.best) == (1.0, [1.0, 0.0], 1)
    assert seen == {t: (t, t, {"instruction": t}, False) for t in ("old", "one", "two")}
    assert p.data == "old"


def test_evaluate_runs_under_no_grad() -> None:
    seen = []

    class Agent(nn.Module):
        def forward(self, question: str) -> str:
            seen.append(ta.is_grad_enabled())
            return "a"

    evaluation = ta.evaluate(Agent(), [ta.data.Example("q", "a")] * 2, nn.ExactMatchLoss())
    assert evaluation.loss == 0.0
    assert seen == [False, False]


# User code never runs on the loop

flavour: ContextVar[str] = ContextVar("flavour", default="none")


def where() -> tuple[bool, bool, str]:
    """Whether this is the main thread, whether it is the loop's, and the context's flavour."""
    main = threading.current_thread() is threading.main_thread()
    return main, loop.on_the_loop(), flavour.get()


@pytest.mark.parametrize("kind", ["function", "tool", "extract", "sync engine"])
@pytest.mark.parametrize("is_pending", [False, True])
def test_user_code_runs_at_once_or_in_a_thread_of_its_own_and_may_read_pending_values(
    kind: str, is_pending: bool
) -> None:
    other, seen = Held(), []
    other_value = other.call()

    def user_code(text: Any) -> str:
        seen.append(where())
        if is_pending:  # else there would be nobody to let it go
            assert other_value.data == "late"
        return "done"

    class Mine(ta.Function):
        @staticmethod
        def forward(ctx: Any, text: str) -> str:
            return user_code(text)

    call: dict[str, Callable[[Any], TextVariable]] = {
        "function": Mine.apply,
        "tool": lambda x: ta.call_tool(user_code, text=x),
        "extract": lambda x: nn.ExactMatchLoss(extract=user_code)(x, "done"),
        "sync engine": lambda x: nn.LLM("i", engine=Scripted(user_code))(x),
    }
    held = Held()
    token = flavour.set("sweet")
    y = call[kind](held.call() if is_pending else "known")
    flavour.reset(token)
    if is_pending:
        assert seen == []
        held.go.set()
        other.go.set()
    else:
        assert seen == [(True, False, "sweet")]
    assert y.data in ("done", 'The expected output is: "done".')
    assert seen == [(not is_pending, False, "sweet")]
    other.go.set()
    assert other_value.data == "late"


def test_hooks_rules_and_a_functions_backward_may_read_pending_values() -> None:
    held = Held()
    pending, seen = held.call(), []

    class Mine(ta.Function):
        @staticmethod
        def forward(ctx: Any, text: str) -> str:
            return text

        @staticmethod
        def backward(ctx: Any, grad: Gradient) -> Any:
            seen.append((*where(), pending.data))
            return grad

    def hook(gradient: Gradient) -> None:
        seen.append((*where(), pending.data))

    def rule(node: Any, gradient: Gradient, engine: Any) -> Any:
        seen.append((*where(), pending.data))
        return [None, gradient]

    x = leaf()
    x.register_hook(hook)
    y = Mine.apply(nn.LLM("i", engine=soon())(x))
    threading.Thread(target=lambda: (held.asked.wait(SOON), held.go.set())).start()
    y.backward("f", rule=rule)
    assert texts(x.grad) == ["f"]
    assert seen == [(True, False, "none", "late")] * 3


def test_an_async_rule_may_use_the_rules_of_the_package() -> None:
    async def rule(node: Any, gradient: Gradient, engine: Any) -> Any:
        await asyncio.sleep(0)
        return await rules.textgrad(node, gradient, engine)

    x, y = leaf(), leaf()
    out = nn.LLM("i", engine=soon())(x=x, y=y)
    out.backward("f", rule=rule, engine=Together(2).engine)
    assert (texts(x.grad), texts(y.grad)) == (["x: better"], ["y: better"])


def test_reading_a_pending_value_on_the_loop_raises_and_awaiting_it_works() -> None:
    held = Held()
    pending = held.call()

    async def reads(request: Request) -> str:
        return pending.data

    async def awaits(request: Request) -> str:
        return await pending

    with pytest.raises(UsageError, match="await it"):
        nn.LLM("i", engine=Scripted(reads))("q").data  # noqa: B018
    y = nn.LLM("i", engine=Scripted(awaits))("q")
    held.go.set()
    assert y.data == "late"


def test_a_synchronous_engine_is_called_inline_when_its_inputs_are_there() -> None:
    seen: list[Any] = []

    def answer(request: Request) -> str:
        seen.append(threading.current_thread())
        return parts(request) if request.schema else "a"

    agent = nn.LLM("i", engine=Scripted(answer))
    x = leaf()
    y = agent(agent(x))
    assert seen == [threading.current_thread()] * 2
    y.backward("f")
    assert seen == [threading.current_thread()] * 4


# Waiting


def test_await_and_reading_inside_a_running_loop() -> None:
    async def main() -> list[str]:
        agent = nn.LLM("i", engine=soon())
        x = agent("q")
        first = await x
        blocking = agent(x).data  # blocks this loop, not the one that answers
        many = await asyncio.gather(*[reading(agent(str(i))) for i in range(10)])
        return [first, blocking, *many]

    async def reading(x: TextVariable) -> str:
        return await x

    assert asyncio.run(main()) == ["reply"] * 12


def test_await_what_is_known_or_failed() -> None:
    def fail(request: Request) -> str:
        raise KeyError("k")

    async def later(request: Request) -> str:
        raise KeyError("k")

    async def main() -> None:
        assert await leaf("known") == "known"
        for answer in (fail, later):
            with pytest.raises(KeyError):
                await nn.LLM("i", engine=Scripted(answer))("q")

    asyncio.run(main())


def test_backward_inside_a_running_loop() -> None:
    async def main() -> None:
        x = leaf()
        agent = nn.LLM("i", engine=soon())
        y = agent(x)
        await asyncio.to_thread(y.backward, "f")
        agent(x).backward("g")
        assert texts(x.grad) == ["input: better"] * 2

    asyncio.run(main())


def test_whoever_waits_may_be_cancelled_and_the_call_is_not() -> None:
    held = Held()
    y = held.call()

    async def read() -> str:
        return await y

    async def main() -> None:
        task = asyncio.create_task(read())
        await asyncio.to_thread(held.asked.wait, SOON)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    held.go.set()
    assert y.data == "late"


def test_from_many_threads() -> None:
    agent = nn.LLM("i", engine=Together(16).engine)
    x = [leaf(str(i)) for i in range(16)]
    assert ta.map(lambda v: agent(v).data, x) == ["together"] * 16
    shared = Held()
    y = shared.call()
    threading.Timer(0, shared.go.set).start()
    assert ta.map(lambda _: y.data, range(16)) == ["late"] * 16


def test_backward_waits_for_the_root() -> None:
    held = Held()
    seen = []

    def rule(node: Any, gradient: Gradient, engine: Any) -> Any:
        seen.append((node.inputs, node.output))
        return [None, None]

    y = nn.LLM("i", engine=soon("out"))(held.call())
    threading.Thread(target=lambda: (held.asked.wait(SOON), held.go.set())).start()
    y.backward("f", rule=rule)
    assert seen[0] == (("i", "late"), "out")


# Blocking mode


def test_blocking_mode_runs_each_call_where_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTAUTOGRAD_BLOCKING", "1")
    running = most = 0

    async def answer(request: Request) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return "a"

    agent = nn.LLM("i", engine=Scripted(answer))
    values = [agent(str(i)) for i in range(5)]
    assert all("<pending>" not in repr(v) for v in values)
    assert most == 1

    async def fail(request: Request) -> str:
        raise KeyError("k")

    broken = nn.LLM("i", engine=Scripted(fail))
    with pytest.raises(KeyError):
        broken("q")
    monkeypatch.setenv("TEXTAUTOGRAD_BLOCKING", "0")
    y = broken("q")
    with pytest.raises(KeyError):
        y.data  # noqa: B018


# Failures


async def broken_later(request: Request) -> str:
    raise EngineError("down")


def broken_now(request: Request) -> str:
    raise EngineError("down")


@pytest.mark.parametrize("answer", [broken_now, broken_later])
def test_an_error_surfaces_where_the_value_is_read_and_names_the_line_of_the_call(
    answer: Any,
) -> None:
    y = nn.LLM("i", engine=Scripted(answer))("q")  # the call that fails
    z = nn.LLM("i", engine=soon())(y) + "!"
    for reader in (z, y):
        with pytest.raises(EngineError, match="down") as caught:
            reader.data  # noqa: B018
        (note,) = caught.value.__notes__  # one, though it was read through another call
        assert note.startswith(f"  in an LLM call, called at {line('the call that fails')}")
    x = leaf()
    failing = nn.LLM("i", engine=Scripted(answer))(x)
    with pytest.raises(EngineError):
        failing.backward("f")
    assert x.grad is None


def test_the_first_failure_in_slot_order_is_raised_whichever_came_first() -> None:
    def fail(name: str) -> Callable[[Request], str]:
        def answer(request: Request) -> str:
            raise KeyError(name)

        return answer

    held = Held(fail("first"))
    first = held.call()
    second = nn.LLM("i", engine=Scripted(fail("second")))("q")
    joined = ta.cat([first, second])
    held.go.set()
    with pytest.raises(KeyError, match="first"):
        joined.data  # noqa: B018


def test_a_dropped_unread_failure_is_one_warning() -> None:
    with pytest.warns(RuntimeWarning, match=r"never read: EngineError: down.*test_dispatch") as log:
        nn.LLM("i", engine=Scripted(broken_now))("q")
    assert len(log) == 1
    y = nn.LLM("i", engine=Scripted(broken_later))("q")
    let_the_loop_finish()
    with pytest.warns(RuntimeWarning, match=r"never read: EngineError: down") as log:
        del y
    assert len(log) == 1


def test_a_failure_of_a_call_that_was_dropped_in_flight_is_one_warning() -> None:
    def fail(request: Request) -> str:
        raise EngineError("down")

    held = Held(fail)
    with pytest.warns(RuntimeWarning, match="never read: EngineError: down") as log:
        depends = nn.LLM("i", engine=soon())(held.call())
        assert held.asked.wait(SOON)
        del depends
        held.go.set()
        assert held.answered.wait(SOON)
        let_the_loop_finish()
    assert len(log) == 1


def test_a_failure_that_was_read_is_no_warning() -> None:
    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        for answer in (broken_now, broken_later):
            agent = nn.LLM("i", engine=Scripted(answer))
            y = agent("q")
            depends = agent(y)
            batch = ta.mean([nn.ExactMatchLoss()(agent(q), "a") for q in "abc"])
            for reader in (depends, batch):
                with pytest.raises(EngineError):
                    reader.data  # noqa: B018
            let_the_loop_finish()
            del y, depends, batch, reader
            gc.collect()
    assert [str(w.message) for w in log] == []


def test_a_backward_pass_that_was_given_up_sends_nothing_more() -> None:
    given_up, seen = threading.Event(), []
    model = soon()

    async def rule(node: Any, gradient: Gradient, engine: Any) -> Any:
        seen.append(node)
        if len(seen) == 2:
            raise KeyError("mine")
        await asyncio.to_thread(given_up.wait, SOON)
        seen.append(await ask(model, Request([{"role": "user", "content": "again"}])))

    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        agent, x = nn.LLM("i", engine=model), leaf()
        with pytest.raises(KeyError, match="mine"):
            ta.cat([agent(x), agent(x)]).backward("f", rule=rule)
        given_up.set()
        let_the_loop_finish()
        gc.collect()
    assert len(seen) == 2 and [str(w.message) for w in log] == []


def test_failures_of_a_backward_pass_that_was_given_up_are_no_warnings() -> None:
    both = asyncio.Event()
    seen = []

    async def rule(node: Any, gradient: Gradient, engine: Any) -> Any:
        seen.append(node)
        if len(seen) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), SOON)
        raise KeyError("mine")

    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        x = leaf()
        agent = nn.LLM("i", engine=soon())
        with pytest.raises(KeyError, match="mine"):
            ta.cat([agent(x), agent(x)]).backward("f", rule=rule)
        let_the_loop_finish()
        seen.clear()
        gc.collect()
    assert [str(w.message) for w in log] == []
    assert x.grad is None


def test_a_failure_behind_several_values_is_one_warning_and_none_if_one_was_read() -> None:
    async def awaited(variable: TextVariable) -> str:
        return await variable

    def used_twice() -> tuple[TextVariable, TextVariable]:
        y = nn.LLM("i", engine=Scripted(broken_later))("q")
        agent = nn.LLM("i", engine=soon())
        return agent(y), agent(y)

    with warnings.catch_warnings(record=True) as log:
        warnings.simplefilter("always")
        one, other = used_twice()
        let_the_loop_finish()
        del one, other
        gc.collect()
        assert len(log) == 1
        for read in (lambda v: v.data, lambda v: asyncio.run(awaited(v))):
            one, other = used_twice()
            with pytest.raises(EngineError):
                read(one)
            let_the_loop_finish()
            del one, other
            gc.collect()
    assert len(log) == 1


def test_an_error_that_is_raised_again_and_again_names_a_line_once() -> None:
    error = EngineError("always the same")

    def fail(request: Request) -> str:
        raise error

    agent = nn.LLM("i", engine=Scripted(fail))
    for _ in range(3):
        with pytest.raises(EngineError):
            agent("q").data  # noqa: B018
    assert len(error.__notes__) == 1


def test_unread_calls_are_not_cancelled() -> None:
    held = Held()
    held.call()
    gc.collect()
    assert held.asked.wait(SOON)
    held.go.set()
    assert held.answered.wait(SOON)


def test_a_call_that_cancels_itself_is_an_error_and_no_endless_wait() -> None:
    async def cancelled(request: Request) -> str:
        raise asyncio.CancelledError

    y = nn.LLM("i", engine=Scripted(cancelled))("q")
    with pytest.raises(EngineError, match="cancelled"):
        y.data  # noqa: B018


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["tool", "engine"])
def test_an_exit_in_user_code_is_raised_where_the_value_is_read(kind: Any, place: str) -> None:
    def leave(text: Any) -> str:
        raise kind("bye")

    async def leaves(request: Request) -> str:
        raise kind("bye")

    held = Held()
    if place == "tool":
        y = ta.call_tool(leave, text=held.call())
    else:
        y = nn.LLM("i", engine=Scripted(leaves))(held.call())
    held.go.set()
    with pytest.raises(kind):
        y.data  # noqa: B018
    let_the_loop_finish()  # it is still there


def test_stop_iteration_in_user_code_is_an_error_and_no_endless_wait() -> None:
    def exhausted(text: str) -> str:
        return next(iter([]))

    held = Held()
    y = ta.call_tool(exhausted, text=held.call())
    held.go.set()
    for reader in (y, ta.call_tool(exhausted, text="known")):
        with pytest.raises(RuntimeError, match="StopIteration"):
            reader.data  # noqa: B018


# The loop's thread


def test_exact_graphs_and_synchronous_engines_never_start_the_loop() -> None:
    done = run(
        """
x = ta.TextVariable("x", requires_grad=True)
agent = nn.LLM("i", engine=Scripted(lambda r: '{"input": "b"}' if r.schema else "a"))
loss = nn.ExactMatchLoss()(ta.cat([agent(x) + "!", ta.fill("{x}", x=x)]), "no")
ta.mean([loss, loss]).backward()
assert len(x.grad) == 2, x.grad
assert threading.active_count() == 1
""".replace("asyncio.", ""),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_loop_is_made_on_first_use() -> None:
    done = run(
        """
names = lambda: [t.name for t in threading.enumerate()]
assert names() == ["MainThread"], names()
assert quick("q").data == quick("q").data == "reply"
assert names() == ["MainThread", "textautograd-loop"], names()
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


EXITS = {
    "a hanging call": "y = hanging('q'); asked.wait()",
    "an unread call": "hanging('q'); asked.wait()",
    "a call that has not begun": "y = hanging('q')",
    "a call that waits for another": "y = quick(hanging('q')); asked.wait()",
    "a failure on being cancelled": """
async def sulk(request):
    try:
        asked.set()
        await asyncio.Event().wait()
    finally:
        raise ValueError("I was cancelled")
y = nn.LLM("i", engine=Scripted(sulk))("q"); asked.wait()
""",
    "a call that will not be cancelled": """
async def stubborn(request):
    asked.set()
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
y = nn.LLM("i", engine=Scripted(stubborn))("q"); asked.wait()
""",
    "a task that an engine left behind": """
async def sulk():
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("I was cancelled")
async def leaves(request):
    global task
    task = asyncio.create_task(sulk())
    await asyncio.sleep(0)
    return "a"
assert nn.LLM("i", engine=Scripted(leaves))("q").data == "a"
""",
    "a hanging tool": """
def tool(text):
    asked.set()
    threading.Event().wait()
y = ta.call_tool(tool, text=held("q")); go.set(); asked.wait()
""",
    "a tool that ends as we do": """
import atexit
end = threading.Event()
def tool(text):
    asked.set()
    end.wait()
    return text
y = ta.call_tool(tool, text=held("q")); go.set(); asked.wait()
def let_go():
    end.set()
    for thread in threading.enumerate():
        if thread.name == "textautograd-user-code":
            thread.join()
import textautograd.loop as l
stop = l._the_loop.stop
atexit.unregister(stop)
atexit.register(let_go)
atexit.register(stop)
""",
    "a hanging synchronous engine": """
def answer(request):
    asked.set()
    threading.Event().wait()
y = nn.LLM("i", engine=Scripted(answer))(held("q")); go.set(); asked.wait()
""",
    "a hanging backward pass in a thread": """
async def answer(request):
    if request.schema:
        asked.set()
        await asyncio.Event().wait()
    return "a"
x = ta.TextVariable("x", requires_grad=True)
y = nn.LLM("i", engine=Scripted(answer))(x)
threading.Thread(target=y.backward, args=("f",), daemon=True).start(); asked.wait()
""",
    "an engine that blocks the loop": """
def answer(request):
    asked.set()
    threading.Event().wait()
async def blocks(request):
    answer(request)
y = nn.LLM("i", engine=Scripted(blocks))("q"); asked.wait()
""",
}


@pytest.mark.parametrize("situation", EXITS)
def test_the_interpreter_exits_without_a_word_while_there_is(situation: str) -> None:
    done = run(EXITS[situation], "-W", "always")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_exception_ends_the_program_while_calls_are_in_flight() -> None:
    done = run("y = hanging('q'); asked.wait(); raise SystemExit(3)")
    assert (done.returncode, done.stderr) == (3, "")


def test_clients_are_closed_at_exit() -> None:
    done = run(
        """
async def answer(request):
    async def client():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            print("closed", flush=True)
    global task
    task = asyncio.create_task(client())
    await asyncio.sleep(0)
    return "a"
print(nn.LLM("i", engine=Scripted(answer))("q").data, flush=True)
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\nclosed\n", "")


def test_after_a_fork_new_calls_work_and_an_inherited_pending_value_raises() -> None:
    done = run(
        """
read = quick("q")
assert read.data == "reply"
y = held("q")
child = os.fork()
if child == 0:
    assert read.data == "reply"
    assert "<pending>" in repr(y)
    async def awaited():
        return await y
    for attempt in (lambda: y.data, lambda: quick(y).data, lambda: asyncio.run(awaited())):
        try:
            attempt()
        except UsageError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError("no error")
    x = ta.TextVariable("x", requires_grad=True)
    z = quick(x)
    assert z.data == "reply"
    z.backward("f")
    assert str(x.grad) == "better"
    hanging("q")
    print("child is done", flush=True)
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
go.set()
assert y.data == "late"
assert quick("q").data == "reply"
print("parent is done")
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "child is done\nparent is done\n"


def test_a_forked_child_of_a_program_that_made_no_call_makes_its_own_loop() -> None:
    done = run(
        """
child = os.fork()
assert quick("q").data == "reply"
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
