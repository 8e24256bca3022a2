"""What a setting would cost: the whole run with scripted replies, every answer of them wrong
(but LIAR's, where it is a No).

That is the most a run takes but for longer replies: every sample is wrong, so each has its backward
calls, no step is skipped, and the gate evaluates every candidate in full. Held-out questions count
twice, before and after. Tokens are those of cl100k_base, prices those that litellm ships.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from benchmarks.counted.meter import Meter, text
from benchmarks.paper.graphs import STATE
from benchmarks.paper.methods import METHODS
from benchmarks.paper.run import ours
from benchmarks.paper.settings import Setting
from textautograd import engines
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import UsageError

WORDS = {"reasoning": 130, "forward": 40, "judge": 30, "backward": 30, "optimize": 60}
"""Of a scripted reply: a node that reasons, one that does not; each part of the others."""


class Counting:
    """Scripted replies of these lengths, with the tokens of what is sent and said."""

    def __init__(self, name: str, meter: Meter) -> None:
        self.name = name
        self.meter = meter
        self.drawn = 0

    def __call__(self, request: Request) -> Reply:
        said = self.said(request)
        sent = sum(self.meter.count(message["content"]) + 4 for message in request.messages)
        return Reply(said, usage=Usage(sent, self.meter.count(said), calls=1))

    def said(self, request: Request) -> str:
        if request.schema is None:
            states = STATE in request.messages[0]["content"]
            return text(WORDS["reasoning" if states else "forward"])
        self.drawn += 1  # each rewrite is another one
        parts = request.schema["properties"]
        about = f"{request.purpose} {self.drawn}"
        words = text(WORDS[request.purpose]).split()[::-1]  # not copied from what agents say
        return json.dumps({name: " ".join([about, *words]) for name in parts})


def report(setting: Setting, root: Path) -> str:
    """Calls, tokens and cost of a setting, in words.

    Raises:
        UsageError: a peer's run, whose calls only it knows.
    """
    if METHODS[setting.method].peer:
        raise UsageError(f"{setting.method} is a peer: what it would cost only its run tells")
    meter = Meter()
    with tempfile.TemporaryDirectory() as place:
        line = ours(
            setting,
            root,
            Path(place) / "calls.sqlite",
            lambda name, _: engines.Scripted(Counting(name, meter)),
        )
    cost = line["cost"]
    cost["after"] = cost.get("after") or cost["before"]
    rows = [
        f"{setting.task}, {setting.method}, seed {setting.seed}, "
        f"{len(line['after']['exact'])} held out:"
    ]
    usd: float | None = 0.0
    for stage, purposes in cost.items():
        for purpose, (calls, sent, said) in purposes.items():
            model = setting.model if purpose == "forward" else setting.optimizer_model
            price = _price(model)
            known = price and price[0] * sent + price[1] * said
            usd = None if usd is None or known is None else usd + known
            paid = "price unknown" if known is None else f"${known:.2f}"
            rows.append(
                f"  {stage:8} {purpose:8} {model:14} {calls:6,} calls "
                f"{sent:10,} + {said:9,} tokens  {paid}"
            )
    rows.append(f"  in all {'at unknown prices' if usd is None else f'${usd:.2f}'}")
    return "\n".join(rows)


def _price(model: str) -> tuple[float, float] | None:
    """USD for a token in and a token out, if litellm knows them."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    found = litellm.model_cost.get(model)
    return found and (found["input_cost_per_token"], found["output_cost_per_token"])
