"""What a step costs grows as its work does: calls and lengths of prompts, by purpose."""

from __future__ import annotations

import json
from collections import Counter

import textautograd as ta
from textautograd import nn, optim
from textautograd.engines import Request, Scripted


def reply(request: Request) -> str:
    if request.schema is None:
        return "There are many of them."
    said = {"score": 0, "prompt": "Say only what was asked.", "feedback": "It names none of them."}
    return json.dumps({name: said.get(name, "Name them.") for name in request.schema["properties"]})


def step(agent: nn.Module, questions: list[str]) -> tuple[Counter[str], Counter[str]]:
    """Calls and characters sent, by purpose, of one optimizer step."""
    engine = Scripted(reply)
    agent.to(engine)
    judge = nn.JudgeLoss("Are they named?", engine=engine)
    ta.mean([judge(agent(question)) for question in questions]).backward()
    assert optim.SGD(agent.parameters(), engine=engine).step().accepted
    calls = Counter(call.purpose for call in engine.calls)
    sent: Counter[str] = Counter()
    for call in engine.calls:
        sent[call.purpose] += sum(len(message["content"]) for message in call.messages)
    return calls, sent


def chain(depth: int) -> nn.Module:
    return nn.Sequential(*[nn.LLM("Go on.") for _ in range(depth)])


def test_a_batch_costs_what_its_samples_do_and_one_rewrite() -> None:
    (calls2, sent2), (calls8, sent8) = (
        step(chain(2), [f"Which is number {i}?" for i in range(n)]) for n in (2, 8)
    )
    for purpose in ("forward", "judge", "backward"):
        assert (calls8[purpose], sent8[purpose]) == (4 * calls2[purpose], 4 * sent2[purpose])
    assert (calls8["optimize"], sent8["optimize"]) == (2, sent2["optimize"])


def test_each_step_of_a_chain_costs_the_same() -> None:
    sent = [step(chain(depth), ["Which?"])[1] for depth in (2, 3, 10)]
    for purpose in ("forward", "backward", "optimize"):
        two, three, ten = (found[purpose] for found in sent)
        assert ten - three == 7 * (three - two) > 0


def test_a_long_question_is_sent_where_it_is_an_input_and_nowhere_else() -> None:
    (calls, short), (again, long) = (step(chain(3), ["?" * length]) for length in (10, 1010))
    assert calls == again
    grown = {purpose: long[purpose] - short[purpose] for purpose in long}
    assert grown == {"forward": 1000, "judge": 0, "backward": 0, "optimize": 1000}
