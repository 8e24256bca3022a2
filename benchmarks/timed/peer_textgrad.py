"""TextGrad's side of `benchmarks.speed`: `python peer_textgrad.py BASE_URL`, in its environment."""

from __future__ import annotations

import os
import sys
from typing import Any

url = sys.argv[1]
os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=url)

import textgrad as tg  # noqa: E402
from textgrad.autograd import FormattedLLMCall  # noqa: E402
from textgrad.engine.base import EngineLM  # noqa: E402
from textgrad.engine.openai import ChatOpenAI  # noqa: E402
from worker import Work, check, per_node, serve  # noqa: E402


class Uncached(ChatOpenAI):  # type: ignore[misc]
    """Its own engine without its disk cache, which would answer the second run."""

    def _check_cache(self, prompt: str) -> None:
        return None

    def _save_cache(self, prompt: str, response: str) -> None:
        pass


engine = Uncached("model")


def instruction(text: str) -> Any:
    return tg.Variable(text, requires_grad=True, role_description="instruction")


def question(text: str) -> Any:
    return tg.Variable(text, requires_grad=False, role_description="question")


def wide16() -> Work:
    tg.set_backward_engine(engine, override=True)
    hints, solve = [instruction(f"Give hint {i}.") for i in range(16)], instruction("Answer.")

    def work() -> None:
        asked = question("What is 6*7?")
        inputs = {f"hint{i}": tg.BlackboxLLM(engine, hint)(asked) for i, hint in enumerate(hints)}
        template = "\n".join(f"{{{name}}}" for name in inputs)
        final = FormattedLLMCall(engine, template, dict.fromkeys(inputs), system_prompt=solve)
        answer = final(inputs=inputs, response_role_description="answer")
        tg.TextLoss("Correct answer: 42. Critique.", engine)(answer).backward()
        check(all(p.gradients for p in [*hints, solve]), "an instruction without a gradient")

    return work


def batch32() -> Work:
    tg.set_backward_engine(engine, override=True)
    params = [instruction("Extract the facts."), instruction("Answer the question.")]
    extract, answer = (tg.BlackboxLLM(engine, p) for p in params)
    optimizer = tg.TGD(parameters=params, engine=engine)

    def work() -> None:
        before = [p.value for p in params]
        optimizer.zero_grad()
        loss_fn = tg.TextLoss("Correct answer: 42. Critique.", engine)
        tg.sum([loss_fn(answer(extract(question(f"Question {i}?")))) for i in range(32)]).backward()
        check(all(len(p.gradients) == 32 for p in params), "a gradient is missing")
        optimizer.step()
        check(all(old != p.value for old, p in zip(before, params, strict=True)), "no rewrite")

    return work


def deep12() -> Work:
    tg.set_backward_engine(engine, override=True)
    params = [instruction(f"Step {i}.") for i in range(12)]

    def work() -> None:
        x = question("What is 6*7?")
        for param in params:
            x = tg.BlackboxLLM(engine, param)(x)
        x.backward()
        check(all(p.gradients for p in params), "an instruction without a gradient")

    return work


class AtOnce(EngineLM):  # type: ignore[misc]
    model_string = "none"

    def generate(self, *args: Any, **kwargs: Any) -> str:
        return "Be precise."

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        return "Be precise."


def chain(nodes: int) -> Any:
    tg.set_backward_engine(AtOnce(), override=True)
    agent = tg.BlackboxLLM(AtOnce(), instruction("Answer."))
    x = tg.Variable("question", requires_grad=True, role_description="question")
    for _ in range(nodes):
        x = agent(x)
    return x


serve(
    url,
    {
        "wide16": wide16,
        "batch32": batch32,
        "deep12": deep12,
        **{
            f"at once {n}": per_node(n, lambda n=n: chain(n), lambda root: root.backward())
            for n in (100, 400, 900)  # it recurses, and fails at 1,200
        },
    },
)
