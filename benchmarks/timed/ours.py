"""Our side of `benchmarks.speed`: `python -m benchmarks.timed.ours BASE_URL http|litellm`."""

from __future__ import annotations

import asyncio
import os
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import textautograd as ta
from benchmarks.timed.worker import Case, Work, check, per_node, serve
from textautograd import data, engines, nn, optim

SIZES = (100, 1_000, 10_000, 100_000)


class Wide(nn.Module):
    """One question, 16 hints, one answer."""

    def __init__(self) -> None:
        self.hints = nn.ModuleList([nn.LLM(f"Give hint {i}.") for i in range(16)])
        self.solve = nn.LLM("Answer.")

    def forward(self, question: str) -> ta.TextVariable:
        hints = {f"hint{i}": hint(question=question) for i, hint in enumerate(self.hints)}
        answer: ta.TextVariable = self.solve(question=question, **hints)
        return answer


class TwoSteps(nn.Module):
    """Facts, then the answer."""

    def __init__(self) -> None:
        self.extract = nn.LLM("Extract the facts.")
        self.answer = nn.LLM("Answer the question.")

    def forward(self, question: str) -> ta.TextVariable:
        answer: ta.TextVariable = self.answer(facts=self.extract(question=question))
        return answer


def calls(engine: engines.Engine) -> dict[str, Case]:
    """Programs whose calls take the server's time."""
    judge = nn.JudgeLoss("Correct answer: 42.", engine=engine)

    def wide16() -> Work:
        agent = Wide().to(engine)

        def work() -> None:
            judge(agent("What is 6*7?")).backward()
            check(all(p.grad for p in agent.parameters()), "an instruction without a gradient")

        return work

    def batch32() -> Work:
        agent = TwoSteps().to(engine)
        optimizer = optim.SGD(agent.parameters(), engine=engine)

        def work() -> None:
            before = agent.state_dict()
            ta.mean([judge(agent(f"Question {i}?")) for i in range(32)]).backward()
            check(all(len(p.grad or ()) == 32 for p in agent.parameters()), "a gradient is missing")
            optimizer.step()
            after = agent.state_dict()
            check(all(before[name] != after[name] for name in before), "no rewrite")

        return work

    def deep12() -> Work:
        chain = nn.Sequential(*[nn.LLM(f"Step {i}.") for i in range(12)]).to(engine)

        def work() -> None:
            chain("What is 6*7?").backward("Be brief.")
            check(all(p.grad for p in chain.parameters()), "an instruction without a gradient")

        return work

    def evaluate1000() -> Work:
        agent = nn.LLM("Answer.").to(engine)
        questions = [data.Example(f"Question {i}?", "42") for i in range(1000)]

        def work() -> None:
            found = ta.evaluate(agent, questions, nn.ExactMatchLoss())
            check(found.usage.calls == 1000 and not found.failed, "calls left out")
            check(len({row.output for row in found.rows}) == 1000, "samples left out")

        return work

    return {"wide16": wide16, "batch32": batch32, "deep12": deep12, "evaluate1000": evaluate1000}


def bare(call: Callable[[list[dict[str, str]]], Awaitable[str]]) -> Case:
    """A client by itself: what evaluate1000 sends, with nothing of ours around it."""
    loop = asyncio.new_event_loop()

    async def all_of_them() -> None:
        slots = asyncio.Semaphore(64)

        async def one(i: int) -> str:
            async with slots:
                system = {"role": "system", "content": "Answer."}
                user = {"role": "user", "content": f"<input>\nQuestion {i}?\n</input>"}
                return await call([system, user])

        replies = await asyncio.gather(*map(one, range(1000)))
        check(len(set(replies)) == 1000, "calls left out")

    return lambda: lambda: loop.run_until_complete(all_of_them())


