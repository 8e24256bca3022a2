"""Our side of `benchmarks.cost`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

import textautograd as ta
from benchmarks.counted import meter
from benchmarks.counted.meter import CRITERION, Meter
from textautograd import engines, nn, optim


class Wide(nn.Module):
    """One question, some hints, one answer."""

    def __init__(self, hints: int) -> None:
        self.hints = nn.ModuleList([nn.LLM(f"Give hint {i}.") for i in range(hints)])
        self.solve = nn.LLM("Answer.")

    def forward(self, question: str) -> ta.TextVariable:
        hints = {f"hint{i}": hint(question=question) for i, hint in enumerate(self.hints)}
        return self.solve(question=question, **hints)


class TwoSteps(nn.Module):
    """Facts, then the answer."""

    def __init__(self, extract: str, answer: str) -> None:
        self.extract, self.answer = nn.LLM(extract), nn.LLM(answer)

    def forward(self, question: str) -> ta.TextVariable:
        return self.answer(facts=self.extract(question=question))


def answering(meter_: Meter) -> Callable[[engines.Request], str]:
    """Replies of fixed length, in the form asked for; a summary has the words it is allowed."""

    def answer(request: engines.Request) -> str:
        said = meter_.said()
        if allowed := re.search(r"in at most (\d+) words", request.messages[-1]["content"]):
            said = meter.text(int(allowed[1]))
        if request.schema is not None:
            names = request.schema["properties"]
            said = json.dumps({name: 0.0 if name == "score" else said for name in names})
        return meter_.charge([m["content"] for m in request.messages], said)

    return answer


def run(meter_: Meter, case: str, size: int) -> None:
    """One step of one case."""
    engine = engines.Scripted(answering(meter_))
    agent: nn.Module
    questions: Sequence[str] = [meter.text(20, "0:")]
    if case == "depth":
        agent = nn.Sequential(*[nn.LLM(f"Step {i}.") for i in range(size)])
    elif case == "width":
        agent = Wide(size)
    else:
        questions, extract, last = meter.shape(case, size)
        agent = TwoSteps(extract, last)
    agent.to(engine)
    judge = nn.JudgeLoss(CRITERION, engine=engine)
    optimizer = optim.SGD(agent.parameters(), engine=engine)
    outputs = [agent(question) for question in questions]
    for output in outputs:
        output.data  # noqa: B018
    meter_.phase = "loss"
    loss = ta.mean([judge(output) for output in outputs])
    loss.item()
    meter_.phase = "backward"
    loss.backward()
    meter_.phase = "step"
    assert optimizer.step().accepted


if __name__ == "__main__":
    meter.main(run)
