"""Size and memory: no recursion, no step that grows faster than the tape, nothing that outlives it.

Work is counted in calls and bytes, not in seconds: four times the program may cost at most six
times as much, where a quadratic step would cost sixteen times.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import textautograd as ta
from textautograd import Gradient, TextVariable, dispatch, nn, numeric, rules
from textautograd.engines import Request, Scripted
from textautograd.errors import EngineError
from textautograd.functional import call_tool


def leaf(text: str = "x") -> TextVariable:
    return TextVariable(text, requires_grad=True)


def loss_of(output: TextVariable, target: str = "right") -> TextVariable:
    return nn.ExactMatchLoss()(output, target)  # type: ignore[no-any-return]


def texts(gradient: Gradient | None) -> list[str]:
    assert gradient is not None
    return [f.text for f in gradient]


def answer(request: Request) -> str:
    if request.purpose == "backward":
        if "UNLUCKY" in request.messages[-1]["content"]:
            raise EngineError("the server is gone")
        assert request.schema is not None
        return json.dumps({name: f"a better {name}" for name in request.schema["properties"]})
    return '{"score": 0.5, "feedback": "vague"}' if request.purpose == "judge" else "wrong"


async def answer_later(request: Request) -> str:
    await asyncio.sleep(0)
    return answer(request)


SYNC, ASYNC = Scripted(answer), Scripted(answer_later)
either_engine = pytest.mark.parametrize("engine", [SYNC, ASYNC], ids=["sync", "async"])


class Echo(ta.Function):
    """A text that can be weakly referenced, in the value and in the context."""

    @staticmethod
    def forward(ctx: Any, *given: str) -> str:
        ctx.save_for_backward(Text("saved"))
        ctx.besides = Text("besides")
        return Text(given[0])

    @staticmethod
    def backward(ctx: Any, grad: Gradient) -> list[Gradient]:
        return [grad] * len(ctx.needs_input_grad)


class Text(str):
    """Like any text, but it can be weakly referenced."""


# Work


def counted(program: Callable[[], object]) -> int:
    """The calls that a program makes, in this thread and on the background loop."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async def profile(function: Any) -> None:
        await dispatch.on_loop()
        sys.setprofile(function)

    before = sys.getprofile()
    dispatch.wait(dispatch.start(profile(count)))
    sys.setprofile(count)
    try:
        program()
    finally:
        sys.setprofile(before)
        dispatch.wait(dispatch.start(profile(None)))
    return calls


def allocated(program: Callable[[], object]) -> int:
    """The most bytes that a program holds at a time."""
    gc.collect()
    tracemalloc.start()
    try:
        program()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def chain(n: int) -> None:
    x = y = leaf("")
    for _ in range(n):
        y = y + ""
    y.backward("f")
    assert texts(x.grad) == ["f"]


def chain_of_functions(n: int) -> None:
    x = y = leaf("")
    for _ in range(n):
        y = Echo.apply(y)
    y.backward("f")
    assert texts(x.grad) == ["f"]


def fan_of_successors(n: int) -> None:
    x = leaf()
    ta.mean([loss_of(x) for _ in range(n)]).backward()
    assert len(texts(x.grad)) == n


def fan_of_slots(n: int) -> None:
    x = leaf()
    ta.cat([x] * n).backward("f")
    assert texts(x.grad) == ["f"] * n


def fan_of_leaves(n: int) -> None:
    leaves = [leaf() for _ in range(n)]
    ta.cat(leaves).backward("f")
    assert [texts(x.grad) for x in leaves] == [["f"]] * n


def a_ladder(n: int) -> None:
    """Two paths at every rung: 2**n in all."""
    y = leaf("")
    for _ in range(n):
        y = Echo.apply(y, y + "")
    y.backward("f")


def accumulation(n: int) -> None:
    x = leaf()
    for _ in range(n):
        (x + "!").backward("f")
    assert texts(x.grad) == ["f"] * n


def reading(n: int) -> None:
    """A gradient that grew by one feedback at a time, from either end and in strides."""
    gradient = Gradient()
    for i in range(n):
        gradient = gradient + Gradient([str(i)])
    expected = [str(i) for i in range(n)]
    assert texts(gradient) == expected
    assert [f.text for f in reversed(gradient)] == expected[::-1]
    assert [f.text for f in gradient[::-3]] == expected[::-3]
    assert [f.text for f in gradient[::2]] == expected[::2]


def chain_of_calls(engine: Scripted) -> Callable[[int], None]:
    def program(n: int) -> None:
        x = y = leaf()
        agent = nn.LLM("i", engine=engine)
        for _ in range(n):
            y = agent(y)
        y.backward("f")
        assert len(texts(x.grad)) == 1
        assert len(texts(agent.instruction.grad)) == n

    return program


