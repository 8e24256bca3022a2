"""`fit`: the loop, what it leaves behind, and how a run goes on after it was cut short."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import textautograd as ta
from textautograd import errors, nn, optim
from textautograd.cancelling import Cancelled, cancel_scope
from textautograd.data import Example
from textautograd.engines import Request, Scripted
from textautograd.engines.cache import key_of
from textautograd.evaluation import Row
from textautograd.files import write_whole
from textautograd.fit_gate import FitGate, compared, has_lost, wins

# A world in which every improvement is an exclamation mark: a question is answered right by a
# system whose final instruction has as many of them as the question is hard.


class Agent(nn.Module):
    def __init__(self) -> None:
        self.hint = nn.LLM("Give a hint.")
        self.solve = nn.LLM("Solve it")

    def forward(self, question: str) -> ta.TextVariable:
        output: ta.TextVariable = self.solve(question=question, hint=self.hint(question=question))
        return output


def hard(question: str) -> int:
    return int(question.split()[-1])


def world(request: Request) -> str:
    system, user = request.messages[0]["content"], request.messages[1]["content"]
    if request.purpose == "forward":
        if system.startswith("Give"):
            return f"hint by {system}"
        question = user.split("\n")[1]
        return "right" if system.count("!") >= hard(question) else f"wrong by {system}"
    if request.purpose == "backward":
        assert request.schema is not None
        return json.dumps({name: f"a better {name}" for name in request.schema["properties"]})
    assert request.purpose == "optimize"
    old = user.split("\n")[1]
    if old.startswith("Give"):
        return json.dumps({"prompt": f"Give hint number {request.sample} after {old}"})
    return json.dumps({"prompt": f"{old} better{'!' if request.sample % 2 == 0 else '?'}"})


TRAIN = [Example(f"question {i} of hardness {1 + i % 3}", "right") for i in range(6)]
VAL = [Example(f"held-out {i} of hardness {i % 5}", "right") for i in range(4, -1, -1)]


def run(
    agent: Agent, engine: Any, *, candidates: int = 2, steps: int = 5, **options: Any
) -> ta.History:
    agent.to(engine)
    optimizer = optim.SGD(agent.parameters(), engine=engine, candidates=candidates, seed=1)
    return fitted(agent, optimizer, steps=steps, **options)


def fitted(agent: Agent, optimizer: optim.SGD, **options: Any) -> ta.History:
    options = {"val": VAL, "batch_size": 4, "progress": False, **options}
    return ta.fit(agent, TRAIN, nn.ExactMatchLoss(), optimizer, **options)


def decisions(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics but for how far a race went, which is what was spent."""
    return [{k: v for k, v in m.items() if k != "gate_samples_saved"} for m in metrics]


def states(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, str]]]:
    return [(row["step"], row["state"]) for row in rows]


# The loop


def test_it_learns_and_says_how() -> None:
    agent, engine = Agent(), Scripted(world)
    history = run(agent, engine)
    assert agent.solve.instruction.data.count("!") >= 3
    assert history.state == agent.state_dict()
    assert history.accepted >= 3 and history.stopped is None
    assert [m["step"] for m in history.metrics] == list(range(5))
    assert history.metrics[0]["before"] == 0.8
    assert min(m["after"] for m in history.metrics if m["after"] is not None) <= 0.2
    for metrics in history.metrics:
        if metrics["accepted"]:
            assert metrics["after"] < metrics["before"] and metrics["changes"]
        else:
            assert metrics["after"] == metrics["before"] and not metrics["changes"]
    assert history.usage.calls == len(engine.calls)
    assert "loss 0.8 → " in repr(history)


def test_method_8_the_gate_reads_held_out_examples_only() -> None:
    seen: list[tuple[bool, str]] = []

    class Watched(Agent):
        def forward(self, question: str) -> ta.TextVariable:
            seen.append((ta.is_grad_enabled(), question.split()[0]))
            return super().forward(question)

    run(Watched(), Scripted(world), steps=2)
    assert {word for grad, word in seen if grad} == {"question"}
    assert {word for grad, word in seen if not grad} == {"held-out"}


def test_without_val_the_gate_is_the_training_set() -> None:
    history = run(Agent(), Scripted(world), steps=1, val=None)
    assert history.metrics[0]["before"] == 1.0


def test_a_batch_where_all_are_right_makes_no_further_call() -> None:
    agent, engine = Agent(), Scripted(world)
    agent.solve.instruction.data = "Solve it !!!!!"
    history = run(agent, engine, steps=3)
    assert {call.purpose for call in engine.calls} == {"forward"}
    assert len(engine.calls) == 3 * 4 * 2 - 2 * 2 * 1  # 4 + 2 + 4 samples, two calls each
    assert [m["wrong"] for m in history.metrics] == [0, 0, 0]
    assert [m["before"] for m in history.metrics] == [None] * 3
    assert history.accepted == 0 and agent.solve.instruction.data == "Solve it !!!!!"


def test_gradients_do_not_pile_up_T4() -> None:
    history = run(Agent(), Scripted(world), steps=4, batch_size=2)
    assert all(len(texts) <= 2 for m in history.metrics for texts in m["gradients"].values())


@pytest.mark.parametrize("rule", [ta.rules.textgrad, ta.rules.none])
def test_method_7_S13_an_arm_stays_what_it_is_for_the_whole_run(rule: Any) -> None:
    engine = Scripted(world)
    history = run(Agent(), engine, rule=rule)
    assert history.accepted >= 2
    asked = [call for call in engine.calls if call.purpose == "backward"]
    assert (asked == []) == (rule is ta.rules.none)
    assert all("The variable is hint." in call.messages[1]["content"] for call in asked)


def test_a_failing_sample_is_recorded_and_the_others_train() -> None:
    def answer(request: Request) -> str:
        if "question 0" in str(request.messages) and request.purpose == "forward":
            raise errors.ServerError("500")
        return world(request)

    history = run(Agent(), Scripted(answer), batch_size=6, steps=1)
    assert (history.metrics[0]["samples"], history.metrics[0]["failed"]) == (
        5,
        ["ServerError: 500"],
    )


def part_of(request: Request) -> str:
    """The part of a step that a call is made in."""
    is_gate = request.purpose == "forward" and "held-out" in request.messages[1]["content"]
    return "gate" if is_gate else request.purpose


