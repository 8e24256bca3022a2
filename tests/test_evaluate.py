"""`evaluate`: every sample has an outcome, and a failure is no score."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_loader import Table

import textautograd as ta
from textautograd import engines, errors, nn, optim
from textautograd.data import Example
from textautograd.engines import Reply, Request, Scripted, Usage
from textautograd.engines._store import Store


def question_of(request: Request) -> str:
    return request.messages[-1]["content"].split("\n")[1]


def answering(answers: dict[str, str | Exception]) -> nn.LLM:
    def answer(request: Request) -> str:
        found = answers[question_of(request)]
        if isinstance(found, Exception):
            raise found
        return found

    return nn.LLM("Solve it.").to(Scripted(answer))


def test_rows_hold_what_happened_in_the_order_of_the_dataset() -> None:
    boom = errors.ServerError("500")
    module = answering({"a?": "right", "b?": "wrong", "c?": boom, "d?": "right"})
    dataset = [Example(f"{c}?", "right") for c in "abcd"]
    found = ta.evaluate(module, dataset, nn.ExactMatchLoss())
    assert [row.example for row in found.rows] == dataset
    assert [row.output for row in found.rows] == ["right", "wrong", None, "right"]
    assert [row.loss for row in found.rows] == [0.0, 1.0, None, 0.0]
    assert [row.error for row in found.rows] == [None, None, boom, None]


def test_method_5_S9_a_failed_sample_is_no_score_of_0() -> None:
    module = answering({"a?": "right", "b?": "wrong", "c?": errors.ServerError("500")})
    found = ta.evaluate(module, [Example(f"{c}?", "right") for c in "abc"], nn.ExactMatchLoss())
    assert (found.loss, found.accuracy, found.failed) == (0.5, 0.5, 1)
    assert "1 failed" in repr(found) and "accuracy=50.0%" in repr(found)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_loss_is_the_mean_and_accuracy_the_share_without_loss(scores: list[float]) -> None:
    module = answering({str(i): "x" for i in range(len(scores))})
    replies = iter(scores)
    judge = Scripted(lambda r: json.dumps({"feedback": "so", "score": next(replies)}))
    dataset = [Example(str(i), "x") for i in range(len(scores))]
    found = ta.evaluate(module, dataset, nn.JudgeLoss("Be brief.", engine=judge))
    losses = [1 - score for score in scores]
    assert found.loss == pytest.approx(sum(losses) / len(losses))
    assert found.accuracy == sum(loss == 0 for loss in losses) / len(losses)


def test_where_every_sample_fails_the_first_cause_is_raised() -> None:
    first = errors.BadRequestError("wrong key")
    module = answering({"a?": first, "b?": errors.ServerError("500")})
    with pytest.raises(errors.BadRequestError, match="wrong key") as caught:
        ta.evaluate(module, [Example("a?", "x"), Example("b?", "x")], nn.ExactMatchLoss())
    assert caught.value is first
    assert any("all 2 samples failed" in note for note in first.__notes__)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failed_sample_leaves_no_warning_of_an_unread_value(is_async: bool) -> None:
    def answer(request: Request) -> str:
        if question_of(request) == "a?":
            raise errors.ServerError("500")
        return "x"

    async def later(request: Request) -> str:
        await asyncio.sleep(0)
        return answer(request)

    module = nn.LLM("Solve it.").to(Scripted(later if is_async else answer))
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ta.evaluate(module, [Example("a?", "x"), Example("b?", "x")], nn.ExactMatchLoss())
        assert found.failed == 1
        del found
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_nothing_is_recorded() -> None:
    seen: list[Any] = []
    module = answering({"a?": "x"})
    module.register_forward_hook(lambda m, a, output: seen.append(output.grad_fn))
    ta.evaluate(module, [Example("a?", "x")], nn.ExactMatchLoss())
    assert seen == [None]


def test_samples_are_under_way_together() -> None:
    together = asyncio.Barrier(16)

    async def answer(request: Request) -> str:
        async with asyncio.timeout(60):
            await together.wait()
        return "right"

    module = nn.LLM("Solve it.").to(Scripted(answer))
    dataset = [Example(f"{i}?", "right") for i in range(16)]
    assert ta.evaluate(module, dataset, nn.ExactMatchLoss()).accuracy == 1


def test_usage_is_what_this_evaluation_cost() -> None:
    usage = Usage(input_tokens=10, output_tokens=2, cost=0.5, calls=1)
    module = nn.LLM("Solve it.").to(Scripted(lambda r: Reply("x", usage=usage)))
    dataset = [Example("a?", "x"), Example("b?", "x")]
    str(module("before"))
    found = ta.evaluate(module, dataset, nn.ExactMatchLoss())
    assert found.usage == usage + usage


def test_extras_of_an_example_are_the_modules_arguments() -> None:
    class Agent(nn.Module):
        def forward(self, question: str, speaker: str) -> str:
            return f"{speaker}: {question}"

    dataset = [Example("why?", "Ann: why?", speaker="Ann")]
    assert ta.evaluate(Agent(), dataset, nn.ExactMatchLoss()).loss == 0


def test_an_executor_runs_the_state_that_the_context_sees() -> None:
    module = nn.LLM("old").to(Scripted(lambda r: r.messages[0]["content"]))
    dataset = [Example(f"{i}?", "new") for i in range(3)]
    loss = nn.ExactMatchLoss()
    with ThreadPoolExecutor(2) as executor:
        assert ta.evaluate(module, dataset, loss, executor=executor).loss == 1

        class Evaluating(nn.Module):
            def __init__(self) -> None:
                self.part = module

            def forward(self) -> float:
                return ta.evaluate(module, dataset, loss, executor=executor).loss

        assert ta.functional_call(Evaluating(), {"part.instruction": "new"}) == 0
    assert module.state_dict() == {"instruction": "old"}


def test_a_budget_ends_an_evaluation_at_once() -> None:
    module = nn.LLM("Solve it.").to(Scripted(lambda r: "x"))
    dataset = [Example(f"{i}?", "x") for i in range(9)]
    with ta.Budget(calls=3) as budget, pytest.raises(ta.BudgetExceeded):
        ta.evaluate(module, dataset, nn.ExactMatchLoss())
    assert budget.spent.calls <= 3


@pytest.mark.parametrize(
    "dataset", [[], (), ["why?"], [None], "text", None, {"q": "a"}, iter([Example("a?", "x")]), 3]
)
def test_what_is_no_dataset_is_refused(dataset: Any) -> None:
    engine = Scripted(lambda r: "x")
    with pytest.raises(errors.UsageError, match="evaluate: "):
        ta.evaluate(nn.LLM("Solve it.").to(engine), dataset, nn.ExactMatchLoss())
    assert engine.calls == []


@dataclass
class Row:
    extra: Any
    question: str = "a?"
    answer: str = "x"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Row(None), "extra is a dict of argument → value, not None"),
        (Row({1: "x"}), "extra is a dict"),
        (Row({"question": "b?"}), 'a second "question"'),
        (Example("a?", "x", self="s"), "multiple values for argument 'self'"),
        (Example("a?", "x", function="f"), "unexpected keyword argument 'function'"),
    ],
)
def test_a_row_that_a_module_cannot_be_called_with_is_refused(row: Any, said: str) -> None:
    engine = Scripted(lambda r: "x")
    with pytest.raises(errors.UsageError, match=said):
        ta.evaluate(Asked().to(engine), [Example("b?", "x"), row], nn.ExactMatchLoss())
    assert engine.calls == []


def test_an_argument_may_have_any_name_that_the_module_takes() -> None:
    class Any_(nn.Module):
        def forward(this, question: str, **more: str) -> ta.TextVariable:
            return ta.cat([question, *more.values()], sep="")

    rows = [Example("a", "abc", self="b", function="c")]
    assert ta.evaluate(Any_(), rows, nn.ExactMatchLoss()).loss == 0
    model = nn.LLM("Solve it.").to(Scripted(lambda r: "x"))
    assert ta.evaluate(model, [Example("a", "x", self="b")], nn.ExactMatchLoss()).loss == 0


def test_a_table_whose_items_are_columns_is_refused() -> None:
    with pytest.raises(errors.UsageError, match=r"evaluate: .*Table raises KeyError"):
        ta.evaluate(nn.LLM("x"), Table(), nn.ExactMatchLoss())  # type: ignore[arg-type]


@pytest.mark.parametrize("returned", [1.0, None, "wrong", True])
def test_a_loss_function_must_return_a_loss(returned: Any) -> None:
    module = answering({"a?": "x"})
    with pytest.raises(errors.UsageError, match=r"must return a loss, not .*nn\.FunctionLoss"):
        ta.evaluate(module, [Example("a?", "x")], lambda output, target: returned)


@pytest.mark.parametrize(
    ("module", "loss", "said"),
    [
        (nn.LLM, nn.ExactMatchLoss(), r"module is a class: pass an instance, LLM\(\)"),
        (None, nn.ExactMatchLoss(), "module cannot be called"),
        (nn.LLM("x"), nn.ExactMatchLoss, "loss function is a class"),
        (nn.LLM("x"), None, "loss function cannot be called"),
        (nn.LLM("x"), lambda output: output, r"called as \(output, target\)"),
    ],
)
def test_what_cannot_be_called_is_refused_at_once(module: Any, loss: Any, said: str) -> None:
    with pytest.raises(errors.UsageError, match=said):
        ta.evaluate(module, [Example("a?", "x")], loss)


def test_what_an_executor_spends_is_counted_and_a_limit_refuses_it() -> None:
    module = nn.LLM("x", engine=Scripted(lambda request: "x"))
    dataset, loss = [Example(f"{i}", "x") for i in range(3)], nn.ExactMatchLoss()
    with ThreadPoolExecutor(2) as executor, ta.Budget() as outer:
        assert ta.evaluate(module, dataset, loss, executor=executor).usage.calls == 3
        assert outer.spent.calls == 3
        with ta.Budget(calls=9), pytest.raises(errors.UsageError, match="leave out executor="):
            ta.evaluate(module, dataset, loss, executor=executor)


@pytest.mark.parametrize("executor", [5, "threads", object()])
def test_what_is_no_executor_is_refused(executor: Any) -> None:
    with pytest.raises(errors.UsageError, match="executor must be one of concurrent"):
        ta.evaluate(nn.LLM("x"), [Example("a?", "x")], nn.ExactMatchLoss(), executor=executor)


def test_a_forward_that_does_not_take_an_example_s_fields_is_named_before_any_call() -> None:
    class Agent(nn.Module):
        def __init__(self) -> None:
            self.solve = nn.LLM("Solve it.")

        def forward(self, question: str, speaker: str) -> Any:
            return self.solve(question=question, speaker=speaker)

    engine = Scripted(lambda r: "x")
    agent = Agent().to(engine)
    good, bad = Example("a?", "x", speaker="Ann"), Example("a?", "x", party="none")
    for dataset in ([good, bad], [good, Example("a?", "x")]):
        with pytest.raises(errors.UsageError, match=r"Agent is called as \(question=….*takes \("):
            ta.evaluate(agent, dataset, nn.ExactMatchLoss())
    assert engine.calls == []
    assert ta.evaluate(agent, [good], nn.ExactMatchLoss()).loss == 0


def test_an_executor_that_fails_is_one_clear_error() -> None:
    module, loss = nn.LLM("x").to(Scripted(lambda r: "x")), nn.ExactMatchLoss()
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(errors.UsageError, match="executor failed with RuntimeError"):
        ta.evaluate(module, [Example("a?", "x")], loss, executor=executor)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        with pytest.raises(errors.UsageError, match="by pickle, which takes no lambda"):
            ta.evaluate(module, [Example("a?", "x")], lambda o, t: loss(o, t), executor=processes)


class Picky(Exception):
    def __init__(self, what: str, *, needed: int) -> None:
        super().__init__(what)


class Unruly(nn.Module):
    def forward(self, question: str) -> ta.TextVariable:
        match question:
            case "picky":
                raise Picky("mine", needed=1)
            case "exit":
                sys.exit(3)
            case "locked":
                raise ValueError("held", threading.Lock())
            case "budget":
                raise ta.BudgetExceeded("enough")
        return ta.cat([question])


def test_what_one_sample_does_in_another_process_is_that_sample_s() -> None:
    rows = [Example(q, "fine") for q in ("picky", "exit", "fine", "locked", "fine")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:
        done = ta.evaluate(Unruly(), rows, nn.ExactMatchLoss(), executor=processes)
        with pytest.raises(ta.BudgetExceeded):
            rows = [*rows, Example("budget", "x")]
            ta.evaluate(Unruly(), rows, nn.ExactMatchLoss(), executor=processes)
    assert [row.output for row in done.rows] == [None, None, "fine", None, "fine"]
    said = [str(row.error) for row in done.rows if row.error]
    assert said[:2] == ["Picky: mine", "SystemExit: 3"] and said[2].startswith("ValueError: (")


# What concerns the run and not the sample


class Asked(nn.Module):
    def __init__(self) -> None:
        self.solve = nn.LLM("Solve it.")

    def forward(self, question: str) -> ta.TextVariable:
        output: ta.TextVariable = self.solve(question=question)
        return output


def _full_after(monkeypatch: pytest.MonkeyPatch, pages: int) -> None:
    """SQLite's own error for a full disk, from so many pages on."""
    opened = Store._open

    def small(store: Store) -> Any:
        connection = opened(store)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(Store, "_open", small)


