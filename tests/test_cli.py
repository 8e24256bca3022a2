import json
import re
from pathlib import Path
from typing import Any

import pytest
from fault_server import Faults, answer, faults, refusal
from test_tasks import bbh

from textautograd.cli import main, parser


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
