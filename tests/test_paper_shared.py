"""Several processes of `benchmarks.paper` share a queue and a file of results."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_paper import Model, call, model, root

from benchmarks.paper import __main__ as command
from benchmarks.paper import lines
from benchmarks.paper.settings import Setting, digest
from textautograd.locking import taken

__all__ = ["model", "root"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no lock on Windows")

WORDS = ["--method", "start", "--model", "a", "--optimizer-model", "b"]
APPENDING = """
import sys
from pathlib import Path
from benchmarks.paper import lines
for number in range(100):
    lines.append(Path(sys.argv[1]), {"key": {"number": number}, "text": "x" * 20_000})
"""


def setting(seed: int) -> Setting:
    """What `WORDS` say, by way of `call`."""
    return Setting("bbh/navigate", "start", "a", "b", seed, (4, 4, 4), steps=1, batch_size=4)


@contextmanager
def held(root: Path, seed: int) -> Iterator[None]:
    """Another process makes this run: locks are an open file's, so one of our own will do."""
    directory = root / "out" / "making" / digest(setting(seed).key())
    directory.mkdir(parents=True)
    with (directory / "lock").open("w") as file:
        assert taken(file.fileno())
        yield


def seeds(results: Path) -> list[int]:
    return [line["key"]["seed"] for line in lines.read(results)]


def test_a_queue_leaves_a_run_to_the_process_that_makes_it(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.paper.arguments.queued", lambda name: [setting(0), setting(1)])
    results = root / "results" / "x.jsonl"
    with held(root, 0):
        assert call(root, "--queue", "small") == 0
        assert seeds(results) == [1]
    assert call(root, "--queue", "small") == 0
    assert seeds(results) == [1, 0]


def test_a_single_run_says_that_it_is_being_made(
    root: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(root, 0):
        assert call(root, *WORDS) == 1
    assert "in use by another run" in capsys.readouterr().err
    assert not model.seen


def test_a_run_that_another_process_ended_meanwhile_is_not_made_again(
    root: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = root / "results" / "x.jsonl"

    @contextmanager
    def ended_before(directory: Path) -> Iterator[None]:
        lines.append(results, {"key": setting(0).key()})
        yield

    monkeypatch.setattr(command, "locked", ended_before)
    assert call(root, *WORDS, "--seed", "0") == 0
    assert seeds(results) == [0] and not model.seen


def test_processes_append_to_one_file(tmp_path: Path) -> None:
    results = tmp_path / "x.jsonl"
    words = [sys.executable, "-c", APPENDING, str(results)]
    processes = [subprocess.Popen(words) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    found = sorted(line["key"]["number"] for line in lines.read(results))
    assert found == sorted([*range(100)] * 3)