def _long(request: Request) -> str:
    return request.messages[-1]["content"] * 300


def test_a_call_cache_on_a_full_disk_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Example(f"question {i}", "x") for i in range(300)]
    engine, path = Scripted(_long), tmp_path / "calls.sqlite"
    agent = Asked().to(engines.Cached(engine, path))
    with monkeypatch.context() as patch:
        _full_after(patch, pages=20)
        with pytest.raises(errors.SetupError, match=r"calls\.sqlite .*full.*make room") as caught:
            ta.evaluate(agent, rows, nn.ExactMatchLoss())
    assert isinstance(caught.value, errors.UsageError)
    kept = len(engine.calls)
    assert kept < 20 + 64
    agent = Asked().to(engines.Cached(engine, path))
    assert ta.evaluate(agent, rows, nn.ExactMatchLoss()).failed == 0
    assert len(engine.calls) <= len(rows) + 64


@pytest.mark.parametrize("step", ["batch", "gate"])
def test_it_ends_fit_at_once_too_and_the_run_goes_on_when_it_is_mended(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Example(f"question {i}", "x") for i in range(150)]

    def model(request: Request) -> str:
        if request.purpose == "forward":
            return _long(request)
        schema: Any = request.schema
        return json.dumps({name: "Be brief." for name in schema["properties"]})

    def train(engine: Scripted) -> ta.History:
        agent = Asked().to(engine)
        optimizer = optim.SGD(agent.parameters(), engine=engine)
        options = {"steps": 1, "batch_size": 150 if step == "batch" else 2, "progress": False}
        loss = nn.ExactMatchLoss()
        return ta.fit(agent, rows, loss, optimizer, run_dir=tmp_path, **options)  # type: ignore[arg-type]

    engine = Scripted(model)
    with monkeypatch.context() as patch:
        _full_after(patch, pages=40)
        with pytest.raises(errors.SetupError, match="cannot be used"):
            train(engine)
    assert len(engine.calls) < 40 + 64
    assert train(Scripted(model)).metrics[0]["failed"] == []


