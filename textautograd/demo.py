"""`textautograd demo`: a two-step agent learns to be brief, on a model of 135 million parameters.

Its second instruction asks for detail, while the loss wants one short sentence and says so in
words: that is all that training has to go by. So small a model knows many capitals but hardly
follows instructions, let alone writes them: the optimizer draws several and the gate picks.
"""

from __future__ import annotations

import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import textautograd as ta
from textautograd import data, engines, nn, optim
from textautograd.engines.base import Message
from textautograd.gradient import Feedback
from textautograd.prompts.quote import quote
from textautograd.terminal import harmless

_TRAIN = """\
Japan: Tokyo; Afghanistan: Kabul; Poland: Warsaw; Peru: Lima; Turkey: Ankara; Portugal: Lisbon;
Belgium: Brussels; Malaysia: Kuala Lumpur; Sweden: Stockholm; Mexico: Mexico City;
Thailand: Bangkok; Egypt: Cairo"""
_VAL = """\
Spain: Madrid; Ukraine: Kyiv; Bangladesh: Dhaka; Nigeria: Abuja; Venezuela: Caracas;
England: London; Vietnam: Hanoi; Bulgaria: Sofia; Syria: Damascus; Iraq: Baghdad;
Hungary: Budapest; Chile: Santiago; Ethiopia: Addis Ababa; Iran: Tehran; Wales: Cardiff;
Serbia: Belgrade"""
_TEST = """\
Nepal: Kathmandu; Austria: Vienna; Australia: Canberra; Lebanon: Beirut; Norway: Oslo;
Denmark: Copenhagen; Croatia: Zagreb; France: Paris; Argentina: Buenos Aires;
Romania: Bucharest; Italy: Rome; Iceland: Reykjavik; Germany: Berlin; Ireland: Dublin;
Cuba: Havana; Jordan: Amman; Kenya: Nairobi; Canada: Ottawa; Ghana: Accra; Greece: Athens;
Finland: Helsinki; Russia: Moscow; Indonesia: Jakarta; Scotland: Edinburgh; Pakistan: Islamabad;
China: Beijing"""


def _examples(capitals: str) -> list[data.Example]:
    pairs = (pair.split(": ") for pair in capitals.replace("\n", " ").split("; "))
    return [data.Example(f"What is the capital of {a}?", b) for a, b in pairs]


train, val, test = map(_examples, (_TRAIN, _VAL, _TEST))
WORDS = 8


class Agent(nn.Module):
    """Answers for itself first, then tells the user; told to do so at length."""

    def __init__(self) -> None:
        self.think = nn.LLM(
            "Answer the question.", output_format="Use one short sentence.", max_tokens=128
        )
        self.tell = nn.LLM("Explain the hint in detail.", max_tokens=128)

    def forward(self, question: str | ta.TextVariable) -> ta.TextVariable:
        answer: ta.TextVariable = self.tell(question=question, hint=self.think(question=question))
        return answer


def brief(output: str, target: str) -> tuple[float, str]:
    """The loss: 0 for a short answer with the right city. Only length can be mended by a better
    instruction, so a wrong city costs, but leaves no feedback."""
    if len(output.split()) > WORDS:
        return 1.0, f"It is too long. It should be one short sentence of at most {WORDS} words."
    return (0.0 if target.lower() in output.lower() else 1.0), ""


def prompt(
    instruction: str, examples: Sequence[Feedback], tried: Sequence[str], how: str
) -> list[Message]:
    """A rewriting prompt for so small a model. It copies what it is shown, so it is shown little;
    the form of its reply is enforced by a grammar, so `how` is left out."""
    system = (
        "You write instructions for a language model. Rewrite the instruction so that the model's "
        "outputs will be as the feedback asks."
    )
    feedback = "\n".join(dict.fromkeys(example.text for example in examples))
    shown = quote({"feedback": feedback, "instruction": instruction})
    ask = "Rewrite the instruction so that it asks for what the feedback says."
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": f"{shown}\n\n{ask}"},
    ]


def run(seed: int = 0) -> tuple[int, int]:
    """Trains the agent and prints what happens; returns the right held-out answers before and
    after. Takes two steps at the most, the second only if the first is rejected."""
    started = time.time()
    engine = ta.engine("local", max_tokens=160)
    agent, loss_fn = Agent().to(engine), nn.FunctionLoss(brief)
    optimizer = optim.SGD(
        agent.tell.parameters(),
        engine=ta.engine("local", max_tokens=48),  # which keeps rewrites short
        examples=1,
        candidates=6,
        seed=seed,
        temperature=0.7,
        prompt=prompt,
    )
    _say("An agent of two calls, on SmolLM2-135M in this process:", repr(agent))
    _say(
        f"It is asked for capitals. The loss wants the city in at most {WORDS} words, and says so."
        f"\n{len(train)} questions to train on, {len(val)} to compare states on, {len(test)} held "
        "out."
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        engines.caching(Path(folder) / "calls.sqlite"),
        ta.Budget() as meter,
    ):
        before = ta.evaluate(agent, test, loss_fn, progress=True)
        shown = next(row for row in before.rows if row.loss and row.output)
        _say(
            f"Held-out questions right before training: {_right(before)} of {len(test)}. One that "
            "is wrong:",
            f"question: {shown.example.question}\noutput:   {_short(shown.output or '')}",
        )
        for step in range(2):
            _say(f"Step {step + 1}: forward, backward, rewrite, compare on {len(val)} questions …")
            history = ta.fit(
                agent,
                train,
                loss_fn,
                optimizer,
                val=val,
                steps=step + 1,
                batch_size=6,
                run_dir=folder,
                seed=seed,
                progress=True,
            )
            _show(agent, history.metrics[-1])
            if history.accepted:
                break
        after = ta.evaluate(agent, test, loss_fn, progress=True)
    counts = _right(before), _right(after)
    _say(f"Held-out questions right: {counts[0]} → {counts[1]} of {len(test)}.")
    spent = meter.spent
    print(f"{spent.calls} calls, {spent.tokens} tokens, {time.time() - started:.0f} s, seed {seed}")
    return counts


def _show(agent: Agent, step: dict[str, Any]) -> None:
    print(f"  {step['wrong']} of {step['samples']} answers were wrong.")
    if agent.think.instruction.grad:
        about = agent.think.instruction.grad[0]
        _say(
            "  A semantic gradient: the model's own words, from one joint call, on how the hint of "
            "one answer should have been different:",
            f"hint:     {_short(about.output or '')}\ngradient: {_short(about.text)}",
        )
    told = next(iter(step["gradients"].values()), ["nothing"])
    _say("  What the rewritten instruction's gradient says:", told[0])
    if not step["accepted"]:
        print(harmless(f"  Nothing was changed: {step['why']}."))
        return
    _say(
        f"  The best of the rewrites cut the loss from {step['before']:.2f} to {step['after']:.2f}:"
    )
    for old, new in step["changes"].values():
        print(harmless(f"    - {old}\n    + {new}"))


def _right(evaluation: ta.Evaluation) -> int:
    return sum(row.loss == 0 for row in evaluation.rows)


def _short(text: str) -> str:
    return textwrap.shorten(text, 200, placeholder=" …")


def _say(title: str, body: str = "") -> None:
    print(f"\n{title}", flush=True)
    if body:
        print(harmless(textwrap.indent(body, "    ")), flush=True)
