"""How much of the prompts a model server's prefix cache serves, by the order of what is in them.

    python -m benchmarks.prefix --data DIR [--runs 3]

The paper's graph on 20 questions of object_counting, one step: evaluation, backward, rewriting, on
SmolLM2-135M in the process. Once as the framework writes prompts: instruction first, data last. And
once with the same texts in the order of the method's reference implementation: one message, data
first, what to do with it last. llama.cpp counts what its cache served. Each run is a process of its
own, so its cache is empty; the orders take turns. Every reply has 16 tokens, whose place then takes
a text that depends on the question alone, so both orders see the same texts and do the same work.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import textautograd as ta
from benchmarks.paper.numbers import at_least
from textautograd import data, engines, nn, optim, tasks
from textautograd.engines._wrapper import Wrapper
from textautograd.engines.local import Local
from textautograd.errors import IncompleteReplyError

TASK = "object_counting"
PURPOSES = ["forward", "backward", "optimize"]
LONG = (
    "First list every thing that the question names, each with how many there are of it, and leave "
    "out whatever is not of the kind that is asked for. A thing named without a number, or with "
    "'a' or 'an', counts once. Then add the numbers up one after the other, writing down each sum, "
    "and check the last one by adding them up from the end. Say the sum alone, in digits, with no "
    "unit, no full stop and no sentence around it, also where the question is a long one."
)


class Measured(Wrapper):
    """Counts tokens by purpose, and replaces replies."""

    def __init__(self, data_first: bool) -> None:
        super().__init__(Local())
        self.data_first = data_first
        self.found = {purpose: [0, 0, 0] for purpose in PURPOSES}

    async def complete(self, request: engines.Request) -> engines.Reply:
        said = self.said(request)
        if self.data_first:
            system, user = (message["content"] for message in request.messages)
            joined = [{"role": "user", "content": f"{user}\n\n{system}"}]
            request = replace(request, messages=joined)
        request = replace(request, max_tokens=16, schema=None, temperature=0.0)
        try:
            usage = (await self.inner.complete(request)).usage
        except IncompleteReplyError as cut:  # at 16 tokens, as most are
            assert cut.usage
            usage = cut.usage
        found = self.found[request.purpose]
        found[0] += 1
        found[1] += usage.input_tokens
        found[2] += usage.cached_tokens
        return engines.Reply(said, usage=usage)

    def said(self, request: engines.Request) -> str:
        """A text of the form asked for."""
        if request.schema is None:
            asked = request.messages[-1]["content"].split("</question>")[0].split()
            return f"Count these, and nothing else: {' '.join(asked[-12:])}"
        return json.dumps(dict.fromkeys(request.schema["properties"], "Say what was counted."))


def once(root: Path, data_first: bool, long: bool) -> dict[str, Any]:
    """One step, in this process."""
    engine = Measured(data_first)
    agent = tasks.TwoHints().to(engine)
    agent.hint_2.instruction.data = "Work out what is asked for, and what is not."
    if long:
        for name, parameter in agent.named_parameters():
            parameter.data = f"{parameter.data} {LONG} This was written for {name}."
    optimizer = optim.SGD(agent.parameters(), engine=engine)
    examples = data.BBH(root, TASK)
    nn.LLM("Say yes.", engine=engine)("Now.").data  # loads the model  # noqa: B018
    engine.found = {purpose: [0, 0, 0] for purpose in PURPOSES}
    times = [time.perf_counter()]
    loss_fn = nn.ExactMatchLoss()
    loss = ta.mean([loss_fn(agent(e.question), e.answer) for e in (examples[i] for i in range(20))])
    assert loss.item() == 1
    times.append(time.perf_counter())
    assert not loss.backward()
    times.append(time.perf_counter())
    assert optimizer.step().accepted
    times.append(time.perf_counter())
    spent = [after - before for before, after in itertools.pairwise(times)]
    return {"seconds": dict(zip(PURPOSES, spent, strict=True)), "tokens": engine.found}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="where bbh/ is")
    parser.add_argument("--runs", type=at_least(1), default=3, help="of each order (default: 3)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        order, length = arguments.one
        print(json.dumps(once(arguments.data, order == "data first", length == "long")))
        return
    try:
        data.BBH(arguments.data, TASK)
    except ta.Error as error:
        sys.exit(str(error))
    print(
        "| instructions | order | phase | calls | prompt tokens | from the cache | computed "
        "| seconds, median (least to most) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for length in ("short", "long"):
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "data first": []}
        for _ in range(arguments.runs):
            for order, found in runs.items():
                words = ["--data", str(arguments.data), "--one", order, length]
                command = [sys.executable, "-m", "benchmarks.prefix", *words]
                ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found.append(json.loads(ran.stdout))
        for order, found in runs.items():
            for purpose in PURPOSES:
                seconds = sorted(run["seconds"][purpose] for run in found)
                calls, prompt, cached = (
                    statistics.median(run["tokens"][purpose][i] for run in found) for i in range(3)
                )
                print(
                    f"| {length} | {order} | {purpose} | {calls:.0f} | {prompt:,.0f} "
                    f"| {cached / prompt:.0%} | {prompt - cached:,.0f} "
                    f"| {statistics.median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
