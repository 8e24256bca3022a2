"""A run directory belongs to one run at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from contextvars import Context
from pathlib import Path
from typing import Any

import pytest
from fault_server import answer, faults
from test_cli import model, train
from test_fit import Agent, run, world
from test_tasks import bbh

from textautograd import errors
from textautograd.engines import Request, Scripted
from textautograd.locking import locked

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no lock on Windows")

_HOLDER = """
import sys, time
from pathlib import Path
from textautograd.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_refused_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    words = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        engine = Scripted(world)
        with pytest.raises(errors.UsageError, match="in use by another run") as caught:
            run(Agent(), engine, steps=1, run_dir=tmp_path)
        assert str(tmp_path) in str(caught.value) and engine.calls == []
        assert os.listdir(tmp_path) == ["lock"]
        holder.kill()
    assert run(Agent(), Scripted(world), steps=1, run_dir=tmp_path).metrics


def test_what_runs_inside_may_hold_it_again_and_another_may_not(tmp_path: Path) -> None:
    def other() -> None:
        with pytest.raises(errors.UsageError, match="in use"), locked(tmp_path):
            pass

    (tmp_path / "link").symlink_to(tmp_path)
    with locked(tmp_path):
        with locked(tmp_path / "link"):
            Context().run(other)
        Context().run(other)
    with locked(tmp_path):
        pass


def test_fit_holds_it_to_its_end_and_gives_it_back(tmp_path: Path) -> None:
    refused: list[str] = []

    def meanwhile(request: Request) -> str:
        try:
            Context().run(lambda: run(Agent(), Scripted(world), steps=1, run_dir=tmp_path))
        except errors.UsageError as error:
            refused.append(str(error))
        return world(request)

    engine = Scripted(meanwhile)
    run(Agent(), engine, steps=1, run_dir=tmp_path)
    assert len(refused) == len(engine.calls)
    with pytest.raises(ZeroDivisionError):
        run(Agent(), Scripted(broken), steps=2, run_dir=tmp_path / "other")
    for directory in (tmp_path, tmp_path / "other"):
        with locked(directory):
            pass


def broken(request: Request) -> str:
    raise ZeroDivisionError


def test_train_holds_it_from_the_first_call_to_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    free: list[dict[str, Any]] = []

    def meanwhile(body: dict[str, Any]) -> Any:
        try:
            with locked(out):
                free.append(body)
        except errors.UsageError:
            pass
        return model(body)

    with faults(meanwhile) as server:
        assert train(server, root, out) == 0
        assert server.bodies and free == []
    capsys.readouterr()
    with faults(answer("1")) as server:
        with locked(out):
            assert Context().run(train, server, root, out) == 2
        assert server.bodies == []
    said = capsys.readouterr().err
    assert f"{out} is in use by another run" in said and "another --out" in said


def test_where_the_file_system_has_no_locks_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    with locked(tmp_path):
        pass
