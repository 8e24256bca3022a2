"""Tokens a second of the local engine, against the llama.cpp server it runs, asked directly.

    python -m benchmarks.local [--runs 5]

The same 24 requests, all at once, to SmolLM2-135M: through `ta.engine("local")`; by aiohttp to a
server with the settings that the engine chose; and to one with llama.cpp's defaults. Each run is a
process of its own, after one request that loads the model; the three take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.paper.numbers import at_least
from textautograd.demo import train, val

KINDS = ["engine", "same settings", "defaults"]
QUESTIONS = [example.question for example in (*train, *val)][:24]
INSTRUCTION = "Explain the answer to the question in a few sentences."


async def ours(questions: list[str]) -> int:
    """The engine's way: the tokens generated."""
    import textautograd as ta
    from textautograd.engines import Request
    from textautograd.errors import IncompleteReplyError

    engine = ta.engine("local")

    async def one(question: str) -> int:
        try:
            request = Request(messages(question), max_tokens=64, temperature=0.0)
            return (await engine.complete(request)).usage.output_tokens
        except IncompleteReplyError as cut:
            assert cut.usage
            return cut.usage.output_tokens

    return sum(await asyncio.gather(*map(one, questions)))


async def plain(server: Any, key: str, questions: list[str]) -> int:
    """Directly: the tokens generated."""
    import aiohttp

    async def one(session: aiohttp.ClientSession, question: str) -> int:
        body = {"messages": messages(question), "max_tokens": 64, "temperature": 0.0, "seed": 0}
        address = f"{server.listening_address}/v1/chat/completions"
        async with session.post(address, json=body) as response:
            return int((await response.json())["usage"]["completion_tokens"])

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        return sum(await asyncio.gather(*(one(session, q) for q in questions)))


def messages(question: str) -> list[dict[str, str]]:
    """One chat."""
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": question}]


def once(kind: str) -> dict[str, float]:
    """One run, in this process."""
    if kind == "engine":

        async def work(questions: list[str]) -> int:
            return await ours(questions)
    else:
        server, key = started(kind)

        async def work(questions: list[str]) -> int:
            return await plain(server, key, questions)

    asyncio.run(work(["Are you there?"]))
    begun = time.perf_counter()
    tokens = asyncio.run(work(QUESTIONS))
    return {"tokens": tokens, "seconds": time.perf_counter() - begun}


def started(kind: str) -> tuple[Any, str]:
    """A server, and its key."""
    from textautograd.engines.local import Local, _Server

    path = Local().path
    if kind == "same settings":
        found = _Server(path, 4096)
        return found._server, found.key
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.verbosity = -1
    return xllamacpp.Server(params), ""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=at_least(1), default=5, help="of each (default: 5)")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(once(arguments.one)))
        return
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.runs):
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.local", "--one", kind]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(ran.stdout.splitlines()[-1])
            rates[kind].append(found["tokens"] / found["seconds"])
    print("| | tokens a second, median (least to most) | engine ÷ this, median of pairs |")
    print("|---|---|---|")
    for kind, found in rates.items():
        pairs = [mine / other for mine, other in zip(rates["engine"], found, strict=True)]
        print(
            f"| {kind} | {statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f}) "
            f"| {statistics.median(pairs):.2f} |"
        )


if __name__ == "__main__":
    main()