@pytest.mark.parametrize("part", ["forward", "backward", "optimize", "gate"])
@pytest.mark.parametrize(
    "error",
    [
        errors.AuthenticationError("401"),
        errors.NoCreditError("402"),
        errors.NotFoundError("404"),
        errors.SetupError("full"),
    ],
)
def test_what_cannot_get_better_ends_the_run_and_the_best_state_is_kept(
    part: str, error: Exception, tmp_path: Path
) -> None:
    whole = Scripted(world)
    expected = run(Agent(), whole)
    parts = [part_of(call) for call in whole.calls]
    numbers, one = itertools.count(), parts.count(part) * 3 // 4  # the others of its step succeed

    def answer(request: Request) -> str:
        if part_of(request) == part and next(numbers) == one:
            raise error
        return world(request)

    agent = Agent()
    with pytest.raises(type(error), match=str(error)):
        run(agent, Scripted(answer), run_dir=tmp_path)
    best = json.loads((tmp_path / "best.json").read_text())
    assert agent.state_dict() == best != Agent().state_dict()
    resumed = run(agent, Scripted(world), run_dir=tmp_path)
    assert decisions(resumed.metrics) == decisions(expected.metrics)


@given(
    st.lists(st.sampled_from([None, None, "forward", "loss", "backward"]), min_size=4, max_size=4),
    st.sampled_from([None, 0, 0.25, 0.5, 1]),
)
def test_a_sample_that_fails_takes_no_other_along_unless_too_many_do(
    fails: list[str | None], most: float | None
) -> None:
    def of(request: Request) -> str:
        return next(f"question {i}" for i in range(4) if f"question {i}" in str(request.messages))

    def answer(request: Request) -> str:
        if request.purpose == "optimize":
            return '{"prompt": "better"}'
        if request.purpose in fails and fails[int(of(request)[-1])] == request.purpose:
            raise errors.ServerError("500")
        if request.purpose == "backward":
            return json.dumps({"hint": f"better for {of(request)}"})
        return (
            f"about {of(request)}" if request.messages[0]["content"][:4] == "Give" else of(request)
        )

    def score(output: str, target: str) -> tuple[float, str]:
        if fails[int(output[-1])] == "loss":
            raise ZeroDivisionError("mine")
        return 1.0, "wrong"

    agent, engine = Agent(), Scripted(answer)
    optimizer = optim.SGD(agent.to(engine).parameters(), engine=engine)
    options: dict[str, Any] = {} if most is None else {"max_failed": most}

    def train() -> ta.History:
        examples = [Example(f"question {i}", "right") for i in range(4)]
        loss_fn = nn.FunctionLoss(score)
        return ta.fit(agent, examples, loss_fn, optimizer, steps=1, batch_size=4, **options)

    lost = [i for i in range(4) if fails[i]]
    early = [i for i in lost if fails[i] != "backward"]
    share = 0.5 if most is None else most
    stops_early = len(early) > share * 4
    if len(early) == 4:
        with pytest.raises((errors.ServerError, ZeroDivisionError)):
            train()
        return
    (metrics,) = train().metrics
    asked = [call.purpose for call in engine.calls]
    assert metrics["samples"] == 4 - len(early)
    assert len(metrics["failed"]) == len(early if stops_early else lost)
    if len(lost) > share * 4:
        assert "optimize" not in asked and ("backward" in asked) != stops_early
        count = len(early if stops_early else lost)
        assert metrics["why"].startswith(
            f"{count} of 4 samples failed, and max_failed is {share:g}:"
        )
        assert not metrics["accepted"] and optimizer.steps == 1
    else:
        assert "optimize" in asked and metrics["why"].startswith("not better than loss 1")
        found = sorted(metrics["gradients"].get("hint.instruction", []))
        assert found == [f"better for question {i}" for i in range(4) if i not in lost]
        assert len(metrics["gradients"]["solve.instruction"]) == 4 - len(early)


def test_a_share_is_compared_as_it_was_written() -> None:
    """.29 * 100 is less than 29."""

    def play(request: Request) -> str:
        if request.purpose != "forward":
            return '{"prompt": "better"}'
        if int(request.messages[1]["content"].split("\n")[1]) < 29:
            raise errors.ServerError("down")
        return "wrong"

    agent = nn.LLM("i").to(Scripted(play))
    data = [Example(str(i), "right") for i in range(100)]
    optimizer = optim.SGD(agent.parameters(), engine=Scripted(play))
    options: Any = {"steps": 1, "batch_size": 100, "progress": False}
    history = ta.fit(agent, data, nn.ExactMatchLoss(), optimizer, max_failed=0.29, **options)
    assert len(history.states) == 1
    history = ta.fit(agent, data, nn.ExactMatchLoss(), optimizer, max_failed=0.28, **options)
    assert "29 of 100 samples failed" in history.metrics[0]["why"]


def test_a_batch_of_which_backward_leaves_nothing_is_a_refused_step() -> None:
    def answer(request: Request) -> str:
        if request.purpose == "backward":
            raise errors.ServerError("500")
        return world(request)

    history = run(Agent(), Scripted(answer), steps=2, batch_size=4)
    for metrics in history.metrics:
        bad = metrics["wrong"]
        said = f"{bad} of {bad} samples failed, and max_failed is 0.5: ServerError: 500"
        assert metrics["samples"] == bad and metrics["why"].startswith(said)
    with ta.detect_anomaly(), pytest.raises(errors.ServerError):
        run(Agent(), Scripted(answer), steps=1, batch_size=4)


def test_a_refused_step_is_a_step_and_the_run_goes_on(tmp_path: Path) -> None:
    first = run(Agent(), Scripted(world), steps=1, batch_size=6, run_dir=tmp_path)
    bad = [f"question {i} " for i in range(4)]

    def down(request: Request) -> str:
        if request.purpose == "forward" and any(q in str(request.messages) for q in bad):
            raise errors.ServerError("500")
        return world(request)

    second = run(Agent(), Scripted(down), steps=2, batch_size=6, run_dir=tmp_path)
    assert (
        second.metrics[1]["why"] == "4 of 6 samples failed, and max_failed is 0.5: ServerError: 500"
    )
    third = run(Agent(), Scripted(world), steps=3, batch_size=6, run_dir=tmp_path)
    assert [m["accepted"] for m in third.metrics[:2]] == [first.metrics[0]["accepted"], False]
    assert third.metrics[2]["why"] is None or "failed" not in third.metrics[2]["why"]


def test_where_a_whole_batch_fails_the_first_cause_is_raised() -> None:
    def answer(request: Request) -> str:
        raise errors.AuthenticationError("wrong key")

    agent = Agent()
    with pytest.raises(errors.AuthenticationError, match="wrong key"):
        run(agent, Scripted(answer))
    assert agent.state_dict() == Agent().state_dict()


@pytest.mark.parametrize("batch_size", [4, 6])
def test_without_its_checkpoint_a_runs_best_state_is_not_written_over(
    tmp_path: Path, batch_size: int
) -> None:
    run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)
    best = (tmp_path / "best.json").read_bytes()
    (tmp_path / "checkpoint.json").unlink()
    with pytest.raises(errors.UsageError, match=r"its checkpoint\.json is missing"):
        run(Agent(), Scripted(world), steps=0, run_dir=tmp_path, batch_size=batch_size)
    assert (tmp_path / "best.json").read_bytes() == best


