"""What `python -m benchmarks.paper` runs, leaves alone and says."""

from __future__ import annotations

import contextvars
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fault_server import answer
from test_paper import Model, call, model, root
from test_paper_peers import metered

from benchmarks.paper import __main__ as command
from benchmarks.paper import lines
from benchmarks.paper.arguments import asked_for, parser
from benchmarks.paper.run import ROOT
from benchmarks.paper.settings import Setting, queued
from textautograd import engines
from textautograd.errors import RateLimitError, ServerError
from textautograd.locking import locked

__all__ = ["model", "root"]


def test_a_run_that_is_there_is_shown_and_not_made_again(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root) == 0
    capsys.readouterr()
    seen = len(model.seen)
    assert call(root) == 0
    said = capsys.readouterr().out
    assert "exact 0 → 0 of 4" in said and "--results OTHER makes it again" in said
    assert len(model.seen) == seen


def test_other_questions_under_the_same_name_are_another_run(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root) == 0
    file = root / "bbh" / "navigate.json"
    file.write_text(file.read_text("utf-8").replace("odd", "even"), "utf-8")
    assert call(root) == 1
    assert "has this run, of other questions than those in" in capsys.readouterr().err
    file.unlink()  # a run that is there needs no questions
    assert call(root) == 0


def test_a_servers_models_are_not_taken_for_others_of_the_same_name(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root) == 0
    assert call(root, "--api-base", "http://127.0.0.1:9/v1") == 1
    assert "has this run, made without --api-base" in capsys.readouterr().err
    file = root / "results" / "x.jsonl"
    (line,) = lines.read(file)
    file.write_text(json.dumps(line | {"served": {}}) + "\n")
    assert call(root) == 1
    assert "has this run, made with --api-base" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="the peer is a shell script")
def test_a_peer_that_leaves_no_result_is_quoted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = root / "peers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho first\necho dspy is 9.9 here\n")
    python.chmod(0o755)
    words = ["--method", "peer-gepa", "--tokens", "9", "--peers", str(root / "peers")]
    with metered(answer()) as (url, _):
        assert call(root, *words, "--api-base", url) == 1
    assert "with_dspy left no result: dspy is 9.9 here (see " in capsys.readouterr().err


def test_a_dry_run_says_what_is_wrong_with_questions(root: Path) -> None:
    (root / "bbh" / "navigate.json").write_text('{"examples": 3}', "utf-8")
    said = str(call(root, "--dry-run"))
    assert "navigate.json, line 1: expected" in said and "download" not in said


def test_a_run_in_use_names_this_commands_option(root: Path, model: Model, capsys: Any) -> None:
    assert call(root) == 0
    key = next(path for path in (root / "out" / "making").iterdir() if path.is_dir())
    (root / "results" / "x.jsonl").unlink()
    held, elsewhere = locked(key), contextvars.Context()
    elsewhere.run(held.__enter__)
    try:
        assert call(root) == 1
    finally:
        elsewhere.run(held.__exit__, None, None, None)
    assert "or choose another --out" in capsys.readouterr().err
    assert call(root, "--results", str(root / "y.jsonl")) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="the peer is a shell script")
@pytest.mark.parametrize("error", [{}, {"type": "x"}, {"type": 1, "message": "x"}])
def test_a_peers_result_that_could_not_be_reported_is_no_line(
    root: Path, capsys: pytest.CaptureFixture[str], error: dict[str, object]
) -> None:
    answers = ["No"] * 4
    result = {"before": answers, "after": answers, "initial": {}, "instructions": {}, "steps": []}
    result |= {"settings": {}, "versions": {}, "error": error}
    (root / "result").write_text(json.dumps(result))
    python = root / "peers" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nfor last; do :; done\ncp {root}/result "$last"\n')
    python.chmod(0o755)
    words = ["--method", "peer-gepa", "--tokens", "9", "--peers", str(root / "peers")]
    with metered(answer()) as (url, _):
        assert call(root, *words, "--api-base", url) == 1
    assert "result.json is damaged, its error" in capsys.readouterr().err
    assert not lines.read(root / "results" / "x.jsonl")