def bare_aiohttp(url: str) -> Case:
    """aiohttp alone."""
    import aiohttp

    sessions: list[aiohttp.ClientSession] = []

    async def call(messages: list[dict[str, str]]) -> str:
        if not sessions:
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        body = {"model": "model", "messages": messages, "temperature": 0.0}
        async with sessions[0].post(url + "/chat/completions", json=body) as response:
            reply = await response.json()
        return str(reply["choices"][0]["message"]["content"])

    return bare(call)


def bare_litellm() -> Case:
    """litellm alone."""
    import litellm

    async def call(messages: list[dict[str, str]]) -> str:
        reply = await litellm.acompletion(
            model="openai/model", messages=messages, temperature=0.0, api_key="none"
        )
        return str(reply.choices[0].message.content)

    return bare(call)


class OnTheLoop:
    """An engine that has its answer when it is asked; unlike `Scripted` it keeps no requests."""

    async def complete(self, request: engines.Request) -> engines.Reply:
        return engines.Reply('{"input": "Be precise."}' if request.schema else "An answer.")


class AtOnce(OnTheLoop):
    """The same, without waiting for the loop."""

    def answer_now(self, request: engines.Request) -> engines.Reply:
        return engines.Reply('{"input": "Be precise."}' if request.schema else "An answer.")


def overhead() -> dict[str, Case]:
    """What a node costs where the engine takes no time."""

    def exact_chain(nodes: int) -> ta.TextVariable:
        x = ta.TextVariable("question", requires_grad=True)
        for _ in range(nodes):
            x = x + ""
        return x

    def chain_of_calls(nodes: int) -> ta.TextVariable:
        agent = nn.LLM("Answer.", engine=AtOnce())
        x = ta.TextVariable("question", requires_grad=True)
        for _ in range(nodes):
            x = agent(x)
        return x

    def independent_calls(nodes: int) -> ta.TextVariable:
        agent = nn.LLM("Answer.", engine=OnTheLoop())
        loss_fn = nn.ExactMatchLoss()
        questions = [ta.TextVariable(f"question {i}", requires_grad=True) for i in range(nodes)]
        loss = ta.mean([loss_fn(agent(question), "42") for question in questions])
        loss.item()
        return loss

    def calls_read_at_once(nodes: int) -> None:
        agent = nn.LLM("Answer.", engine=OnTheLoop())
        for i in range(nodes):
            agent(f"question {i}").data  # noqa: B018

    cases: dict[str, Case] = {}
    for n in SIZES:
        cases[f"exact {n}"] = per_node(n, lambda n=n: exact_chain(n), _down)
        cases[f"at once {n}"] = per_node(n, lambda n=n: chain_of_calls(n), _down)
        if n < SIZES[-1]:
            cases[f"dispatched {n}"] = per_node(n, lambda n=n: independent_calls(n), _down)
    cases["read at once 1000"] = per_node(1000, lambda: calls_read_at_once(1000), lambda _: None)
    cases["memory 10000"] = lambda: lambda: memory(lambda: chain_of_calls(10_000), 10_000)
    return cases


def _down(root: ta.TextVariable) -> None:
    failures = root.backward("Be brief.")
    check(not failures, str(failures[:1]))


def memory(forward: Callable[[], ta.TextVariable], nodes: int) -> dict[str, float]:
    """Bytes per node of a recorded graph, texts not counted, and what is left when it is gone."""
    tracemalloc.start()
    forward()
    before = tracemalloc.get_traced_memory()[0]
    root: Any = forward()
    held = tracemalloc.get_traced_memory()[0]
    del root
    left = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"bytes_per_node": (held - before) / nodes, "bytes_left": left - before}


def main() -> None:
    url, through = sys.argv[1:]
    if through == "litellm":
        os.environ["OPENAI_BASE_URL"] = url
        cases = calls(ta.engine("openai/model", api_key="none"))
        cases["bare litellm"] = bare_litellm()
    else:
        cases = calls(ta.engine("model", api_base=url, api_key="none"))
        cases |= {"bare aiohttp": bare_aiohttp(url), **overhead()}
    serve(url, cases)


if __name__ == "__main__":
    main()