def test_what_is_said_of_a_damaged_run_can_be_done(tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)
    (tmp_path / "checkpoint.json").write_text("{")
    with pytest.raises(errors.UsageError, match="delete the run directory's JSON files"):
        run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    (kept := tmp_path / "calls.sqlite").rename(tmp_path / "aside")
    assert run(
        Agent(), Scripted(world), steps=2, run_dir=tmp_path, budget=ta.Budget(calls=1)
    ).stopped
    (tmp_path / "aside").rename(kept)  # cut short in its first step, it goes on
    engine = Scripted(world)
    assert len(run(Agent(), engine, steps=2, run_dir=tmp_path).metrics) == 2
    assert engine.calls == []


def test_no_steps_leave_everything_as_it_is() -> None:
    engine = Scripted(world)
    history = run(Agent(), engine, steps=0)
    assert engine.calls == [] and history.metrics == [] and repr(history)


def test_the_same_seed_is_the_same_run_and_another_is_not() -> None:
    runs = [run(Agent(), Scripted(world), seed=seed) for seed in (0, 0, 7)]
    assert decisions(runs[0].metrics) == decisions(runs[1].metrics)
    assert runs[0].state == runs[1].state
    assert decisions(runs[0].metrics) != decisions(runs[2].metrics)


def test_progress_is_silent_where_nobody_watches(capfd: pytest.CaptureFixture[str]) -> None:
    run(Agent(), Scripted(world), progress=True, steps=2)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("calls", [0, 1, 9, 25, 40, 60])
def test_a_budget_ends_the_run_and_keeps_the_best_state(calls: int, tmp_path: Path) -> None:
    agent, budget = Agent(), ta.Budget(calls=calls)
    history = run(agent, Scripted(world), budget=budget, run_dir=tmp_path)
    assert history.stopped is not None and "budget" in history.stopped
    assert budget.spent.calls <= calls
    assert agent.state_dict() == history.state
    undisturbed = run(Agent(), Scripted(world))
    done = len(history.metrics)
    assert decisions(history.metrics) == decisions(undisturbed.metrics)[:done]

    again = run(agent, Scripted(world), run_dir=tmp_path)  # the same agent, with money again
    assert again.stopped is None and again.state == undisturbed.state
    assert decisions(again.metrics) == decisions(undisturbed.metrics)


# The run directory


def test_the_run_directory_holds_what_happened(tmp_path: Path) -> None:
    agent = Agent()
    history = run(agent, Scripted(world), run_dir=tmp_path / "deep" / "run")
    here = tmp_path / "deep" / "run"

    def lines(name: str) -> list[Any]:
        return [json.loads(line) for line in (here / name).read_text().splitlines()]

    assert lines("metrics.jsonl") == history.metrics
    assert lines("states.jsonl") == history.states
    assert json.loads((here / "best.json").read_text()) == agent.state_dict()
    other = Agent()
    other.load_state_dict(json.loads((here / "best.json").read_text()))
    assert not list(here.glob("*.part"))


def test_a_finished_run_costs_nothing_again_and_more_steps_go_on(tmp_path: Path) -> None:
    first = run(Agent(), Scripted(world), steps=3, run_dir=tmp_path)
    engine = Scripted(world)
    again = run(Agent(), engine, steps=3, run_dir=tmp_path)
    assert engine.calls == [] and again.usage.calls == 0
    assert (again.metrics, again.states, again.state) == (
        first.metrics,
        first.states,
        first.state,
    )
    longer = run(Agent(), engine, steps=5, run_dir=tmp_path)
    assert decisions(longer.metrics) == decisions(run(Agent(), Scripted(world)).metrics)


def test_the_trained_module_itself_can_be_trained_on(tmp_path: Path) -> None:
    agent = Agent()
    run(agent, Scripted(world), steps=3, run_dir=tmp_path)
    assert agent.state_dict() != Agent().state_dict()
    history = run(agent, Scripted(world), steps=5, run_dir=tmp_path)
    assert decisions(history.metrics) == decisions(run(Agent(), Scripted(world)).metrics)


OTHER: dict[str, Any] = {
    "batch_size": {"batch_size": 3},
    "seed": {"seed": 5},
    "val": {"val": VAL[:-1]},
    "optimizer": {"candidates": 3},
    "rule": {"rule": ta.rules.none},
}
SAID = {"val": r"the gate's examples \(val\)"}


@pytest.mark.parametrize("other", OTHER, ids=OTHER)
def test_other_settings_in_the_same_directory_are_refused(other: str, tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    engine = Scripted(world)
    with pytest.raises(errors.UsageError, match=f"another run: {SAID.get(other, other)} differ"):
        run(Agent(), engine, steps=1, run_dir=tmp_path, **OTHER[other])
    assert engine.calls == []


@pytest.mark.parametrize("missing", ["backward_engine", "seed"])
def test_a_run_that_does_not_say_what_it_is_is_another(missing: str, tmp_path: Path) -> None:
    """Also where what is missing would be null."""
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    file = tmp_path / "run.json"
    found = json.loads(file.read_text())
    del found[missing]
    file.write_text(json.dumps(found))
    with pytest.raises(errors.UsageError, match=f"holds another run: {missing} differs"):
        run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)


