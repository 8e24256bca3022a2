"""Files that are full, read-only, cut short or damaged: one clear error or none, never a wrong
reply, and what was paid for is kept where it can be."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_fit import Agent, decisions, run, undisturbed, world

from textautograd import errors, nn
from textautograd.engines import Cached, Reply, Request, Scripted, call_now

# Real disks


class Disk:
    """A file system in memory, of a size that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def long(request: Request) -> str:
    return request.messages[-1]["content"] * 2000


def in_flight(engine: Any, questions: list[str]) -> list[str | errors.Error]:
    """Every reply or error of calls that are all under way before the first is answered."""
    outputs = [nn.LLM("i", engine=engine)(question) for question in questions]
    seen: list[str | errors.Error] = []
    for output in outputs:
        try:
            seen.append(output.data)
        except errors.Error as error:
            seen.append(error)
    return seen


class Together:
    """Answers when all have asked."""

    identity = "together"

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[str] = []

    async def complete(self, request: Request) -> Reply:
        self.asked.append(request.messages[-1]["content"])
        while len(self.asked) < self.count:
            await asyncio.sleep(0)
        return Reply(long(request))


def test_a_disk_that_fills_up_with_calls_in_flight(disk: Disk) -> None:
    questions = [f"question {n:02}" for n in range(40)]
    path = disk.path / "calls.sqlite"
    first = Cached(Together(len(questions)), path)
    seen = in_flight(first, questions)
    lost = [q for q, found in zip(questions, seen, strict=True) if isinstance(found, Exception)]
    assert 0 < len(lost) < len(questions)
    for question, found in zip(questions, seen, strict=True):
        if isinstance(found, errors.Error):
            assert isinstance(found, errors.SetupError)
            assert str(path) in str(found) and "make room" in str(found)
        else:
            assert question in found
    asyncio.run(first.close())
    disk.remount("size=4m")
    model = Together(len(lost))
    again = in_flight(Cached(model, path), questions)
    assert not [found for found in again if isinstance(found, Exception)]
    assert sorted(text.split("\n")[1] for text in model.asked) == lost  # and no other
    assert in_flight(Cached(Together(1), path), questions) == again


def test_a_run_on_a_disk_that_is_full_goes_on_where_there_is_room(disk: Disk) -> None:
    engine = Scripted(world)
    with pytest.raises(errors.UsageError, match=r"(cannot be used|cannot write)") as caught:
        run(Agent(), engine, run_dir=disk.path / "run")
    assert str(disk.path / "run") in str(caught.value)
    disk.remount("size=8m")
    rest = Scripted(world)
    resumed, expected = run(Agent(), rest, run_dir=disk.path / "run"), undisturbed()
    assert resumed.state == expected.state
    assert decisions(resumed.metrics) == decisions(expected.metrics)
    assert 0 < len(rest.calls) < expected.usage.calls


def test_a_file_system_that_became_read_only_is_named(disk: Disk) -> None:
    run(Agent(), Scripted(world), steps=1, run_dir=disk.path)
    kept = {file.name: file.read_bytes() for file in disk.path.glob("*.json*")}
    disk.remount("ro")
    engine = Scripted(world)
    with pytest.raises(errors.UsageError, match="Read-only file system") as caught:
        run(Agent(), engine, steps=2, run_dir=disk.path)
    with pytest.raises(errors.SetupError, match="make it writable") as about_cache:
        call_now(Cached(engine, disk.path / "calls.sqlite"), request())
    assert all(str(disk.path) in str(each.value) for each in (caught, about_cache))
    assert engine.calls == []
    assert {file.name: file.read_bytes() for file in disk.path.glob("*.json*")} == kept


_LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_files import *
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
seen = in_flight(Cached(Together(40), Path(sys.argv[2])), [f"question {n}" for n in range(40)])
failed = [each for each in seen if isinstance(each, Exception)]
assert 0 < len(failed) < 40 and {type(each) for each in failed} == {errors.SetupError}, seen
print(sum(isinstance(each, str) for each in seen))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, os.path.dirname(__file__), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    kept = sqlite3.connect(path)
    assert kept.execute("SELECT count(*) FROM replies").fetchone()[0] >= int(done.stdout)
    kept.close()


# Damage


def request(n: int = 0) -> Request:
    return Request([{"role": "user", "content": f"question {n} "}])


def answers(path: Path, count: int = 30) -> list[str | None]:
    """The replies to all requests, or where there is none `None`: an error that names the file."""
    found: list[str | None] = []
    engine = Cached(Scripted(lambda r: r.messages[0]["content"] * 20), path)
    for n in range(count):
        try:
            reply = call_now(engine, request(n))
            assert reply is not None
            found.append(reply.text)
        except errors.SetupError as error:
            assert str(path) in str(error) and "delete the file" in str(error)
            found.append(None)
    asyncio.run(engine.close())
    return found


def test_a_damaged_cache_is_an_error_or_asked_anew_and_never_a_wrong_reply(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    right = answers(path)
    assert path.with_suffix(".sqlite-wal").exists() is False  # closed: all is in one file
    whole, rng = path.read_bytes(), random.Random(1)
    outcomes = set()
    for n in range(150):
        damaged = bytearray(whole)
        match n % 3:
            case 0:
                del damaged[rng.randrange(len(whole)) :]
            case 1:
                for _ in range(rng.choice([1, 20, 400])):
                    damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            case 2:
                pages = [rng.randrange(len(whole) // 4096) * 4096 for _ in range(2)]
                damaged[pages[0] : pages[0] + 4096] = whole[pages[1] : pages[1] + 4096]
        path = tmp_path / f"{n}.sqlite"
        path.write_bytes(damaged)
        for text, expected in zip(answers(path), right, strict=True):
            assert text in (expected, None)
            outcomes.add(text is None)
    assert outcomes == {True, False}


def test_a_reply_that_was_altered_or_moved_is_asked_for_anew(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    right = answers(path, 3)
    for change in (
        "UPDATE replies SET value = replace(value, 'question', 'quastion')",
        "UPDATE replies SET value = replace(value, 'stop', 'step')",
        "UPDATE replies SET value = (SELECT max(value) FROM replies)",
        "UPDATE replies SET value = replace(value, 'digest', 'digexx')",
    ):
        file = sqlite3.connect(path)
        file.execute(change)
        file.commit()
        file.close()
        assert answers(path, 3) == right


def test_replies_of_before_there_was_a_digest_are_not_paid_again(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    right = answers(path, 3)
    file = sqlite3.connect(path)
    file.execute("UPDATE replies SET value = json_remove(value, '$.digest')")
    file.commit()
    file.close()
    engine = Cached(Scripted(long), path)
    assert [call_now(engine, request(n)).text for n in range(3)] == right  # type: ignore[union-attr]


def test_a_cache_or_a_run_of_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "calls.sqlite"
    file = sqlite3.connect(path)
    file.execute("CREATE TABLE replies (hash BLOB PRIMARY KEY, reply BLOB, model TEXT)")
    file.commit()
    file.close()
    content = path.read_bytes()
    assert answers(path, 2) == [None, None]
    kept = sqlite3.connect(path)
    assert next(row[1] for row in kept.execute("PRAGMA table_info(replies)")) == "hash"
    kept.close()
    assert len(content) == len(path.read_bytes())
    run(Agent(), Scripted(world), steps=1, run_dir=tmp_path / "run")
    settings = tmp_path / "run" / "run.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"version": 99}))
    with pytest.raises(errors.UsageError, match="version was 99 and is "):
        run(Agent(), Scripted(world), steps=2, run_dir=tmp_path / "run")
