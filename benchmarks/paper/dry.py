"""What a setting would cost: the whole run with scripted replies, in which every step is accepted.

The agent answers everything wrong; each rewrite gets one more of the gate's questions right than
what it replaces, so it is kept, and the next step is paid for anew. That is the dearest run by
calls: a rejected rewrite leaves calls to the cache, a larger gain leaves fewer wrong samples, and
without a gain nothing is kept. (Which question is right matters, by a call or so a step, where the
gate has the training questions and a batch is a part of them.) A run takes more than that only by
longer replies, and by those that have to be asked for again: refused, malformed, cut off or lost.
Tokens are those of cl100k_base, prices those that litellm ships.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from zlib import crc32

from benchmarks.counted.meter import Meter, text
from benchmarks.paper.graphs import STATE
from benchmarks.paper.methods import METHODS
from benchmarks.paper.questions import Questions, load, with_wrong_answers
from benchmarks.paper.run import ours
from benchmarks.paper.settings import Setting
from textautograd import engines
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import DataError, UsageError
from textautograd.terminal import tell

WORDS = {"reasoning": 130, "forward": 40, "judge": 30, "backward": 30, "optimize": 60}
"""Of a scripted reply: a node that reasons, one that does not; each part of the others."""
NUMBERED = "rewritten-"


class Script:
    """What the models of a run say: with every step they answer one more of the gate's questions
    right. Rewrites are numbered by step, and outputs by the newest that they are due to. Each
    request has another reply, so that none of the next requests is the same as another."""

    def __init__(self, setting: Setting, questions: Questions) -> None:
        method, train = METHODS[setting.method], questions.train
        gate = (questions.val if method.gate == "val" else []) or train
        train = with_wrong_answers(train) if method.wrong_labels else train
        self.questions = questions
        self.right = {e.question: e.answer for e in [*train, *gate]}
        asked = gate if method.gate else []  # without a gate all is kept: none need be right
        self.gate = list(dict.fromkeys(example.question for example in asked))
        inputs = questions.graph(setting.reasoning)[-1]["inputs"]
        self.hints = [f"<{name}" for name, source in inputs.items() if source.startswith("@")]
        self.steps = 0
        self.proposing = False

    def said(self, request: Request) -> str:
        """A reply."""
        own = str(crc32(str(request).encode(errors="replace")))
        if request.schema is None:
            self.proposing = False
            prompt = "\n".join(message["content"] for message in request.messages)
            return self.answered(prompt, own)
        if request.purpose == "optimize" and not self.proposing:  # the first of its step
            self.steps, self.proposing = self.steps + 1, True
        about = f"{NUMBERED}{self.steps}" if request.purpose == "optimize" else request.purpose
        words = text(WORDS[request.purpose]).split()[::-1]  # not copied from what agents say
        parts = request.schema["properties"]
        return json.dumps({n: " ".join([about, n, own, *words]) for n in parts})

    def answered(self, prompt: str, own: str) -> str:
        """An output of one of the agent's nodes."""
        newest = max(map(int, re.findall(rf"{NUMBERED}(\d+)", prompt)), default=0)
        states = STATE in prompt
        words = f"{own} {text(WORDS['reasoning' if states else 'forward'])}"
        if not any(name in prompt for name in self.hints):
            return f"{NUMBERED}{newest} {words}" if newest else words
        question = next((q for q in self.right if f">\n{q}\n</" in prompt), None)
        if question in self.gate[:newest]:
            answer = self.right[question]
            return f"{words} <output statement>{answer}</output statement>" if states else answer
        if question is not None and self.questions.exact(words, self.right[question]):
            return f"Yes, {words}"  # what is no Yes is a No to LIAR
        return words


class Counting:
    """A model that says what is scripted, with the tokens of what is sent and said."""

    def __init__(self, script: Script, meter: Meter) -> None:
        self.script = script
        self.meter = meter

    def __call__(self, request: Request) -> Reply:
        said = self.script.said(request)
        sent = sum(self.meter.count(message["content"]) + 4 for message in request.messages)
        return Reply(said, usage=Usage(sent, self.meter.count(said), calls=1))


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
    script = Script(setting, load(setting.task, root, setting.seed, setting.sizes))
    with tempfile.TemporaryDirectory() as place:
        line = ours(
            setting,
            root,
            Path(place) / "calls.sqlite",
            lambda *_: engines.Scripted(Counting(script, meter)),
        )
    found = Cost()
    for purposes in line["cost"].values():
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
    """USD for a token in and a token out, if litellm knows them. It lists most models without the
    provider that a name can begin with. (Its own look-up asks servers of some providers.)"""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm

    provider, _, name = model.partition("/")
    found = litellm.model_cost.get(model) or litellm.model_cost.get(name, {})
    if model not in litellm.model_cost:
        found = found if str(found.get("litellm_provider")).startswith(provider) else {}
    price = found.get("input_cost_per_token"), found.get("output_cost_per_token")
    return None if None in price else price