def batch_of_calls(engine: Scripted) -> Callable[[int], None]:
    def program(n: int) -> None:
        hint, solve = nn.LLM("hint", engine=engine), nn.LLM("solve", engine=engine)
        ta.mean([loss_of(solve(hint=hint(str(i)))) for i in range(n)]).backward()
        assert len(texts(hint.instruction.grad)) == n

    return program


PROGRAMS = {
    "chain": chain,
    "chain of functions": chain_of_functions,
    "fan of successors": fan_of_successors,
    "fan of slots": fan_of_slots,
    "fan of leaves": fan_of_leaves,
    "ladder": a_ladder,
    "accumulation": accumulation,
    "reading": reading,
    "chain of calls, sync": chain_of_calls(SYNC),
    "chain of calls, async": chain_of_calls(ASYNC),
    "batch of calls, sync": batch_of_calls(SYNC),
    "batch of calls, async": batch_of_calls(ASYNC),
}


@pytest.mark.parametrize("measure", [counted, allocated])
@pytest.mark.parametrize("name", PROGRAMS)
def test_four_times_the_program_is_no_more_than_six_times_the_work(
    name: str, measure: Callable[[Callable[[], object]], int]
) -> None:
    program = PROGRAMS[name]
    program(3)  # what is made on first use is made now
    small, large = (measure(lambda n=n: program(n)) for n in (40, 160))  # type: ignore[misc]
    assert large < 6 * small


def test_the_measures_tell_a_quadratic_step() -> None:
    def quadratic(n: int) -> list[list[str]]:
        return [[repr(j) for j in range(n)] for _ in range(n)]

    for measure in (counted, allocated):
        small, large = (measure(lambda n=n: quadratic(n)) for n in (40, 160))  # type: ignore[misc]
        assert large > 10 * small


def test_a_chain_of_a_hundred_thousand_is_walked_and_dropped_without_recursion() -> None:
    x = y = leaf("")
    for _ in range(100_000):
        y = y + ""
    y.backward("f", retain_graph=True)
    assert texts(x.grad) == ["f"]
    reference = weakref.ref(y.grad_fn)
    del y
    assert reference() is None


@pytest.mark.parametrize("program", [fan_of_successors, fan_of_slots, reading])
def test_a_fan_of_ten_thousand(program: Callable[[int], None]) -> None:
    program(10_000)


@either_engine
def test_a_failure_comes_through_a_long_chain(engine: Scripted) -> None:
    y = call_tool(lambda text: {}[text], text=leaf())  # type: ignore[misc]
    agent = nn.LLM("i", engine=engine)
    for _ in range(2_000):
        y = agent(y)
    with pytest.raises(KeyError) as caught:
        str(y)
    assert len(caught.value.__notes__) == 1  # the tool's line, from however deep


@pytest.mark.timeout(30)
def test_a_call_is_asked_once_however_many_paths_lead_to_it() -> None:
    """Sixty doublings, and then a call that has to read what they say: 2**60 times the same."""
    engine = Scripted(answer)
    agent, x = nn.LLM("i", engine=engine), leaf()
    y = agent(x)
    for _ in range(60):
        y = Echo.apply(y, y)
    y.backward("f")
    assert texts(agent.instruction.grad) == ["f"]
    assert texts(x.grad) == ["a better input"]
    assert [call.purpose for call in engine.calls] == ["forward", "backward"]


# Memory


@contextlib.contextmanager
def without_the_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def references(root: Any) -> list[weakref.ref[Any]]:
    """Weak references to all variables and nodes that lie behind a root."""
    found: dict[int, weakref.ref[Any]] = {}
    todo = [root]
    while todo:
        variable = todo.pop()
        if variable.grad_fn is not None and id(variable) not in found:
            found[id(variable)] = weakref.ref(variable)
            found[id(variable.grad_fn)] = weakref.ref(variable.grad_fn)
            todo += variable.grad_fn.predecessors
    return list(found.values())


def alive(tape: list[weakref.ref[Any]]) -> list[Any]:
    assert len(tape) >= 4
    let_the_loop_finish()
    return [reference() for reference in tape if reference() is not None]


def let_the_loop_finish() -> None:
    """What the loop was about to drop is dropped once it has answered a few things more."""
    with ta.no_grad():
        for _ in range(5):
            assert nn.LLM("i", engine=ASYNC)("q").data == "wrong"


def two_calls(engine: Scripted, question: str = "q") -> TextVariable:
    agent = nn.Sequential(nn.LLM("one", engine=engine), nn.LLM("two", engine=engine))
    output: TextVariable = agent(question) + "!"
    return output


def judged(engine: Scripted) -> TextVariable:
    loss: TextVariable = nn.JudgeLoss("c", engine=engine)(two_calls(engine))
    return loss


def batch(engine: Scripted) -> TextVariable:
    return ta.mean([loss_of(two_calls(engine, question)) for question in ("q", "UNLUCKY")])


