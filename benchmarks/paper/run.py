"""One run of ours: before, training, after; and the line that tells of it."""

from __future__ import annotations

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import textautograd as ta
from benchmarks.paper.graphs import Graph
from benchmarks.paper.lines import Line
from benchmarks.paper.metering import Metered, Tally, is_models
from benchmarks.paper.methods import METHODS, Method
from benchmarks.paper.questions import BINARY, Questions, load, with_wrong_answers
from benchmarks.paper.settings import Setting
from textautograd import nn, optim
from textautograd.data import Example
from textautograd.engines.base import Engine
from textautograd.errors import BadRequestError, UsageError

MakeEngine = Callable[[str, int], Engine]
"""(model, tokens of a reply where a request sets no limit) → engine."""

ROOT = Path(__file__).parents[2]
KEPT = ("step", "wrong", "failed", "before", "after", "accepted", "changes", "why", "gradients")


def ours(setting: Setting, root: Path, calls: Path, make: MakeEngine) -> Line:
    """Runs a setting; what was answered before is read from `calls`, so a run that was interrupted
    goes on where it was.

    Raises:
        UsageError: there is no such run of this task; before a call. EngineError: a call failed,
            for another reason than what it asked.
    """
    method = METHODS[setting.method]
    questions = load(setting.task, root, setting.seed, setting.sizes)
    tally = Tally(setting.tokens)
    engine = Metered(make(setting.model, setting.max_tokens), calls, tally)
    writer = Metered(make(setting.optimizer_model, setting.optimizer_max_tokens), calls, tally)
    agent = Graph(questions.graph(setting.reasoning, setting.stated), setting.max_tokens).to(engine)
    started = time.time()
    initial = agent.instructions()
    if method.only not in (None, *initial):
        raise UsageError(f"{setting.task} has no node {method.only}; it has {', '.join(initial)}")
    examples = with_wrong_answers(questions.train) if method.wrong_labels else questions.train
    form = questions.format if method.state_format else ""
    before = answers(agent, questions)
    tally.stage = "training"
    if form:
        last = agent.parts[agent.nodes[-1]["name"]].instruction
        last.data = f"{last.data} {form}"
    steps, stopped = train(setting, method, agent, questions, examples, writer)
    if tally.failed is not None:
        raise tally.failed
    tally.stage = "after"
    after = before if agent.instructions() == initial else answers(agent, questions)
    return {
        "key": setting.key(),
        **scores(questions, before, after),
        "indices": questions.indices,
        "initial": initial,
        "instructions": agent.instructions(),
        "steps": steps,
        "stopped": stopped,
        "cost": tally.found,
        "seconds": round(time.time() - started),
        "versions": versions(),
        "data": questions.digest,
        "error": None,
    }


def train(
    setting: Setting,
    method: Method,
    agent: Graph,
    questions: Questions,
    examples: list[Example],
    writer: Engine,
) -> tuple[list[dict[str, Any]], str | None]:
    """What each step on `examples` did, and why training ended early, if it did."""
    steps = setting.steps if method.steps is None else method.steps
    if not steps:
        return [], None
    parameters = dict(agent.named_parameters())
    if method.only is not None:
        parameters = {f"parts.{method.only}.instruction": agent.parts[method.only].instruction}
    shown = {"examples": setting.examples} if issubclass(method.optimizer, optim.SGD) else {}
    optimizer = method.optimizer(
        parameters.values(), engine=writer, seed=setting.seed, **shown, **method.arguments()
    )
    history = ta.fit(
        agent,
        examples,
        nn.ExactMatchLoss(questions.extract),
        optimizer,
        val=(questions.val if method.gate == "val" else []) or questions.train,
        steps=steps,
        batch_size=setting.batch_size,
        seed=setting.seed,
        rule=method.rule,
        engine=writer,
    )
    steps_made = [{name: step[name] for name in KEPT} for step in history.metrics]
    for step in steps_made:  # places in this checkout are named from its root
        step["failed"] = [text.replace(f"{ROOT}/", "") for text in step["failed"]]
    return steps_made, history.stopped


def answers(agent: Graph, questions: Questions) -> list[str | None]:
    """The held-out outputs; `None` for a sample that the provider refuses, for its length or what
    it says, and for one that the model answers with nothing. Any other error is raised: it says
    nothing about the agent."""
    loss_fn = nn.ExactMatchLoss(questions.extract)
    rows = ta.evaluate(agent, questions.test, loss_fn, progress=True).rows
    for row in rows:
        error = row.error
        if not (error is None or is_models(error) or isinstance(error, BadRequestError)):
            raise error
    return [row.output for row in rows]


def scores(
    questions: Questions, before: list[str | None], after: list[str | None]
) -> dict[str, Any]:
    """Right or wrong for each held-out question, by both scores; a failed one is wrong. And how
    many the most frequent answer alone would get right."""
    found: dict[str, Any] = {}
    for stage, outputs in (("before", before), ("after", after)):
        pairs = [(o, e.answer) for o, e in zip(outputs, questions.test, strict=True)]
        found[stage] = {  # of LIAR's verdicts, one that is not there would read as a No
            "exact": [int(o is not None and questions.exact(o, answer)) for o, answer in pairs],
            "lenient": [int(o is not None and questions.lenient(o, answer)) for o, answer in pairs],
            "failed": sum(output is None for output in outputs),
            "outputs": [(output or "")[:200] for output in outputs[:3]],
        }
    answers = Counter(example.answer for example in questions.test)
    found["most_frequent"] = answers.most_common(1)[0][1]
    if questions.task in BINARY:
        found["labels"] = [example.answer for example in questions.test]
    return found


def versions() -> dict[str, str]:
    """Of what a run is made with; `tree` is a digest of all code here."""
    return {
        "textautograd": ta.__version__,
        "tree": tree(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("aiohttp", "litellm")},
    }


@cache
def tree() -> str:
    """A digest of the code that a run is made with: the package, and what is beside this file."""
    found = hashlib.sha256()
    for place in (Path(ta.__file__).parent, Path(__file__).parent):
        for file in sorted(place.rglob("*.py")):
            found.update(f"{file.relative_to(place.parent)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]
