import itertools
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fault_server import Faults, answer, faults, refusal
from test_tasks import bbh

import textautograd
from textautograd import commands, loop
from textautograd.cli import in_options, main, parser
from textautograd.engines import Budget, Usage
from textautograd.errors import UsageError
from textautograd.terminal import spelled


def model(body: dict[str, Any]) -> Any:
    """Adds one, but says only the number when it is told to."""
    system = body["messages"][0]["content"]
    if "better instruction" in system:
        return answer('{"prompt": "Reply with the number alone."}')
    if "response_format" in body:
        names = body["response_format"]["json_schema"]["schema"]["properties"]
        return answer(json.dumps({name: "Say the number." for name in names}))
    number = int(re.findall(r"What is (\d+) plus", body["messages"][1]["content"])[0]) + 1
    return answer(str(number) if "number alone" in system else f"It is {number}.")


def train(server: Faults, root: Path, out: Path, *more: str) -> int:
    words = ["train", "--task", "bbh/sums", "--data", str(root), "--out", str(out)]
    words += ["--model", "m", "--api-base", server.url, "--sizes", "6", "6", "8", "--steps", "2"]
    return main([*words, "--batch-size", "3", *more])


def test_a_result_tells_the_steps_that_were_made(tmp_path: Path) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        assert train(server, root, out) == train(server, root, out, "--steps", "0") == 0
    assert json.loads((out / "result.json").read_text())["steps"] == 2


@pytest.mark.parametrize("name", ["checkpoint.json", "result.json", "lock"])
def test_a_runs_own_file_is_no_cache(tmp_path: Path, name: str, capsys: Any) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        assert train(server, root, out, "--cache", str(out / name)) == 2
        assert server.bodies == []
    assert "is a file of the run itself" in capsys.readouterr().err


def test_an_optimizers_address_is_named_by_its_own_option(tmp_path: Path, capsys: Any) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        assert train(server, root, out, "--optimizer-model", "nosuch") == 2
    assert "--optimizer-api-base" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/dev/full", None])
def test_what_was_measured_is_told_where_it_cannot_be_printed(
    tmp_path: Path, place: str | None
) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(model) as server:
        words = ["eval", "--task", "bbh/sums", "--data", str(root), "--sizes", "0", "0", "3"]
        words += ["--model", "m", "--api-base", server.url]
        command = [sys.executable, "-m", "textautograd", *words]
        if place is None:
            shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
            done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
        else:
            with open(place, "w") as full:
                done = subprocess.run(
                    command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
                )
        asked = len(server.bodies)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert ("exact match 0 of 3" in done.stderr) == (asked > 0) == (place is not None)


def test_train_reports_held_out_accuracy_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        assert train(server, root, out) == 0
    printed = capsys.readouterr().out
    assert "held-out before: exact match 0 of 8, leniently 8" in printed
    assert "held-out after:  exact match 8 of 8, leniently 8" in printed
    assert "Reply with the number alone." in printed
    result = json.loads((out / "result.json").read_text())
    assert (result["before"]["exact"], result["after"]["exact"]) == (0, 8)
    assert result["accepted"] == 1
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps[0]["gradients"]["hint_1.instruction"] == ["Say the number."] * 3


def test_the_same_command_resumes_and_pays_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        assert train(server, root, out) == 0
        sent = len(server.bodies)
        assert train(server, root, out) == 0
        assert len(server.bodies) == sent
    assert "0 calls, 0 tokens" in capsys.readouterr().out


def test_eval_measures_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        train(server, root, out)
        capsys.readouterr()
        words = ["eval", "--task", "bbh/sums", "--data", str(root), "--model", "m"]
        words += ["--api-base", server.url, "--sizes", "6", "6", "8"]
        assert main([*words, "--state", str(out / "best.json")]) == 0
    assert "exact match 8 of 8" in capsys.readouterr().out