@pytest.mark.parametrize("fitting", [False, True])
def test_a_budget_in_dollars_without_a_price_ends_it_at_once(fitting: bool) -> None:
    engine = Scripted(lambda request: "x")  # whose replies have no price
    agent = Asked().to(engines.Limited(engine, 1))
    rows = [Example(f"question {i}", "x") for i in range(100)]
    with pytest.raises(errors.SetupError, match="price of a call is not known"):
        if fitting:
            optimizer = optim.SGD(agent.parameters(), engine=engine)
            budget, loss = ta.Budget(usd=1), nn.ExactMatchLoss()
            ta.fit(agent, rows, loss, optimizer, steps=1, batch_size=100, budget=budget)
        else:
            with ta.Budget(usd=1):
                ta.evaluate(agent, rows, nn.ExactMatchLoss())
    assert len(engine.calls) < 100


def test_what_one_sample_does_wrong_is_that_sample_s() -> None:
    class Router(nn.Module):
        def forward(self, question: str) -> ta.TextVariable:
            return ta.select(["a", "b"], int(question))

    rows = [Example("0", "a"), Example("7", "b"), Example("1", "b")]
    done = ta.evaluate(Router(), rows, nn.ExactMatchLoss())
    assert done.failed == 1 and isinstance(done.rows[1].error, errors.UsageError)
