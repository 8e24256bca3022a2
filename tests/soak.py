"""Calls to a server that fails now and then: `python tests/soak.py N`, in a process of its own.

A server on loopback answers after 5 ms, but for 2 % of the requests: 429, 500, a body that is cut,
no answer at all, or, at another port, a connection that is refused. An agent of two calls is run
forward and backward with them, until N calls were answered. Every reply must be the one to its own
request, and every request of the server must be accounted for; memory and file descriptors stay as
they were after a tenth of it, and nothing warns.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import textautograd as ta
from textautograd import nn
from textautograd.engines import HTTP, Budget, Limited, Reply, Request, Retrying, caching
from textautograd.engines._wrapper import Wrapper
from textautograd.errors import EngineError

LATENCY = 0.005  # seconds
FAULTS = {"429": 0.005, "500": 0.005, "cut": 0.004, "dropped": 0.003}  # shares, with REFUSED: 2 %
REFUSED = 0.003
SAMPLES = 50  # of a batch: three calls each
AT_ONCE = 32
OTHER_FILES = 16  # event loops, SQLite, the server's pipes


# The server


class Server:
    """Answers as told by a seeded generator; counts what it did."""

    def __init__(self) -> None:
        self.rng = random.Random(1)
        self.counts = dict.fromkeys(["ok", *FAULTS], 0)

    def outcome(self) -> str:
        drawn = self.rng.random()
        for name, share in FAULTS.items():
            drawn -= share
            if drawn < 0:
                return name
        return "ok"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) is not None:
                found = re.search(rb"content-length: (\d+)", head, re.I)
                body = await reader.readexactly(int(found[1]) if found else 0)
                if head.startswith(b"GET"):
                    answer, status = self.counts, 200
                else:
                    what = self.outcome()
                    self.counts[what] += 1
                    await asyncio.sleep(LATENCY)
                    if what == "dropped":
                        break
                    status = {"429": 429, "500": 500}.get(what, 200)
                    answer = reply_to(json.loads(body)) if status == 200 else {"error": what}
                content = json.dumps(answer).encode()
                fields = f"HTTP/1.1 {status} X\r\nContent-Length: {len(content)}\r\n\r\n".encode()
                if head.startswith(b"POST") and what == "cut":
                    writer.write(fields + content[:20])
                    break
                writer.write(fields + content)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone away, as it may
        finally:
            writer.close()


def reply_to(body: dict[str, Any]) -> dict[str, Any]:
    said = echo(body["messages"])
    if "response_format" in body:
        names = body["response_format"]["json_schema"]["schema"]["properties"]
        said = json.dumps(dict.fromkeys(names, said))
    return {
        "choices": [{"message": {"content": said}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


def echo(messages: Any) -> str:
    """What only this request is answered."""
    return f"answer {zlib.crc32(json.dumps(messages).encode()):08x}"


async def server() -> None:
    listening = await asyncio.start_server(Server().serve, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until the client ends
    os._exit(0)  # open connections and all


# The client


class Watched(Wrapper):
    """Counts attempts; some go where nobody listens. Remembers which reply each request had."""

    def __init__(self, there: HTTP, nowhere: HTTP) -> None:
        super().__init__(there)
        self.nowhere = nowhere
        self.rng = random.Random(2)
        self.refused = self.attempts = self.failed = 0
        self.wrong: list[str] = []

    async def complete(self, request: Request) -> Reply:
        self.attempts += 1
        try:
            if self.rng.random() < REFUSED:
                self.refused += 1
                return await self.nowhere.complete(request)
            reply = await self.inner.complete(request)
        except EngineError:
            self.failed += 1
            raise
        if echo([dict(message) for message in request.messages]) not in reply.text:
            self.wrong.append(reply.text)
        return reply


class Agent(nn.Module):
    def __init__(self) -> None:
        self.hint, self.solve = nn.LLM("Give a hint."), nn.LLM("Solve it.")

    def forward(self, question: str) -> ta.TextVariable:
        output: ta.TextVariable = self.solve(question=question, hint=self.hint(question=question))
        return output


def memory() -> int:
    """Bytes that are resident."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(count: int) -> dict[str, Any]:
    """Makes the calls and returns what was counted.

    Raises:
        AssertionError: a call went wrong, or is not accounted for.
    """
    command = [sys.executable, __file__, "--serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(listener)
    try:
        port = int(process.stdout.readline())
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(record=True) as warned,
            socket.socket() as taken,
        ):
            taken.bind(("127.0.0.1", 0))  # and never listens
            warnings.simplefilter("always")
            there, nowhere = (
                HTTP("m", f"http://127.0.0.1:{p}/v1") for p in (port, taken.getsockname()[1])
            )
            result = calls(count, Watched(there, nowhere), port, Path(folder) / "calls.sqlite")
            said += [str(warning.message) for warning in warned]
    finally:
        logging.getLogger().removeHandler(listener)
        process.communicate()
    assert len(set(said)) == len(said), said
    assert all(line.endswith("trying again, up to 5 attempts in all") for line in said), said
    return result


def calls(count: int, watched: Watched, port: int, cache: Path) -> dict[str, Any]:
    files_before = len(os.listdir("/proc/self/fd"))
    agent, loss_fn = Agent(), nn.ExactMatchLoss()
    agent.to(Retrying(Limited(watched, AT_ONCE), max_wait=0.02))
    sizes: list[tuple[int, int]] = []  # memory and files, after each batch
    with Budget() as budget, caching(cache):
        while budget.spent.calls < count:
            done = budget.spent.calls
            outputs = ta.map(agent, [f"question {done}-{i}" for i in range(SAMPLES)])
            ta.functional.mean([loss_fn(output, "right") for output in outputs]).backward()
            assert len(agent.hint.instruction.grad or ()) == SAMPLES
            agent.zero_grad()
            del outputs
            sizes.append((memory(), len(os.listdir("/proc/self/fd"))))
    seen = counts_of(port)
    assert watched.wrong == []
    assert seen["ok"] == budget.spent.calls == len(sizes) * SAMPLES * 3
    assert budget.spent.tokens == 10 * seen["ok"]
    assert sum(seen.values()) + watched.refused == watched.attempts
    assert watched.failed == watched.attempts - seen["ok"]
    settled = sizes[len(sizes) // 10 :]
    return {
        "calls": seen["ok"],
        "attempts": watched.attempts,
        "faults": {**seen, "refused": watched.refused},
        "memory_mib": [round(size / 2**20, 1) for size, _ in settled[:: max(1, len(settled) // 9)]],
        "files_before": files_before,
        "files_most": max(files for _, files in sizes),
    }


def counts_of(port: int) -> dict[str, int]:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/") as response:
        return json.load(response)  # type: ignore[no-any-return]


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        asyncio.run(server())
    else:
        found = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
        print(json.dumps(found))
        memories = found["memory_mib"]
        assert max(memories) - memories[0] < 8, "memory grows"
        assert found["files_most"] <= found["files_before"] + AT_ONCE + OTHER_FILES
