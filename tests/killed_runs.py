"""Runs killed with SIGKILL and resumed, against a server here:
`python tests/killed_runs.py N [SGD | TextGrad | OptoPrime | COPRO]`.

A moment is the n-th call of a phase, as it arrives or just after it was answered, or the n-th file
that is opened or renamed in the run's directory. When it comes, every reply that was given before
is on disk, so that what was in flight is beyond doubt. However often it was killed, a run ends with
the files of an undisturbed one, and no call is sent twice but those in flight at a kill.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from fault_server import running

import textautograd as ta
from textautograd import nn, optim
from textautograd.data import Example
from textautograd.engines import HTTP
from textautograd.prompts import graph, optimize, propose, rewrite

PHASES = ("forward", "backward", "step", "gate", "checkpoint")
OPTIMIZERS = {  # and the phases in which its runs make calls, or write files
    "SGD": PHASES,
    "TextGrad": PHASES,
    "OptoPrime": ("forward", "step", "gate", "checkpoint"),
    "COPRO": ("step", "gate", "checkpoint"),
}
STEPS = {module.SYSTEM for module in (graph, optimize, propose, rewrite)}
TRAIN = [Example(f"question {i} of hardness {1 + i % 3}", "right") for i in range(6)]
VAL = [Example(f"held-out {i} of hardness {i % 4}", "right") for i in range(5)]
RESULTS = ("best.json", "metrics.jsonl", "states.jsonl", "checkpoint.json", "run.json")


class Agent(nn.Module):
    def __init__(self) -> None:
        self.hint = nn.LLM("Give a hint.")
        self.solve = nn.LLM("Solve it")

    def forward(self, question: str) -> ta.TextVariable:
        output: ta.TextVariable = self.solve(question=question, hint=self.hint(question=question))
        return output


def phase_of(body: dict[str, Any]) -> str:
    if body["messages"][0]["content"] in STEPS:
        return "step"
    if "response_format" in body:
        return "backward"
    return "gate" if "held-out" in body["messages"][1]["content"] else "forward"


def reply(body: dict[str, Any]) -> str:
    """A function of the request: a question is answered right by a final instruction with as many
    exclamation marks as it is hard."""
    system, user = (m["content"] for m in body["messages"][:2])
    phase = phase_of(body)
    if phase in ("step", "backward"):
        names = body["response_format"]["json_schema"]["schema"]["properties"]
        say = better if phase == "step" else "a better {}".format
        return json.dumps({name: say(name, user) for name in names})
    if system.startswith("Give"):
        return f"hint by {system}"
    hard = int(user.split("\n")[1].split()[-1])
    return "right" if system.count("!") >= hard else f"wrong by {system}"


def better(name: str, user: str) -> str:
    """A new text for what a rewriting prompt shows: an exclamation mark more, or nothing won."""
    tags = f"instruction|variable|attempt-1|variable-{re.sub('[^A-Za-z]', '-', name)}"
    old = re.search(f"<({tags})>\\n(.*)\\n", user)
    drawn = int(hashlib.sha256(user.encode()).hexdigest(), 16)
    return f"{old[2] if old else 'Because'} better {drawn % 99}{'!' if drawn % 3 else '?'}"


def train(url: str, folder: str, kind: str) -> None:
    """One run, to its end; its process is named to the server by the key."""
    engine = HTTP("tiny", url, api_key=f"process-{os.getpid()}")
    agent = Agent().to(engine)
    optimizer = getattr(optim, kind)(agent.parameters(), engine=engine, seed=1)
    ta.fit(
        agent,
        TRAIN,
        nn.ExactMatchLoss(),
        optimizer,
        val=VAL,
        steps=3,
        batch_size=4,
        run_dir=folder,
        progress=False,
    )


def fork_on_demand() -> None:
    """For each line (url, folder, optimizer, file event to die at) a process, forked when all is
    imported."""
    import aiohttp  # noqa: F401  or each child would

    for line in sys.stdin:
        url, folder, kind, last = json.loads(line)
        if (child := os.fork()) == 0:
            if last:
                _die_at(last)
            train(url, folder, kind)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _die_at(last: int) -> None:
    seen = 0

    def hook(event: str, args: Any) -> None:
        nonlocal seen
        if event in ("open", "os.rename") and str(args[0]).endswith(".part"):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@dataclass
class Moment:
    """When to kill: at the n-th call of a phase, or, in "checkpoint", file event."""

    phase: str
    n: int
    is_answered: bool


@dataclass
class Server:
    """What came in a run, how often, and what was in flight at the kills."""

    url: str = ""
    folder: Path = Path()
    moment: Moment | None = None
    came: list[str] = field(default_factory=list)
    unanswered: Counter[str] = field(default_factory=Counter)
    in_doubt: Counter[str] = field(default_factory=Counter)
    answered: dict[int, set[int]] = field(default_factory=dict)
    of_phase: Counter[tuple[int, str]] = field(default_factory=Counter)
    dying: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    error: str = ""

    def begin(self, folder: Path) -> None:
        """A run is about to be started."""
        self.folder = folder
        for kept in (self.came, self.unanswered, self.in_doubt):
            kept.clear()

    def arrived(self, process: int, body: dict[str, Any]) -> tuple[int, bool, bool]:
        """The call's number, by which its reply is known in the store, whether it is to be
        answered, and whether its process is to be killed now."""
        key, phase = json.dumps(body, sort_keys=True), phase_of(body)
        with self.lock:
            self.came.append(key)
            self.of_phase[process, phase] += 1
            serial, moment = len(self.came), self.moment
            nth = (phase, self.of_phase[process, phase])
            answered = self.answered.setdefault(process, set())
            if process in self.dying:
                self.unanswered[key] += 1
                return serial, False, False
            if moment is None or (moment.phase, moment.n) != nth:
                answered.add(serial)
                return serial, True, False
            self.dying.add(process)
            (self.in_doubt if moment.is_answered else self.unanswered)[key] += 1
        self._wait_for(answered)
        return serial, moment.is_answered, True

    def _wait_for(self, answered: set[int]) -> None:
        """Until all replies that were given are on disk."""
        end = time.monotonic() + 30
        while answered and not answered <= _stored(self.folder / "calls.sqlite"):
            if time.monotonic() > end:
                self.error = f"{answered} were answered and not kept"
                return
            time.sleep(0.001)


def _stored(file: Path) -> set[int]:
    store = sqlite3.connect(file, timeout=30)
    try:
        rows = store.execute("SELECT value FROM replies").fetchall()
    finally:
        store.close()
    return {json.loads(value)["tokens"][0] for (value,) in rows}


@contextmanager
def serving() -> Iterator[Server]:
    state, over = Server(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            process = int(self.headers["Authorization"].rpartition("-")[2])
            serial, is_answered, is_last = state.arrived(process, body)
            if is_answered:
                self.answer(reply(body), serial)
            if is_last:
                os.kill(process, signal.SIGKILL)
            if not is_answered:
                over.wait(0.1)  # who asked is as good as dead
                self.close_connection = True

        def answer(self, text: str, serial: int) -> None:
            message = {"role": "assistant", "content": text}
            usage = {"prompt_tokens": serial, "completion_tokens": 1}
            choices = [{"message": message, "finish_reason": "stop"}]
            content = json.dumps({"choices": choices, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

    with running(Handler) as state.url:
        try:
            yield state
        finally:
            over.set()


def killed(count: int, seed: int = 0, kind: str = "SGD") -> Counter[str]:
    """Kills runs that many times in all and checks each; returns the kills by phase."""
    rng, done, phases = random.Random(seed), Counter[str](), OPTIMIZERS[kind]
    with serving() as server, tempfile.TemporaryDirectory() as temporary, _forking(kind) as run:
        undisturbed = Path(temporary) / "undisturbed"
        assert run(server, undisturbed) == 0
        expected, calls = results(undisturbed), Counter(server.came)
        while done.total() < count:
            folder, code = Path(tempfile.mkdtemp(dir=temporary)), -signal.SIGKILL
            server.begin(folder)
            while code != 0:
                phase = phases[done.total() % len(phases)]
                n = rng.randint(1, 24 if phase == "checkpoint" else 2 if phase == "step" else 6)
                server.moment = Moment(phase, n, rng.random() < 0.5)
                if done.total() == count:
                    server.moment = None
                code = run(server, folder)
                assert code in (0, -signal.SIGKILL), code
                assert not server.error, server.error
                done[phase] += code != 0
            found, came = results(folder), Counter(server.came)
            assert found == expected, [name for name in RESULTS if found[name] != expected[name]]
            assert came - calls <= server.unanswered + server.in_doubt, "a call was sent twice"
            assert came >= calls + server.unanswered, "what was in flight was not sent again"
    return done


@contextmanager
def _forking(kind: str) -> Iterator[Any]:
    command = [sys.executable, __file__, "--fork"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        asks, says = process.stdin, process.stdout

        def run(server: Server, folder: Path) -> int:
            moment = server.moment
            event = moment.n if moment and moment.phase == "checkpoint" else None
            asks.write(json.dumps([server.url, str(folder), kind, event]) + "\n")
            asks.flush()
            return int(says.readline())

        try:
            yield run
        finally:
            asks.close()


def results(folder: Path) -> dict[str, str]:
    """All files of a finished run but its replies."""
    names = {file.name for file in folder.iterdir()}
    assert names - {"lock", "calls.sqlite", "calls.sqlite-wal", "calls.sqlite-shm"} == {*RESULTS}
    return {name: (folder / name).read_text() for name in RESULTS}


if __name__ == "__main__":
    if sys.argv[1:] == ["--fork"]:
        fork_on_demand()
    else:
        number = int(sys.argv[1]) if len(sys.argv) > 1 else 100
        begun = time.monotonic()
        kills = killed(number, kind=(sys.argv[2:] or ["SGD"])[0])
        print(f"{number} kills ({dict(kills)}) in {time.monotonic() - begun:.0f} s")