def test_a_queue_can_be_narrowed_and_says_what_is_left_out(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [
        Setting(task, method, "a", "b", seed, (4, 4, 4), steps=1, batch_size=4)
        for task, method in (
            *(("bbh/navigate", "start"), ("bbh/navigate", "format")),
            *(("liar", "start"), ("bbh/navigate", "peer-gepa")),
        )
        for seed in (0, 1)
    ]
    monkeypatch.setattr("benchmarks.paper.arguments.queued", lambda name: some)
    words = ["--queue", "small", "--task", "bbh/navigate", "--seed", "1"]
    assert call(root, *words) == 0
    said = capsys.readouterr().out
    assert f"0 of 3 runs are in {root / 'results' / 'x.jsonl'}; 1 of the others are left" in said
    keys = [line["key"] for line in lines.read(root / "results" / "x.jsonl")]
    assert [(k["task"], k["method"], k["seed"]) for k in keys] == [
        ("bbh/navigate", "start", 1),
        ("bbh/navigate", "format", 1),
    ]
    assert call(root, *words, "--method", "start") == 0
    assert "1 of 1 runs are in" in capsys.readouterr().out
    assert call(root, *words, "--stated") == 2
    assert "--stated: the queue has no such run; it has False" in capsys.readouterr().err
    assert call(root, "--queue", "small", "--task", "navigate") == 2
    assert "no such run; it has bbh/navigate, liar" in capsys.readouterr().err


def test_the_example_of_one_run_of_the_queue_is_one_run() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    (words,) = re.findall(r"    python -m benchmarks.paper (--queue small --task .*)", readme)
    arguments = parser(None).parse_args(words.replace("URL", "u").split())
    assert len(asked_for(arguments)) == 1


def test_a_run_of_other_questions_than_those_there_is_not_paid_for(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root, "--method", "start") == 0
    file = root / "bbh" / "navigate.json"
    file.write_text(file.read_text("utf-8").replace("odd", "even"), "utf-8")
    seen = len(model.seen)
    assert call(root, "--method", "sgd") == 1
    said = capsys.readouterr().err
    assert "it would be of other questions than results that are there" in said
    assert "give another --results" in said and len(model.seen) == seen


@pytest.mark.parametrize("damage", [{"before": 7}, {"cost": {"training": {"x": "many"}}}])
def test_a_damaged_line_is_named_before_anything_is_run(
    root: Path, model: Model, damage: dict[str, Any]
) -> None:
    assert call(root) == 0
    results, seen = root / "results" / "x.jsonl", len(model.seen)
    results.write_text(json.dumps(json.loads(results.read_text()) | damage) + "\n")
    said = str(call(root, "--method", "start"))
    assert "result 1 cannot be reported" in said and len(model.seen) == seen


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_results_go_to_a_file_and_files_into_directories(root: Path, model: Model) -> None:
    os.mkfifo(root / "pipe")
    assert "argument --results" in str(call(root, "--results", str(root / "pipe")))
    for option in ("--out", "--results"):
        place = root / "bbh" / "navigate.json" / "x"
        assert f"argument {option}: " in str(call(root, option, str(place)))
    assert not model.seen


def test_a_server_that_is_down_ends_a_queue(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = Setting("bbh/navigate", "start", "a", "b", 0, (4, 4, 4))
    queue = [replace(some, seed=seed) for seed in range(9)]
    monkeypatch.setattr("benchmarks.paper.arguments.queued", lambda name: queue)
    made: list[int] = []

    def down(setting: Setting, *_: object) -> None:
        made.append(setting.seed)
        error = ServerError(f"503 at \x1b[31m{setting.seed}")
        error.add_note("after 5 attempts")
        raise error

    monkeypatch.setattr(command, "ours", down)
    assert call(root, "--queue", "small") == 1
    said = capsys.readouterr().err
    assert made == [0, 1] and "after 5 attempts" in said and "\x1b" not in said


def test_how_often_and_how_many_at_once_is_told_to_both_models_and_makes_no_other_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, Any, Any]] = []

    def engine(name: str, **options: Any) -> Any:
        given.append((name, options["max_concurrency"], options["max_attempts"]))
        return engines.Scripted(Model())

    monkeypatch.setattr("textautograd.engine", engine)
    words = ["--method", "start", "--model", "a", "--optimizer-model", "b"]
    assert call(root, *words) == 0
    assert given == [("a", 64, 5), ("b", 64, 5)]
    assert call(root, *words, "--max-concurrency", "2", "--max-attempts", "9") == 0
    assert len(given) == 2  # the run is there
    (root / "results" / "x.jsonl").unlink()
    assert call(root, *words, "--max-concurrency", "2", "--max-attempts", "9") == 0
    assert given[2:] == [("a", 2, 9), ("b", 2, 9)]
    for option in ("--max-concurrency", "--max-attempts"):
        assert call(root, *words, option, "0") == 2


