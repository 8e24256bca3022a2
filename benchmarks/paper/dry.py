"""What a setting would cost: the whole run with scripted replies, every answer of them wrong
(but LIAR's, where it is a No).

A run takes more than that only by longer replies and by those that have to be asked for again:
every sample is wrong, so each has its backward calls, no step is skipped, and the gate evaluates
every candidate in full. Held-out questions count twice, before and after. Tokens are those of
cl100k_base, prices those that litellm ships.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.counted.meter import Meter, text
from benchmarks.paper.graphs import STATE
from benchmarks.paper.methods import METHODS
from benchmarks.paper.run import ours
from benchmarks.paper.settings import Setting
from textautograd import engines
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import DataError, UsageError
from textautograd.terminal import tell

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


HEAD = """\
| task | method | seeds | agent calls | backward | rewriting | tokens in | tokens out | cost |
|---|---|---|---|---|---|---|---|---|"""


def report(settings: list[Setting], root: Path) -> str:
    """Calls, tokens and cost of settings, as a table; the same with another seed is not run again.

    What is not counted is named at the end: peers, tasks whose file is not there, runs that there
    cannot be.

    Raises:
        UsageError: nothing can be counted, and why.
    """
    meter = Meter()
    absent: dict[str, DataError] = {}
    refused: dict[str, UsageError] = {}
    rows: dict[Setting, Cost] = {}
    for setting in settings:
        about = replace(setting, seed=0, sizes=tuple(setting.sizes))
        if about in rows:
            rows[about].seeds += 1
        elif METHODS[setting.method].peer:
            refused[setting.method] = UsageError(
                "it is a peer: what it costs only its run tells; it may spend --tokens"
            )
        elif setting.task not in absent:
            tell(f"counting {label(setting)}")
            try:
                rows[about] = cost(setting, root, meter)
            except DataError as error:
                absent[setting.task] = error
            except UsageError as error:
                refused[f"{setting.task}, {setting.method}"] = error
    left_out = [f"{about}: {why}" for about, why in (absent | refused).items()]
    if not rows:
        raise UsageError(left_out[0])
    found = [row(setting, cost) for setting, cost in rows.items()]
    usd = [cost.usd and cost.usd * cost.seeds for cost in rows.values()]
    unknown = usd.count(None)
    total = f"In all ${sum(each or 0 for each in usd):.2f}"
    if unknown == len(rows):
        total = "No price is known"
    elif unknown:
        total += f", and {unknown} rows at unknown prices"
    return "\n".join([HEAD, *found, "", total, *(f"Not counted: {each}" for each in left_out)])


@dataclass
class Cost:
    """Of one seed: calls by purpose, tokens in and out, USD if prices are known."""

    seeds: int = 1
    calls: Counter[str] = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=lambda: [0, 0])
    usd: float | None = 0.0


def cost(setting: Setting, root: Path, meter: Meter) -> Cost:
    """What one setting costs."""
    with tempfile.TemporaryDirectory() as place:
        line = ours(
            setting,
            root,
            Path(place) / "calls.sqlite",
            lambda name, _: engines.Scripted(Counting(name, meter)),
        )
    stages = line["cost"]
    if METHODS[setting.method].steps != 0:  # a run whose instructions change asks again
        stages["after"] = stages.get("after") or stages["before"]
    found = Cost()
    for purposes in stages.values():
        for purpose, (calls, sent, said) in purposes.items():
            price = _price(setting.model if purpose == "forward" else setting.optimizer_model)
            found.calls[purpose] += calls
            found.tokens[0] += sent
            found.tokens[1] += said
            usd = price and price[0] * sent + price[1] * said
            found.usd = None if found.usd is None or usd is None else found.usd + usd
    return found


def row(setting: Setting, found: Cost) -> str:
    """Of the table; sums over seeds."""
    numbers = [found.calls[purpose] for purpose in ("forward", "backward", "optimize")]
    cells = [f"{found.seeds * number:,}" for number in (*numbers, *found.tokens)]
    usd = "unknown" if found.usd is None else f"${found.seeds * found.usd:.2f}"
    task, method = label(setting).split(" ", 1)
    return f"| {task} | {method} | {found.seeds} | {' | '.join(cells)} | {usd} |"


def label(setting: Setting) -> str:
    """Task, method, and what tells it from others of that method."""
    tokens = f", {setting.tokens:,} tokens" if setting.tokens else ""
    stated = ", form stated" if setting.stated else ""
    return f"{setting.task} {setting.method}{stated}{tokens}"


def _price(model: str) -> tuple[float, float] | None:
    """USD for a token in and a token out, if litellm knows them."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    found = litellm.model_cost.get(model, {})
    price = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if None in price else price