def test_other_parameters_in_the_same_directory_are_refused(tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    agent, engine = Agent(), Scripted(world)
    optimizer = optim.SGD([agent.to(engine).solve.instruction], engine=engine, candidates=2, seed=1)
    with pytest.raises(errors.UsageError, match="another run: parameters differ"):
        fitted(agent, optimizer, steps=1, run_dir=tmp_path)


def test_another_module_or_state_or_loss_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    agent = Agent()
    agent.solve.instruction.data = "Other."
    with pytest.raises(errors.UsageError, match="holds another run: state differ"):
        run(agent, Scripted(world), steps=1, run_dir=tmp_path)
    agent = Agent()
    agent.solve.output_format = "One word."
    said = r'module differs \(module\.solve\.output_format was null and is "One word\."\)'
    with pytest.raises(errors.UsageError, match=said):
        run(agent, Scripted(world), steps=1, run_dir=tmp_path)
    agent, engine = Agent(), Scripted(world)
    optimizer = optim.SGD(agent.parameters(), engine=engine, candidates=2, seed=1)
    with pytest.raises(errors.UsageError, match="holds another run: loss differ"):
        ta.fit(
            agent.to(engine),
            TRAIN,
            nn.JudgeLoss("Be brief.", engine=engine),
            optimizer,
            val=VAL,
            steps=1,
            batch_size=4,
            run_dir=tmp_path,
        )


@pytest.mark.parametrize("name", ["run.json", "checkpoint.json", "calls.sqlite"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00"])
def test_a_damaged_file_is_a_clear_error(name: str, content: bytes, tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    (tmp_path / name).write_bytes(content)
    for leftover in tmp_path.glob("calls.sqlite-*"):
        leftover.unlink()
    if name == "calls.sqlite" and len(content) < 2:  # to SQLite this is an empty file: no replies
        run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)
        return
    with pytest.raises(errors.UsageError) as caught:
        run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_directory_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = Scripted(world)
    with pytest.raises(errors.UsageError, match="cannot use the run directory"):
        run(Agent(), engine, run_dir=tmp_path / "file")
    assert engine.calls == []


# Cut short and resumed


class Failing:
    """The world, until call `n`: then every call fails, or the process ends.

    A process ends only when every reply given so far is on disk, so that what was answered and what
    was not is beyond doubt; calls that come meanwhile wait for the end.
    """

    identity = "scripted"

    def __init__(self, n: int, die: Path | None = None) -> None:
        self.n, self.die = n, die
        self.started: list[str] = []
        self.answered: list[str] = []

    async def complete(self, request: Request) -> ta.engines.Reply:
        self.started.append(key_of(self.identity, request))
        if len(self.started) > self.n:
            if self.die is None:
                raise KeyboardInterrupt if self.n % 2 else ZeroDivisionError("mine")
            if len(self.started) == self.n + 1:
                import sqlite3

                store = sqlite3.connect(self.die / "calls.sqlite")
                count = "SELECT count(*) FROM replies"
                while store.execute(count).fetchone()[0] < len(set(self.answered)):
                    await asyncio.sleep(0.001)
                (self.die / "answered.json").write_text(json.dumps(self.answered))
                os._exit(3)
            await asyncio.Event().wait()
        self.answered.append(self.started[-1])
        return ta.engines.Reply(world(request))


_DYING = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_fit import Agent, Failing, run
run(Agent(), Failing(int(sys.argv[2]), Path(sys.argv[3])), run_dir=sys.argv[3])
"""


def undisturbed() -> ta.History:
    return run(Agent(), Scripted(world))


@pytest.mark.parametrize("n", [0, 3, 12, 21, 30, 44, 58])
def test_a_killed_run_ends_as_if_it_had_not_been(n: int, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", _DYING, os.path.dirname(__file__), str(n), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert killed.returncode == 3, killed.stderr
    answered = json.loads((tmp_path / "answered.json").read_text())
    assert len(answered) == n
    engine = Failing(10_000)
    resumed, expected = run(Agent(), engine, run_dir=tmp_path), undisturbed()
    assert not set(engine.started) & set(answered)
    assert resumed.state == expected.state
    assert decisions(resumed.metrics) == decisions(expected.metrics)
    assert states(resumed.states) == states(expected.states)


@pytest.mark.parametrize("n", [5, 18, 33, 47])
def test_an_exception_in_the_middle_loses_nothing_that_was_answered(n: int, tmp_path: Path) -> None:
    agent, left = Agent(), iter(range(n))

    def answer(request: Request) -> str:
        if next(left, None) is None:
            raise ta.BudgetExceeded("stands for whatever ends a run")
        return world(request)

    first, second = Scripted(answer), Scripted(world)
    stopped = run(agent, first, run_dir=tmp_path)
    assert stopped.stopped == "stands for whatever ends a run"
    answered = {key_of("scripted", call) for call in first.calls[:n]}
    resumed, expected = run(Agent(), second, run_dir=tmp_path), undisturbed()
    assert not answered & {key_of("scripted", call) for call in second.calls}
    assert resumed.state == expected.state
    assert decisions(resumed.metrics) == decisions(expected.metrics)


@pytest.mark.parametrize("end", [ta.BudgetExceeded("used up"), KeyboardInterrupt()])
def test_the_same_objects_go_on_as_new_ones_do(end: BaseException, tmp_path: Path) -> None:
    """Wherever it ended, in the first step's gate too, where there is no checkpoint yet."""
    expected = undisturbed()
    for n in range(1, expected.usage.calls, 4):
        agent, left = Agent(), iter(range(n))

        def answer(request: Request) -> str:
            if next(left, None) is None:  # noqa: B023
                raise end
            return world(request)

        first, second = Scripted(answer), Scripted(world)
        optimizer = optim.SGD(agent.parameters(), engine=first, candidates=2, seed=1)
        path = tmp_path / str(n)
        with contextlib.suppress(KeyboardInterrupt):
            fitted(agent.to(first), optimizer, steps=5, run_dir=path)
        optimizer.engine = second
        resumed = fitted(agent.to(second), optimizer, steps=5, run_dir=path)
        assert decisions(resumed.metrics) == decisions(expected.metrics)
        assert states(resumed.states) == states(expected.states)
        paid = {key_of("scripted", call) for call in first.calls[:n]}
        assert not paid & {key_of("scripted", call) for call in second.calls}


def test_what_user_code_raises_in_the_optimizer_ends_the_run_and_it_resumes(
    tmp_path: Path,
) -> None:
    class Boom(Exception):
        pass

    def answer(request: Request) -> str:
        if request.purpose == "optimize" and "better" in request.messages[1]["content"]:
            raise Boom
        return world(request)

    with pytest.raises(Boom):
        run(Agent(), Scripted(answer), run_dir=tmp_path)
    resumed, expected = run(Agent(), Scripted(world), run_dir=tmp_path), undisturbed()
    assert resumed.state == expected.state
    assert decisions(resumed.metrics) == decisions(expected.metrics)


# The gate of fit

LOSSES = st.none() | st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.7, 1.0]) | st.floats(0, 1e6)
TABLES = st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=8)


def rows(losses: list[float | None]) -> list[Row]:
    failure = errors.ServerError("500")
    return [
        Row(TRAIN[0], error=failure) if loss is None else Row(TRAIN[0], "x", loss)
        for loss in losses
    ]


@given(TABLES, st.randoms(use_true_random=False))
def test_stopping_early_never_changes_the_decision(
    table: list[tuple[float | None, float | None]], random: Any
) -> None:
    old, new = rows([a for a, _ in table]), rows([b for _, b in table])
    full = wins(*compared(old, new))
    order = list(range(len(table)))
    random.shuffle(order)
    done: list[Row | None] = [None] * len(table)
    for index in order:
        if has_lost(old, done):
            assert not full
        done[index] = new[index]
    assert not (full and has_lost(old, done))