def of_user_code(engine: Scripted) -> TextVariable:
    tool = call_tool(lambda text: text + "?", text=Echo.apply(two_calls(engine)))
    return loss_of(ta.fill("{a}", a=ta.select([tool, tool], 1)))


TAPES: dict[str, Callable[[Scripted], TextVariable]] = {
    "exact match": lambda engine: loss_of(two_calls(engine)),
    "judge": judged,
    "batch": batch,
    "user code": of_user_code,
}
any_tape = pytest.mark.parametrize("make", TAPES.values(), ids=TAPES)


@either_engine
@any_tape
def test_dropping_a_loss_frees_its_tape(
    engine: Scripted, make: Callable[[Scripted], TextVariable]
) -> None:
    with without_the_collector():
        loss = make(engine)
        tape = references(loss)
        assert loss.item() > 0
        del loss
        assert alive(tape) == []


@either_engine
@any_tape
def test_dropping_a_loss_that_nobody_read_frees_its_tape(
    engine: Scripted, make: Callable[[Scripted], TextVariable]
) -> None:
    with without_the_collector():
        loss = make(engine)
        tape = references(loss)
        del loss
        for _ in range(4):  # calls in flight end before they are dropped
            let_the_loop_finish()
        assert alive(tape) == []


@pytest.mark.filterwarnings("ignore::textautograd.backward.BackwardWarning")
@pytest.mark.parametrize(
    ("rule", "retain_graph"),
    [(rules.semantic, False), (rules.semantic, True), (rules.textgrad, True)],
)
@either_engine
@any_tape
def test_dropping_a_loss_after_backward_frees_its_tape(
    engine: Scripted,
    make: Callable[[Scripted], TextVariable],
    retain_graph: bool,
    rule: Any,
) -> None:
    with without_the_collector():
        loss = make(engine)
        tape = references(loss)
        loss.backward(rule=rule, engine=engine, retain_graph=retain_graph)
        if retain_graph:
            loss.backward(rule=rule, engine=engine, retain_graph=True)
        del loss
        assert alive(tape) == []


@either_engine
def test_a_backward_pass_that_failed_keeps_no_tape(engine: Scripted) -> None:
    with without_the_collector():
        loss = loss_of(two_calls(engine, "UNLUCKY"))
        tape = references(loss)
        with contextlib.suppress(EngineError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss.backward()
        del loss
        assert alive(tape) == []


@either_engine
@any_tape
def test_backward_frees_what_was_behind_a_loss_that_is_kept(
    engine: Scripted, make: Callable[[Scripted], TextVariable]
) -> None:
    with without_the_collector():
        loss = make(engine)
        tape = references(loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss.backward(engine=engine)
        assert alive(tape) == [loss]
        assert loss.item() > 0


@either_engine
@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_hook_that_closes_over_its_variable_leaves_no_cycle_after_backward(
    engine: Scripted, retain_graph: bool
) -> None:
    """With `retain_graph` hooks stay, as another pass would run them: they are taken away by hand.
    Until then a closure over its own variable is a cycle of the user's making."""
    seen = []

    def used() -> list[weakref.ref[Any]]:
        output = two_calls(engine)
        handle = output.register_hook(lambda gradient: seen.append(output.data))
        loss = loss_of(output)
        tape = references(loss)
        loss.backward(retain_graph=retain_graph)
        if retain_graph:
            handle.remove()
        return tape

    with without_the_collector():
        assert alive(used()) == []
    assert seen == ["wrong!"]


@pytest.mark.parametrize("retain_graph", [False, True])
def test_backward_drops_saved_texts_unless_the_graph_is_retained(retain_graph: bool) -> None:
    """Also where the user keeps a variable in the middle: what a Function saved goes with it."""
    middle = Echo.apply(Echo.apply(leaf()))
    output = middle + "!"
    node = middle.grad_fn
    assert node is not None
    first = node.predecessors[0].data
    ctx = node.operation.ctx
    saved = [weakref.ref(text) for text in (first, ctx.saved[0], ctx.besides)]
    del first, ctx
    del node
    output.backward("f", retain_graph=retain_graph)
    node = middle.grad_fn
    assert [text() for text in saved] == (["x", "saved", "besides"] if retain_graph else [None] * 3)
    assert (node.inputs, node.output) == (("x",) if retain_graph else (), node.output)
    assert node.output == ("x" if retain_graph else None)
    assert repr(node) == "<Echo>"
    assert middle.data == "x"


def test_backward_drops_saved_arrays_too() -> None:
    a = numeric.array([[1.0, 2.0]], requires_grad=True)
    middle = a * 2.0
    output = middle @ numeric.array([[1.0], [3.0]])
    reference = weakref.ref(middle.grad_fn)
    del middle
    numeric.sum(output).backward()
    assert reference() is None
    assert output.data.tolist() == [[14.0]]