@pytest.mark.parametrize("error", [RateLimitError("429"), ServerError("503")])
def test_the_last_words_on_a_rate_limit_say_what_to_do(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    some = Setting("bbh/navigate", "start", "a", "b", 0, (4, 4, 4))
    queue = [replace(some, seed=seed) for seed in (0, 1)]
    monkeypatch.setattr("benchmarks.paper.arguments.queued", lambda name: queue)

    def limited(*_: object) -> None:
        raise error

    monkeypatch.setattr(command, "ours", limited)
    assert call(root, "--queue", "small") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    said = "the same command goes on from here" in last and "--max-concurrency" in last
    assert said == isinstance(error, RateLimitError)


def test_the_full_queue_has_all_methods_on_all_tasks_and_the_first_seed_first() -> None:
    queue = queued("full")
    seeds = [setting.seed for setting in queue]
    assert set(seeds) == {0, 1, 2, 3, 4}
    assert seeds[: seeds.count(0)] == [0] * seeds.count(0)
    tasks = {setting.task for setting in queue}
    assert len(tasks) == 27 + 2
    for task in tasks:
        copro = "copro-12" if task == "liar" else "copro"
        for seed in range(5):
            methods = {s.method for s in queue if (s.task, s.seed) == (task, seed)}
            assert {"format", "sgd", "textgrad", "optoprime", copro} <= methods
            # held-out questions are others with each seed, or the same with all
            assert ("start" in methods) == (task.startswith("bbh/") or seed == 0)
            assert "copro" not in methods or task != "liar"


def test_what_a_newcomer_runs_goes_to_a_file_of_its_own(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    words = ["--task", "bbh/navigate", "--method", "start", "--sizes", "4", "4", "4"]
    command.main([*words, "--data", "."])
    (line,) = lines.read(root / "runs" / "paper" / "results.jsonl")
    assert line["key"]["method"] == "start"


def test_questions_that_are_missing_are_fetched_if_asked(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = root / "bbh" / "navigate.json"
    published = file.read_bytes()
    file.unlink()
    assert call(root, "--method", "start") == 1
    assert "Pass --download to fetch it" in capsys.readouterr().err
    assert "Pass --download to fetch it" in str(call(root, "--dry-run"))
    monkeypatch.setattr("textautograd.data.published.fetch", lambda *_, **__: published)
    assert call(root, "--method", "start", "--download") == 0
    assert file.read_bytes() == published


@pytest.mark.parametrize("sizes", ["8 8 30", "30 11 0", "20 20 0"])
def test_sizes_that_there_are_no_questions_for_are_named(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str], sizes: str
) -> None:
    assert call(root, "--sizes", *sizes.split()) == 1
    said = capsys.readouterr().err
    assert f"sizes {sizes.split()[0]}, " in said and "than bbh/navigate has: 40" in said
    assert not model.seen


def test_a_line_tells_code_and_questions(root: Path, model: Model) -> None:
    assert call(root, "--method", "start") == 0
    (line,) = lines.read(root / "results" / "x.jsonl")
    assert len(line["versions"]["tree"]) == len(line["data"]) == 16
    json.dumps(line)