@given(TABLES)
def test_a_win_is_better_and_never_worse(table: list[tuple[float | None, float | None]]) -> None:
    old, new = rows([a for a, _ in table]), rows([b for _, b in table])
    assert not wins(*compared(old, old))
    assert not (wins(*compared(old, new)) and wins(*compared(new, old)))
    if all(a is not None and b is not None for a, b in table):
        before, after = (sum(pair[i] for pair in table) for i in (0, 1))  # type: ignore[misc]
        assert wins(*compared(old, new)) == (after < before)


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=5, max_size=5).filter(any),
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=5, max_size=5),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([1, 2, 64]),
)
def test_the_gate_decides_as_the_whole_evaluation_would(
    old: list[float | None], candidates: list[list[float | None]], workers: int
) -> None:
    tables = {"old": old, **{f"new {i}": losses for i, losses in enumerate(candidates)}}
    x = nn.Parameter("old")

    class Reads(nn.Module):
        def forward(self, question: str) -> str:
            return f"{x.data}/{question}"

    def loss_fn(output: str, target: str) -> ta.TextVariable:
        state, index = output.split("/")
        loss = tables[state][int(index)]
        if loss is None:
            raise errors.ServerError("500")
        reply = json.dumps({"feedback": "so", "score": 1 - loss})
        scored: ta.TextVariable = nn.JudgeLoss("x", engine=Scripted(lambda r: reply))(output)
        return scored

    gate = FitGate(Reads(), [Example(str(i), "x") for i in range(5)], loss_fn, workers)
    verdict = gate(
        {x: ta.TextVariable("old")},
        [{x: ta.TextVariable(f"new {i}")} for i in range(len(candidates))],
    )
    outcomes = [compared(rows(old), rows(new)) for new in candidates]
    winning = [i for i, found in enumerate(outcomes) if wins(*found)]
    assert (verdict.best is not None) == bool(winning)
    if winning:
        best = min(outcomes[i][1] - outcomes[i][0] for i in winning)
        assert verdict.best in winning
        assert outcomes[verdict.best][1] - outcomes[verdict.best][0] == best
        assert isinstance(verdict.losses[verdict.best], float)
    assert x.data == "old"


def test_a_candidate_that_has_lost_is_not_evaluated_further() -> None:
    def answer(request: Request) -> str:
        if request.purpose == "forward":
            return "right" if request.messages[0]["content"] == "old" else "wrong"
        raise AssertionError

    engine = Scripted(answer)
    module = nn.LLM("old").to(engine)
    gate = FitGate(
        module, [Example(f"{i}?", "right") for i in range(10)], nn.ExactMatchLoss(), workers=1
    )
    old: dict[ta.TextVariable, ta.TextVariable] = {module.instruction: ta.TextVariable("old")}
    verdict = gate(old, [{module.instruction: ta.TextVariable("new")}])
    assert len(engine.calls) == 10  # a loss of 0 cannot be beaten
    assert (verdict.best, gate.saved) == (None, 10)
    assert verdict.losses == ["could not win after 0 of 10 samples"]


def test_a_sample_that_was_cancelled_before_it_began_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread of `map` finds its scope cancelled after it has taken a sample: it runs nothing."""
    module = nn.LLM("old").to(Scripted(lambda r: "wrong"))
    gate = FitGate(
        module, [Example(f"{i}?", "right") for i in range(3)], nn.ExactMatchLoss(), workers=1
    )
    old: dict[ta.TextVariable, ta.TextVariable] = {module.instruction: ta.TextVariable("old")}
    rows_of_old = gate.current(old)
    monkeypatch.setattr(
        "textautograd.fit_gate.map_", lambda fn, items, max_workers: fn(list(items)[-1])
    )
    ended: SimpleQueue[BaseException] = SimpleQueue()

    def waits() -> None:
        try:
            with cancel_scope() as scope:
                scope.cancel()
                gate._race(old, rows_of_old)
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=waits, daemon=True).start()
    assert isinstance(ended.get(timeout=60), Cancelled)


def test_a_passing_failure_in_the_gate_says_nothing_about_the_rewrite() -> None:
    is_down = True

    def answer(request: Request) -> str:
        if request.purpose == "optimize":
            return json.dumps({"prompt": "new"})
        if is_down and request.messages[0]["content"] == "new":
            raise errors.ServerError("503")
        return "right" if request.messages[0]["content"] == "new" else "wrong"

    module = nn.LLM("old").to(engine := Scripted(answer))
    val = [Example(f"{i}?", "right") for i in range(3)]
    gate = FitGate(module, val, nn.ExactMatchLoss(), workers=1)
    optimizer = optim.SGD(module.parameters(), engine=engine)
    module.instruction.grad = ta.Gradient(["be better"])
    said = str(optimizer.step_with(gate))
    assert "1 samples failed, 0 with the old state; one with ServerError: 503" in said
    is_down = False
    assert optimizer.step_with(gate).accepted


def judged(answer: Any) -> optim.StepResult:
    """A step in which fit's gate evaluates all of three samples, at once."""
    module = nn.LLM("old").to(engine := Scripted(answer))
    val = [Example(f"{i}?", "right") for i in range(3)]
    gate = FitGate(module, val, nn.ExactMatchLoss(), workers=3, in_full=True)
    optimizer = optim.SGD(module.parameters(), engine=engine)
    module.instruction.grad = ta.Gradient(["be better"])
    return optimizer.step_with(gate)


def test_a_passing_failure_among_others_does_not_excuse_a_rewrite() -> None:
    def answer(request: Request) -> str:
        if request.purpose == "optimize":
            return json.dumps({"prompt": "new"})
        if request.messages[0]["content"] == "new":
            raise (
                errors.ServerError("503") if "0?" in str(request) else errors.ContentFilterError("")
            )
        return "wrong"

    candidate = judged(answer).candidates[0]
    assert candidate.error == "3 samples failed, 0 with the old state" and not candidate.unjudged


def test_a_rewrite_that_has_lost_anyway_is_not_excused_by_a_failure() -> None:
    def answer(request: Request) -> str:
        if request.purpose == "optimize":
            return json.dumps({"prompt": "new"})
        if request.messages[0]["content"] == "old":
            return "right"
        if "0?" in str(request):
            raise errors.ServerError("503")
        return "wrong"

    assert not judged(answer).candidates[0].unjudged


def test_what_no_sample_leads_to_is_told_once() -> None:
    class Reads(Agent):
        def forward(self, question: str) -> ta.TextVariable:
            hint = str(self.hint(question=question))
            output: ta.TextVariable = self.solve(question=question, hint=hint)
            return output

    with pytest.warns(UserWarning, match=r"reaches hint\.instruction from no sample") as told:
        run(Reads(), Scripted(world), steps=2)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent, engine = Reads(), Scripted(world)
        agent.hint.requires_grad_(False)
        fitted(agent, optim.SGD(agent.to(engine).parameters(), engine=engine), steps=1)


def test_a_run_reports_what_the_gate_saved() -> None:
    class OneAtATime(Scripted):
        max_concurrency = 1

    history = run(Agent(), OneAtATime(world))
    assert sum(m["gate_samples_saved"] for m in history.metrics) > 0