def test_samples_that_failed_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bbh(tmp_path / "data", 30)

    def sometimes(body: dict[str, Any]) -> Any:
        numbers = re.findall(r"What is (\d+) plus", body["messages"][1]["content"])
        return answer("The", finish_reason="length") if int(numbers[0]) % 2 else model(body)

    with faults(sometimes) as server:
        words = ["eval", "--task", "bbh/sums", "--data", str(root), "--model", "m"]
        assert main([*words, "--api-base", server.url, "--sizes", "6", "6", "8"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\d failed \(the reply was cut off at max_tokens.*\)", printed), printed


def test_a_wrong_key_is_one_line_and_costs_one_call_a_sample_at_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(refusal(401, "Incorrect API key provided", "invalid_api_key")) as server:
        assert train(server, root, tmp_path / "run") == 1
        assert len(server.bodies) <= 8 * 2
    error = capsys.readouterr().err
    assert error.startswith("textautograd: ") and "key" in error
    assert "Traceback" not in error


def test_a_server_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textautograd.engines.retry.Retrying.max_wait", 0.0, raising=False)
    root = bbh(tmp_path / "data", 12)
    words = ["eval", "--task", "bbh/sums", "--data", str(root), "--model", "m"]
    words += ["--api-base", "http://127.0.0.1:9/v1", "--sizes", "1", "1", "1"]
    assert main(words) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "bbh/none_such"], "none_such"),
        (["--task", "chess"], "chess"),
        (["--state", "no.json"], "no.json"),
        (["--sizes", "9", "9", "99"], "99"),
        (["--api-base", "nonsense"], "--api-base"),
        (["--max-tokens", "0"], "--max-tokens"),
    ],
)
def test_unusable_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    root = bbh(tmp_path / "data", 30)
    start = ["eval", "--task", "bbh/sums", "--data", str(root), "--model", "m"]
    start += ["--api-base", "http://127.0.0.1:9/v1", "--sizes", "2", "2", "2"]
    assert main([*start, *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize("words", [[], ["demo"], ["train"], ["eval"]])
def test_help_names_what_a_newcomer_needs(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        parser().parse_args([*words, "--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    assert "textautograd" in said
    if words in (["train"], ["eval"]):
        assert "bbh/object_counting" in said and "local/qwen2.5-coder-1.5b" in said


@pytest.mark.parametrize("words", [["--steps", "-1"], ["--batch-size", "0"], ["--steps", "1"]])
def test_train_refuses_what_cannot_work_before_it_pays(tmp_path: Path, words: list[str]) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    if words == ["--steps", "1"]:
        out.mkdir()
        (out / "checkpoint.json").write_text("{")
    with faults(model) as server:
        assert train(server, root, out, *words) == 2
        assert server.bodies == []


def test_a_resumed_run_still_measures_the_untrained_agent_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        train(server, root, out)
        capsys.readouterr()
        train(server, root, out)
    assert "held-out before: exact match 0 of 8" in capsys.readouterr().out


def nasty(body: dict[str, Any]) -> Any:
    """As `model`, with what a terminal would obey, and what it cannot encode, in every text."""
    system = body["messages"][0]["content"]
    if "better instruction" in system:
        text = "Reply with the number alone.\x1b]0;owned\x07 \x9b31m \u202e \ud800 漢"
        return answer(json.dumps({"prompt": text}))
    return model(body)


def test_texts_of_models_are_harmless_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(nasty) as server:
        assert train(server, root, tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert r"number alone.\x1b]0;owned\x07 \x9b31m \u202e \ud800 漢" in printed
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\ud800"} & set(printed)
    assert json.loads((tmp_path / "run" / "best.json").read_text())["solve.instruction"]


_MAIN = "import sys; from textautograd.cli import main; raise SystemExit(main(sys.argv[1:]))"


def command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_an_error_is_spelled_whole_but_for_places_in_the_code() -> None:
    error = UsageError("  in the first line: \x1b[2J")
    error.add_note("  in solve, called in agent.py, line 3")
    error.add_note("after 2 attempts")
    assert spelled(error) == ["  in the first line: \\x1b[2J", "after 2 attempts"]


def test_a_terminal_that_knows_ascii_alone_survives_any_text(tmp_path: Path) -> None:
    root = bbh(tmp_path / "data", 30)
    ascii_only = {"PYTHONIOENCODING": "ascii", "LANG": "C"}
    with faults(nasty) as server:
        words = ["train", "--task", "bbh/sums", "--data", str(root), "--out", str(tmp_path / "run")]
        words += ["--model", "m", "--api-base", server.url, "--sizes", "6", "6", "8"]
        done = command(*words, "--steps", "2", "--batch-size", "3", **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u6f22" in done.stdout and "8 of 8" in done.stdout
    helped = command("train", "--help", **ascii_only)
    assert helped.returncode == 0


def test_an_error_that_quotes_a_server_is_harmless(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(refusal(404, "no \x1b[31m model \ud800")) as server:
        assert train(server, root, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert r"no \x1b[31m model \ud800" in error and "\x1b" not in error


@pytest.mark.parametrize("what", ["file", "result", "null", "user", "long"])
def test_an_out_that_cannot_be_is_refused_before_it_pays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    if what == "file":
        out.write_text("in the way")
    elif what == "result":
        (out / "result.json").mkdir(parents=True)
    else:
        out = Path({"null": "a\0b", "user": "~no-such-user/x", "long": "a" * 300}[what])
    with faults(model) as server:
        assert train(server, root, out) == 2
        assert server.bodies == []
    assert capsys.readouterr().err.startswith("textautograd: ")


@pytest.mark.parametrize("content", ["[" * 200_000, "{", "[]", '{"x": "y"}', '{"solve": 3}', None])
def test_a_state_that_is_none_is_refused_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    root, state = bbh(tmp_path / "data", 30), tmp_path / "state.json"
    if content is None:
        state.mkdir()
    else:
        state.write_text(content)
    words = ["eval", "--task", "bbh/sums", "--data", str(root), "--model", "m"]
    words += ["--api-base", "http://127.0.0.1:9/v1", "--sizes", "0", "0", "2"]
    assert main([*words, "--state", str(state)]) == 2
    error = capsys.readouterr().err
    assert "state.json" in error and "Traceback" not in error


def test_a_start_that_failed_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(refusal(404, "no such model")) as server:
        assert train(server, root, out, "--seed", "3") == 1
    with faults(model) as server:
        assert train(server, root, out) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "bbh/snarks"], "--download to fetch it"),
        (["--api-base", "nonsense"], "--api-base must be"),
        (["--sizes", "20", "20", "50"], "--sizes (20, 20, 50) takes 90"),
        (["--sizes", "0", "2", "2"], "--sizes"),
        (["--optimizer-api-base", "http://127.0.0.1:9/v1"], "--optimizer-model"),
        (["--batch-size", "0"], "--batch-size"),
        (["--candidates", "two"], "--candidates"),
        (["--budget-usd", "nan"], "--budget-usd"),
        (["--max-tokens", "-1"], "--max-tokens"),
        (["--steps", "9" * 5000], "--steps"),
    ],
)
def test_errors_speak_the_command_s_language(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(model) as server:
        assert train(server, root, tmp_path / "run", *words) == 2
        assert server.bodies == []
    error = capsys.readouterr().err
    assert said in error
    assert not re.search(r"download=|api_base|max_tokens|run_dir|Traceback", error)


def test_another_run_s_directory_is_named_as_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        train(server, root, out)
        assert train(server, root, out, "--batch-size", "2") == 2
    assert "batch_size was 3 and is 2" in (error := capsys.readouterr().err)
    assert "another --out" in error


def test_a_budget_covers_the_whole_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        assert train(server, root, out, "--budget-calls", "10") == 1
        assert len(server.bodies) == 10
        assert "before training" in capsys.readouterr().err
        assert train(server, root, out, "--budget-calls", "80") == 0
        assert len(server.bodies) <= 90  # what was paid for is not paid for again
    printed = capsys.readouterr().out
    assert "held-out before: exact match 0 of 8" in printed and "held-out after:" in printed


@pytest.mark.parametrize("calls", [9, 40, 200])
def test_a_budget_that_the_first_measurement_fits_into_leaves_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: int
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(model) as server:
        code = train(server, root, out, "--budget-calls", str(calls))
        assert len(server.bodies) <= calls
    assert (code == 0) == (calls > 9)
    if code == 0:
        assert json.loads((out / "result.json").read_text())["after"]["questions"] == 8
    else:
        assert "the same command with a larger budget goes on" in capsys.readouterr().err


def test_training_leaves_of_the_budget_what_the_last_measurement_will_cost() -> None:
    budget, cost = Budget(calls=100, tokens=1000, usd=1.0), Usage(100, 60, cost=0.25, calls=16)
    budget.charge(cost)
    rest = commands._rest(budget, cost)
    assert (rest.calls, rest.tokens, rest.usd) == (68, 680, 0.5)
    nothing = commands._rest(Budget(calls=10), cost)
    assert (nothing.calls, nothing.tokens, nothing.usd) == (0, None, None)


def test_why_nothing_changed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stubborn(body: dict[str, Any]) -> Any:
        if "better instruction" in body["messages"][0]["content"]:
            return answer('{"prompt": "Reply in rhyme."}')
        return model(body)

    root = bbh(tmp_path / "data", 30)
    with faults(stubborn) as server:
        assert train(server, root, tmp_path / "run", "--steps", "1") == 0
    assert "step 1: 3 of 3 wrong; no change: not better than loss 1; " in capsys.readouterr().out


@pytest.mark.parametrize("at", [3, 12, 30])
def test_after_ctrl_c_nothing_is_sent_and_what_was_sent_is_kept(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    main_thread = threading.get_ident()
    stopping, finish, numbers = threading.Event(), loop.finish, itertools.count(1)

    def stops(seconds: float) -> None:
        stopping.set()
        finish(seconds)

    monkeypatch.setattr("textautograd.loop.finish", stops)

    def interrupting(body: dict[str, Any]) -> Any:
        n = next(numbers)
        if n == at:
            signal.pthread_kill(main_thread, signal.SIGINT)
        if n >= at:
            assert stopping.wait(60)
        return model(body)

    with faults(interrupting) as server:
        assert train(server, root, out) == 130
        sent = len(server.bodies)
        replies = sqlite3.connect(out / "calls.sqlite")
        assert replies.execute("SELECT count(*) FROM replies").fetchone() == (sent,)
        replies.close()
        assert train(server, root, out) == 0
        bodies = [json.dumps(body) for body in server.bodies]
        assert len(set(bodies)) == len(bodies) > sent
    assert "waiting up to 10 s for replies" in capsys.readouterr().err


@contextmanager
def running(words: list[str], code: str = _MAIN, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, in which any warning would be seen."""
    command = [sys.executable, "-X", "dev", "-c", code, *words]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(command, text=True, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def words_of(server: Faults, root: Path, out: Path) -> list[str]:
    words = ["train", "--task", "bbh/sums", "--data", str(root), "--out", str(out)]
    words += ["--model", "m", "--api-base", server.url, "--sizes", "6", "6", "8", "--steps", "2"]
    return [*words, "--batch-size", "3"]


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(
    ("number", "code", "at"),
    [(*of, at) for of, at in zip([*SIGNALS, SIGNALS[1]], (3, 12, 30, 46), strict=True)],
)
def test_a_signal_ends_the_command_in_order_and_it_goes_on(
    tmp_path: Path, number: signal.Signals, code: int, at: int
) -> None:
    root, out, calls = bbh(tmp_path / "data", 30), tmp_path / "run", itertools.count(1)
    asked: list[subprocess.Popen[str]] = []

    def signalling(body: dict[str, Any]) -> Any:
        if next(calls) == at:
            asked[0].send_signal(number)
        return model(body)

    with faults(signalling) as server:
        with running(words_of(server, root, out)) as process:
            asked.append(process)
            _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        told = [line for line in said.splitlines() if line and not line.startswith("Executing <")]
        if told[0].startswith("waiting up to 10 s for replies"):
            del told[0]
        assert told == [f"textautograd: interrupted; the same command goes on in {out}"]
        sent = len(server.bodies)
        assert at <= sent
        assert train(server, root, out) == 0
        bodies = [json.dumps(body) for body in server.bodies]
        assert len(set(bodies)) == len(bodies) > sent


@pytest.mark.parametrize(("number", "code"), SIGNALS[:2])
def test_a_second_signal_ends_the_command_at_once(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    root, out, calls = bbh(tmp_path / "data", 30), tmp_path / "run", itertools.count(1)
    with faults(lambda body: model(body) if next(calls) < 12 else {"hang": True}) as server:
        with running(words_of(server, root, out)) as process:
            while len(server.bodies) < 12:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(number)
            assert process.stderr is not None
            while "waiting up to 10 s" not in (line := process.stderr.readline()):
                assert line
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
        assert process.returncode == code
        assert f"textautograd: ended; the same command goes on in {out}" in said


def test_who_hangs_up_leaves_a_run_that_goes_on(tmp_path: Path) -> None:
    root, out, calls = bbh(tmp_path / "data", 30), tmp_path / "run", itertools.count(1)
    ours, its = os.openpty()
    asked: list[subprocess.Popen[str]] = []

    def hanging_up(body: dict[str, Any]) -> Any:
        if next(calls) == 30:
            os.close(ours)
            asked[0].send_signal(signal.SIGHUP)
        return model(body)

    with faults(hanging_up) as server:
        with running(words_of(server, root, out), stdout=its, stderr=its) as process:
            asked.append(process)
            os.close(its)
            assert process.wait(timeout=120) == 129
        assert train(server, root, out) == 0
        bodies = [json.dumps(body) for body in server.bodies]
        assert len(set(bodies)) == len(bodies)


def test_what_ignores_a_signal_goes_on_to(tmp_path: Path) -> None:
    root, out, calls = bbh(tmp_path / "data", 30), tmp_path / "run", itertools.count(1)
    nohup = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {_MAIN}"
    asked: list[subprocess.Popen[str]] = []

    def signalling(body: dict[str, Any]) -> Any:
        if next(calls) == 12:
            asked[0].send_signal(signal.SIGHUP)
        return model(body)

    with (
        faults(signalling) as server,
        running(words_of(server, root, out), nohup) as process,
    ):
        asked.append(process)
        assert process.wait(timeout=120) == 0


def test_handlers_are_the_command_s_and_gone_with_it(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    root, seen = bbh(tmp_path / "data", 30), list[Any]()

    def looking(body: dict[str, Any]) -> Any:
        seen.append([signal.getsignal(number) for number, _ in SIGNALS])
        return model(body)

    with faults(looking) as server:
        assert train(server, root, tmp_path / "run") == 0
        assert seen[0] != before == [signal.getsignal(number) for number, _ in SIGNALS]
        thread = threading.Thread(target=train, args=(server, root, tmp_path / "other"))
        seen.clear()
        thread.start()
        thread.join()
    assert seen[0] == before


def test_the_version_is_the_package_s() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "textautograd", "--version"], capture_output=True, text=True
    )
    assert done.stdout.strip() == f"textautograd {textautograd.__version__}"


def test_who_stops_reading_gets_no_traceback(tmp_path: Path) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(model) as server:
        words = ["train", "--task", "bbh/sums", "--data", str(root), "--out", str(tmp_path / "run")]
        words += ["--model", "m", "--api-base", server.url, "--sizes", "6", "6", "8"]
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Pass download=True to fetch it", "Pass --download to fetch it"),
        ("give cache= another path", "give --cache another path"),
        ("usd=0.5 cannot be kept", "--budget-usd 0.5 cannot be kept"),
        ("Limit calls= or tokens= instead", "Limit --budget-calls or --budget-tokens instead"),
        ("sizes=(1, 2, 3) takes 6", "--sizes (1, 2, 3) takes 6"),
        ("the server's address as api_base=", "the server's address as --api-base"),
        ("at max_tokens = 512: raise max_tokens", "at --max-tokens 512: raise --max-tokens"),
        ("Choose another run_dir", "Choose another --out"),
        ("within 120.0 s: raise timeout=", "within 120.0 s: raise --timeout"),
        ("failed, and max_failed is 0.5", "failed, and --max-failed is 0.5"),
        (
            "another run: the training examples differ.",
            "another run: the training examples differ (--sizes, --seed or the data).",
        ),
        ("set X_API_KEY in the environment or give api_key=", "set X_API_KEY in the environment"),
        ("5 calls, 3 tokens; the file x_cache=1", "5 calls, 3 tokens; the file x_cache=1"),
    ],
)
def test_the_library_s_words_become_options(said: str, meant: str) -> None:
    assert in_options(said) == meant


def test_an_error_does_not_tell_where_in_this_package_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bbh(tmp_path / "data", 30)
    with faults(refusal(400, "no such option")) as server:
        assert train(server, root, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert (
        "(all 8 samples failed; this is the first one's cause)" in error
        and "called at" not in error
    )

    def no_schemas(body: dict[str, Any]) -> Any:
        return refusal(401, "another key") if "response_format" in body else model(body)

    with faults(no_schemas) as server:
        assert train(server, root, tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert f"401: another key ('m' at {server.url.split('/')[2]}): check" in error
    assert not re.search(r"in backward|:\d+, in ", error)
    assert f"what was paid for is kept; the same command goes on in {tmp_path / 'run'}" in error

    with faults(refusal(401, "no key")) as server:
        assert train(server, root, tmp_path / "new", "--max-attempts", "1", "--timeout", "9") == 1
    error = capsys.readouterr().err
    assert "no key" in error and "paid for" not in error


@pytest.mark.parametrize("words", [["--max-failed", "2"], ["--timeout", "long"]])
def test_shares_and_seconds_are_checked(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with faults() as server:
        assert train(server, tmp_path, tmp_path / "run", *words) == 2
    assert f"{words[1]!r} is no " in capsys.readouterr().err