def test_the_state_in_place_is_evaluated_once() -> None:
    engine = Scripted(lambda r: "wrong")
    module = nn.LLM("old").to(engine)
    gate = FitGate(module, [Example("a?", "right")], nn.ExactMatchLoss(), workers=1)
    old: dict[ta.TextVariable, ta.TextVariable] = {module.instruction: ta.TextVariable("old")}
    for _ in range(3):
        gate(old, [])
    assert len(engine.calls) == 1


@pytest.mark.parametrize("loss", [-0.5, float("nan")])
def test_a_loss_below_0_is_refused_as_stopping_early_would_be_wrong(loss: float) -> None:
    class Odd:
        def __call__(self, output: Any, target: str) -> ta.TextVariable:
            found: ta.TextVariable = nn.ExactMatchLoss()(output, target)
            vars_of: Any = found._read()
            vars_of.loss = loss
            return found

    module = nn.LLM("old").to(Scripted(lambda r: "wrong"))
    gate = FitGate(module, [Example("a?", "right")], Odd(), workers=1)
    with pytest.raises(errors.UsageError, match="a loss must be a number of at least 0"):
        gate.current()


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"steps": 1.5},
        {"steps": True},
        {"batch_size": 0},
        {"batch_size": None},
        {"val": []},
        {"val": ["text"]},
        {"val": 3},
        {"budget": 5},
        {"max_failed": -0.1},
        {"max_failed": 2},
        {"max_failed": True},
        {"max_failed": "half"},
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_is_spent(wrong: Any) -> None:
    engine = Scripted(world)
    with pytest.raises(errors.UsageError):
        run(Agent(), engine, **wrong)
    assert engine.calls == []


def test_other_things_than_a_module_and_an_optimizer_are_refused() -> None:
    agent = Agent()
    optimizer = optim.SGD(agent.parameters())
    for args in (
        (agent, TRAIN, nn.ExactMatchLoss(), None),
        (None, TRAIN, nn.ExactMatchLoss(), optimizer),
        (agent, [], nn.ExactMatchLoss(), optimizer),
        (agent, None, nn.ExactMatchLoss(), optimizer),
        (agent, [Example, "text"], nn.ExactMatchLoss(), optimizer),
    ):
        with pytest.raises(errors.UsageError, match="fit"):
            ta.fit(*args, steps=1, batch_size=1)


def test_another_model_in_the_same_directory_is_another_run(tmp_path: Path) -> None:
    class Named(Scripted):
        def __init__(self, name: str) -> None:
            super().__init__(world)
            self.identity = name

    def run(name: str, rewriter: str, *, steps: int) -> None:
        agent = Agent().to(Named(name))
        optimizer = optim.SGD(agent.parameters(), engine=Named(rewriter))
        ta.fit(
            agent,
            TRAIN,
            nn.ExactMatchLoss(),
            optimizer,
            steps=steps,
            batch_size=1,
            run_dir=tmp_path,
        )

    run("a", "a", steps=0)
    assert json.loads((tmp_path / "best.json").read_text()) == Agent().state_dict()
    run("b", "b", steps=1)  # no step was finished yet, so nothing is lost
    with pytest.raises(ta.Error, match=r"engines, optimizer_engine differ.*was .b. and is .a."):
        run("a", "a", steps=1)
    with pytest.raises(ta.Error, match=": optimizer_engine differ"):
        run("b", "a", steps=1)


# What another function, or a damaged file, would do to a run


def scored(loss_fn: Any, tmp_path: Path, **options: Any) -> Scripted:
    agent, engine = Agent(), Scripted(world)
    optimizer = optim.SGD(agent.to(engine).parameters(), engine=engine, seed=1)
    options = {"steps": 1, "batch_size": 4, "val": VAL, **options}
    ta.fit(agent, TRAIN, loss_fn, optimizer, run_dir=tmp_path, **options)
    return engine


def strict(output: str, target: str) -> tuple[float, str]:
    return (0.0, "") if output == target else (1.0, f"Say {target}.")


def milder(output: str, target: str) -> tuple[float, str]:
    return (0.0, "") if output == target else (0.5, f"Say {target}.")


LOSSES_THAT_DIFFER: list[tuple[Any, Any]] = [
    (nn.FunctionLoss(strict), nn.FunctionLoss(milder)),
    (nn.ExactMatchLoss(), nn.ExactMatchLoss(str.strip)),
    (nn.ExactMatchLoss(str.strip), nn.ExactMatchLoss(str.lower)),
    (nn.ExactMatchLoss(lambda x: x[:9]), nn.ExactMatchLoss(lambda x: x[:8])),
    (
        lambda output, target: nn.ExactMatchLoss()(output, target),
        lambda output, target: nn.ExactMatchLoss()(output, target + "!"),
    ),
]


@pytest.mark.parametrize(("one", "two"), LOSSES_THAT_DIFFER)
def test_another_loss_function_is_another_run(one: Any, two: Any, tmp_path: Path) -> None:
    assert scored(one, tmp_path).calls
    assert scored(one, tmp_path).calls == []
    with pytest.raises(errors.UsageError, match=r"another run: loss differs \("):
        scored(two, tmp_path)


def test_what_an_agent_or_a_loss_holds_belongs_to_the_run(tmp_path: Path) -> None:
    class Styled(Agent):
        def __init__(self, style: Any) -> None:
            super().__init__()
            self.style = style

        def forward(self, question: str) -> Any:
            return super().forward(f"{self.style} {question}")

    class Weighted:
        __slots__ = ("weight",)

        def __init__(self, weight: float) -> None:
            self.weight = weight

        def __call__(self, output: str, target: str) -> tuple[float, str]:
            return self.weight, "x"

    run(Styled("A:"), Scripted(world), run_dir=tmp_path / "a")
    for style in ("B:", ["A:"], None):
        with pytest.raises(
            errors.UsageError, match=r"module differs \(module\.\.style has changed\)"
        ):
            run(Styled(style), Scripted(world), run_dir=tmp_path / "a")
    assert '"A:"' not in (tmp_path / "a" / "run.json").read_text()  # it may be a secret
    again = Scripted(world)
    run(Styled("A:"), again, run_dir=tmp_path / "a")
    assert again.calls == []
    scored(nn.FunctionLoss(Weighted(1.0)), tmp_path / "b")
    with pytest.raises(errors.UsageError, match="another run: loss differ"):
        scored(nn.FunctionLoss(Weighted(2.0)), tmp_path / "b")
    assert scored(nn.FunctionLoss(Weighted(1.0)), tmp_path / "b").calls == []


def test_another_forward_or_prompt_is_another_run(tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)

    def changed(self: Agent, question: str) -> Any:
        return self.solve(question=question)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Agent, "forward", changed)
        with pytest.raises(
            errors.UsageError, match="the code of Agent, or a value in it, has changed"
        ):
            run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    agent, engine = Agent(), Scripted(world)
    optimizer = optim.SGD(
        agent.to(engine).parameters(), engine=engine, candidates=2, seed=1, prompt=lambda *a: []
    )
    with pytest.raises(errors.UsageError, match="another run: optimizer differ"):
        fitted(agent, optimizer, steps=1, run_dir=tmp_path)


_RESUMING = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_fit import nn, scored, strict
limit = int(sys.argv[3])
def brief(output, target):
    return strict(output[:limit], target)
scored(nn.FunctionLoss(brief), Path(sys.argv[2]))
scored(nn.FunctionLoss(lambda o, t: brief(o, t)), Path(sys.argv[2]) / "lambda")
"""


def test_the_same_loss_in_another_process_is_the_same_run(tmp_path: Path) -> None:
    def start(limit: int, seed: str) -> subprocess.CompletedProcess[str]:
        where = [os.path.dirname(__file__), str(tmp_path), str(limit)]
        env = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", _RESUMING, *where], capture_output=True, text=True, env=env
        )

    assert [start(90, seed).stderr for seed in ("1", "2")] == ["", ""]
    assert "another run: loss differ" in start(91, "1").stderr


def test_data_that_hold_sets_and_objects_are_the_same_in_another_process(tmp_path: Path) -> None:
    from textautograd.settings import digest_of

    class Speaker:
        def __init__(self, name: str) -> None:
            self.name = name

    def rows(name: str) -> list[Example]:
        return [Example("q", "a", tags={"x", "y"}, speaker=Speaker(name))]

    assert digest_of(rows("Ann")) == digest_of(rows("Ann")) != digest_of(rows("Bob"))


def deep(n: int) -> Any:
    value: Any = []
    for _ in range(n):
        value = [value]
    return value


DAMAGES: dict[str, Any] = {
    "metrics of numbers": {"metrics": [1]},
    "metrics of nothing": {"metrics": [{}]},
    "metrics twice": lambda found: {"metrics": found["metrics"] * 2},
    "metrics nested": {"metrics": [deep(50)]},
    "accepted as text": lambda found: {"metrics": [{**found["metrics"][0], "accepted": "no"}]},
    "won without a loss": lambda found: {
        "metrics": [{**found["metrics"][0], "accepted": True, "before": None}]
    },
    "a change that is no pair": lambda found: {
        "metrics": [{**found["metrics"][0], "changes": {"solve.instruction": ["x"]}}]
    },
    "states of text": {"states": ["x"]},
    "state of a number": {"state": {"hint.instruction": 1}},
    "state of another": {"state": {"other": "x"}},
    "optimizer of nothing": {"optimizer": {}},
    "negative steps": {"optimizer": {"steps": -1, "rejected": []}},
    "fewer steps": {"optimizer": {"steps": 0, "rejected": []}},
    "steps as text": {"optimizer": {"steps": "1", "rejected": []}},
    "rejected as a dict": {"optimizer": {"steps": 1, "rejected": {}}},
    "rejected of numbers": {"optimizer": {"steps": 1, "rejected": [{"hint.instruction": 1}]}},
    "rejected of a text": {"optimizer": {"steps": 1, "rejected": ["abc"]}},
    "rejected of another": {"optimizer": {"steps": 1, "rejected": [{"other": "abc"}]}},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_changes_nothing(damage: str, tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    file = tmp_path / "checkpoint.json"
    found = json.loads(file.read_text())
    change = DAMAGES[damage]
    file.write_text(json.dumps({**found, **(change(found) if callable(change) else change)}))
    agent, engine = Agent(), Scripted(world)
    optimizer = optim.SGD(agent.to(engine).parameters(), engine=engine, candidates=2, seed=1)
    before = optimizer.state_dict()
    with pytest.raises(errors.UsageError, match=r"checkpoint\.json is damaged \("):
        fitted(agent, optimizer, steps=2, run_dir=tmp_path)
    assert agent.state_dict() == Agent().state_dict()
    assert optimizer.state_dict() == before and engine.calls == []


@pytest.mark.parametrize("name", ["best.json", "metrics.jsonl", "states.jsonl"])
@pytest.mark.parametrize("content", [None, b"", b'{"hint', b"\xff"])
def test_what_lacks_beside_the_checkpoint_is_written_again(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    run(Agent(), Scripted(world), steps=2, run_dir=tmp_path)
    file = tmp_path / name
    before = file.read_bytes()
    file.unlink() if content is None else file.write_bytes(content)
    engine = Scripted(world)
    run(Agent(), engine, steps=2, run_dir=tmp_path)
    assert file.read_bytes() == before and engine.calls == []


def test_data_that_hold_themselves_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)

    class Told(Agent):
        def forward(self, question: str, ctx: Any = None) -> ta.TextVariable:
            return super().forward(question)

    val, engine = [Example("held-out of hardness 1", "right", ctx=loop)], Scripted(world)
    with pytest.raises(errors.UsageError, match=r"fit: an example.s extra holds itself"):
        run(Told(), engine, steps=1, val=val, run_dir=tmp_path)
    assert engine.calls == []
    assert run(Told(), engine, steps=1, val=val).metrics


@pytest.mark.parametrize("name", ["run.json", "checkpoint.json"])
def test_a_file_that_is_nested_too_deeply_is_damaged(name: str, tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(errors.UsageError, match="is damaged"):
        run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)


def test_a_checkpoint_without_its_run_is_not_taken_for_another_s(tmp_path: Path) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(errors.UsageError, match=r"run\.json is damaged \(it is missing"):
        run(Agent(), Scripted(world), steps=1, run_dir=tmp_path)


@pytest.mark.parametrize("name", ["best.json", "metrics.jsonl", "checkpoint.json", "run.json"])
def test_a_directory_in_the_place_of_a_file_is_found_before_paying(
    name: str, tmp_path: Path
) -> None:
    engine = Scripted(world)
    (tmp_path / name).mkdir()
    with pytest.raises(errors.UsageError, match=f"its {name} is no file"):
        run(Agent(), engine, run_dir=tmp_path)
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(errors.UsageError, match=f"its {name} is no file"):
        run(Agent(), engine, run_dir=tmp_path)
    assert engine.calls == []


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b", "~no-such-user/x", 5, b"x", "", ["x"]])
def test_what_is_no_path_is_refused_wherever_one_is_given(path: Any) -> None:
    engine = Scripted(world)
    for give in (
        lambda: run(Agent(), engine, run_dir=path),
        lambda: ta.engines.caching(path).__enter__(),
        lambda: ta.data.GSM8K(path),
        lambda: ta.data.BBH(path, "snarks"),
    ):
        with pytest.raises(errors.UsageError):
            give()
    assert engine.calls == []


def test_a_tilde_is_the_home_for_all_files_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    run(Agent(), Scripted(world), steps=1, run_dir="~/run")
    names = {"run.json", "checkpoint.json", "calls.sqlite"}
    assert names <= {file.name for file in (tmp_path / "home" / "run").iterdir()}
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        [],
        {"steps": 1},
        {"steps": True, "rejected": []},
        {"steps": None, "rejected": []},
        {"steps": -1, "rejected": []},
        "x",
        {"steps": 1, "rejected": [], "refused": 3},
        {"steps": 1, "rejected": [], "unjudged": [3]},
    ],
)
def test_an_optimizer_refuses_what_is_no_state(state: Any) -> None:
    optimizer = optim.SGD([nn.Parameter("x", name="x")])
    with pytest.raises(errors.StateError, match="an optimizer"):
        optimizer.load_state_dict(state)
    assert optimizer.state_dict() == optim.SGD([nn.Parameter("x", name="x")]).state_dict()


def test_a_state_of_another_module_is_refused_in_a_line_one_can_read() -> None:
    agent = Agent()
    for state in ({f"part{i}": "x" for i in range(10_000)}, {"x" * 10**6: "x"}, {1: "x"}):
        with pytest.raises(errors.StateError) as caught:
            agent.load_state_dict(state)  # type: ignore[arg-type]
        assert len(str(caught.value)) < 2000
    assert agent.state_dict() == Agent().state_dict()


# What cannot learn, or cannot be called


def test_what_cannot_learn_is_refused_before_anything_is_spent() -> None:
    def attempt(agent: Agent, params: Any, said: str) -> None:
        engine = Scripted(world)
        optimizer = optim.SGD(params, engine=engine)
        with pytest.raises(errors.UsageError, match=said):
            ta.fit(agent.to(engine), TRAIN, nn.ExactMatchLoss(), optimizer, steps=1, batch_size=2)
        assert engine.calls == []

    agent = Agent()
    attempt(agent, Agent().parameters(), "are not parameters of this module")
    attempt(agent, [*agent.parameters(), nn.Parameter("x", name="x")], "optimizer's x are not")
    with ta.no_grad():
        attempt(agent, agent.parameters(), "no_grad")
    attempt(agent, agent.requires_grad_(False).parameters(), "requires_grad")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rule": "semantic"}, "a rule is a function"),
        ({"rule": lambda node: None}, "a rule is called as .node, gradient, engine., but"),
        ({"loss_fn": nn.ExactMatchLoss}, r"loss function is a class: pass .* ExactMatchLoss\(\)"),
        ({"loss_fn": 3}, "loss function cannot be called"),
        ({"loss_fn": lambda output: output}, "called as .output, target., but"),
        ({"train": [Example("q", "a", speaker="Ann")]}, r"called as \(question=…, speaker=…\)"),
        ({"val": [Example("q", "a", speaker="Ann")]}, r"called as \(question=…, speaker=…\)"),
    ],
)
def test_what_cannot_be_called_is_refused_before_anything_is_spent(wrong: Any, said: str) -> None:
    agent, engine = Agent(), Scripted(world)
    optimizer = optim.SGD(agent.to(engine).parameters(), engine=engine)
    given = {"train": TRAIN, "loss_fn": nn.ExactMatchLoss(), **wrong}
    with pytest.raises(errors.UsageError, match=said):
        ta.fit(agent, optimizer=optimizer, steps=1, batch_size=2, **given)
    assert engine.calls == []


# Why nothing changed


def only_step(answer: Any, loss_fn: Any = None) -> tuple[dict[str, Any], str]:
    agent, engine = nn.LLM("old"), Scripted(answer)
    optimizer = optim.SGD(agent.to(engine).parameters(), engine=engine)
    history = ta.fit(
        agent,
        [Example("a?", "right")],
        loss_fn or nn.ExactMatchLoss(),
        optimizer,
        steps=1,
        batch_size=1,
    )
    assert history.metrics[0]["why"][:40] in repr(history)
    return history.metrics[0], history.metrics[0]["why"]


def test_why_nothing_changed_where_no_answer_was_wrong() -> None:
    metrics, why = only_step(lambda request: "right")
    assert why == "no gradient: no answer was wrong" and not metrics["accepted"]


def test_why_nothing_changed_where_the_feedback_is_empty() -> None:
    _, why = only_step(lambda request: "wrong", nn.FunctionLoss(lambda output, target: (1.0, "")))
    assert why == "no gradient: the feedback is empty, or reaches no parameter"


def test_why_nothing_changed_where_rewrites_are_refused() -> None:
    _, why = only_step(lambda r: "wrong" if r.purpose == "forward" else '{"prompt": "old"}')
    assert why.startswith("rewrite refused: instruction: ")
    assert "it is the same as the current instruction" in why


def test_why_nothing_changed_where_no_rewrite_is_better() -> None:
    _, why = only_step(lambda r: "wrong" if r.purpose == "forward" else '{"prompt": "new"}')
    assert why == "not better than loss 1; candidates: loss 1"


def test_a_step_that_changes_something_has_no_why() -> None:
    history = run(Agent(), Scripted(world), steps=1)
    assert history.metrics[0]["accepted"] and history.metrics[0]["why"] is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_what_was_spent_and_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    history = run(Agent(), Scripted(world), steps=2, progress=True)
    assert "2/2" in terminal.getvalue()
    assert f"calls={history.usage.calls}" in terminal.getvalue()
    ta.evaluate(Agent().to(Scripted(world)), VAL, nn.ExactMatchLoss(), progress=True)
    assert "5/5" in terminal.getvalue()


def test_a_best_json_that_is_somebody_else_s_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text("mine")
    engine = Scripted(world)
    with pytest.raises(errors.UsageError, match=r"holds a best\.json of no run"):
        run(Agent(), engine, run_dir=tmp_path)
    assert (tmp_path / "best.json").read_text() == "mine" and engine.calls == []


def test_a_disk_that_is_full_says_that_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, content: bytes) -> None:
        if file.name == "metrics.jsonl":
            raise OSError(28, "No space left on device")
        write_whole(file, content)

    agent = Agent()
    with monkeypatch.context() as patch:
        patch.setattr("textautograd.run_dir.write_whole", full)
        with pytest.raises(errors.UsageError, match=r"metrics\.jsonl: No space left.* goes on"):
            run(agent, Scripted(world), run_dir=tmp_path)
    engine = Scripted(world)
    resumed, expected = run(agent, engine, run_dir=tmp_path), undisturbed()
    assert decisions(resumed.metrics) == decisions(expected.metrics)
    assert len(engine.calls) < expected.usage.calls


def test_a_start_that_was_killed_between_two_files_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["run.json", "best.json"]
    for n in range(len(names)):

        def killed(file: Path, content: bytes, n: int = n) -> None:
            if file.name == names[n]:
                raise KeyboardInterrupt
            write_whole(file, content)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("textautograd.run_dir.write_whole", killed)
            run(Agent(), Scripted(world), run_dir=tmp_path / str(n))
        assert run(Agent(), Scripted(world), steps=1, run_dir=tmp_path / str(n)).metrics
