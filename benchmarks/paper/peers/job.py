"""A job as its file tells it, the calls it makes, and the run that ends in a result.

Standard library only, as every peer's environment runs it.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import platform
import random
import re
import sys
import threading
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing it fetches prices
THREADS = 8
PEERS = Path(__file__).parents[2] / "timed" / "peers.txt"
Instructions = dict[str, str]
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


class Refused(RuntimeError):
    """A call that the server refuses for what it holds, or for its length."""


class Spent(BaseException):
    """The run's tokens are used up. No Exception, so no peer takes it for a failed call."""


class Gone(BaseException):
    """The server does not answer, or fails. It says nothing of the peer, whose run ends without a
    result and is made again; so no peer may take it for a call that failed."""


@dataclass(frozen=True)
class Example:
    """A question and its answer."""

    fields: dict[str, str]
    answer: str


@dataclass(frozen=True)
class Node:
    """`inputs`: name in the prompt → a field of the example, or "@node" for a node's output."""

    name: str
    instruction: str
    output_format: str | None
    inputs: dict[str, str]

    @property
    def states(self) -> bool:
        """Its value is what stands between tags at the end of the reply."""
        return "<output statement>" in (self.output_format or "")

    def value(self, reply: str) -> str:
        """What the next nodes see, and the score compares."""
        found = re.findall(r"<output statement>(.*?)</output statement>", reply, re.DOTALL)
        return found[-1].strip() if self.states and found else reply

    def read(self, fields: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Its inputs by name."""
        return {
            name: values[source[1:]] if source.startswith("@") else fields[source]
            for name, source in self.inputs.items()
        }


@dataclass(frozen=True)
class Job:
    """What is to be done; see `benchmarks.paper.peer` for who writes it."""

    graph: list[Node]
    train: list[Example]
    val: list[Example]
    test: list[Example]
    model: str
    optimizer_model: str
    api_base: str
    run: str
    max_tokens: int = 128
    optimizer_max_tokens: int = 512
    seed: int = 0
    batch_size: int = 4
    steps: int = 2
    tokens: int | None = None
    gate: bool = False
    score: str = "exact"

    @classmethod
    def load(cls, path: Path) -> Job:
        told = json.loads(path.read_text("utf-8"))
        told["graph"] = [Node(**node) for node in told["graph"]]
        for part in ("train", "val", "test"):
            told[part] = [Example(**example) for example in told[part]]
        return cls(**told)

    def instructions(self) -> Instructions:
        """As they are at the beginning."""
        return {node.name: node.instruction for node in self.graph}

    def run_again(self) -> float:
        """What has to run again after each node has changed in turn, in runs of the whole graph: a
        node and all that follows from it."""
        nodes = 0
        for node in self.graph:
            changed = {"@" + node.name}
            for later in self.graph:
                if changed & set(later.inputs.values()):
                    changed.add("@" + later.name)
            nodes += len(changed)
        return nodes / len(self.graph)

    def right(self, output: str, answer: str) -> bool:
        """The whole output is the answer; a verdict, if it begins so."""
        if self.score == "yes_or_no":
            return ("Yes" if output.strip().upper().startswith("YES") else "No") == answer
        return output.strip() == answer

    def feedback(self, output: str, answer: str) -> str:
        """What a system is told of an output."""
        if self.right(output, answer):
            return "The output is correct."
        return f'The expected output is: "{answer}".'

    def batches(self) -> Iterator[list[Example]]:
        """A batch for each step; each epoch in an order of its own."""
        drawn, left = random.Random(self.seed), list[Example]()
        for _ in range(self.steps):
            if not left:
                left = drawn.sample(self.train, len(self.train))
            yield left[: self.batch_size]
            left = left[self.batch_size :]

    def spent(self) -> int:
        """Tokens of training until now, as the server counts them.

        Raises:
            Spent: as many as are allowed.
        """
        used = sum(used for phase, used in self.used().items() if phase not in ("before", "after"))
        if self.tokens is not None and used >= self.tokens:
            raise Spent(f"{used} of {self.tokens} tokens")
        return used

    def used(self) -> dict[str, int]:
        """Tokens by phase."""
        phases = self.usage().items()
        return {name: p["input_tokens"] + p["output_tokens"] for name, p in phases}

    def usage(self) -> dict[str, dict[str, int]]:
        """What the server counted, by phase.

        Raises:
            Gone: it does not tell.
        """
        found: dict[str, dict[str, int]] = asked(f"{self.api_base}/usage?run={self.run}")
        return found


def asked(request: str | urllib.request.Request) -> Any:
    """The server's answer.

    Raises:
        Refused: it refuses the call. Gone: it is not there, or fails.
    """
    try:
        with _open(request) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        kind = Refused if error.code in (400, 413, 422) else Gone
        with error:
            raise kind(f"{error.code}: {error.read().decode(errors='replace')[:300]}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Gone(f"the server does not answer: {error!r}") from None


def blocks(texts: dict[str, str], shown: dict[str, str] | None = None) -> str:
    """Each text between tags of its name, numbered where a text holds such tags; `shown` may put
    other texts in their places."""
    everything = "\n".join(texts.values()).lower()
    number, suffix = 1, ""
    while any(f"<{s}{n.lower()}{suffix}" in everything for n in texts for s in ("", "/")):
        number += 1
        suffix = f"-{number}"
    places = (shown or texts).items()
    return "\n\n".join(f"<{n}{suffix}>\n{text}\n</{n}{suffix}>" for n, text in places)


def system(node: Node, instruction: str) -> str:
    """The system prompt of a node."""
    return "\n\n".join(part for part in (instruction, node.output_format) if part)


def messages(system: str, user: str) -> list[dict[str, str]]:
    """A call's; without a system prompt where there is none."""
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": user}]


class Chat:
    """Calls at temperature 0. None is made twice, as in the peers' own engines, which cache."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.known: dict[str, str] = {}
        self.lock = threading.Lock()

    def __call__(self, phase: str, sent: list[dict[str, str]], **more: Any) -> str:
        """The reply. `phase` is where the call is counted; all but backward and optimize are the
        forward model's.

        Raises:
            Spent: there are no tokens left for a call of training.
            Refused: the server refuses this call. Gone: it fails.
        """
        writes = phase in ("backward", "optimize")
        body = {
            "model": self.job.optimizer_model if writes else self.job.model,
            "messages": sent,
            "temperature": 0,
            "max_tokens": self.job.optimizer_max_tokens if writes else self.job.max_tokens,
            **more,
        }
        key = json.dumps(body)
        if key not in self.known:
            if self.job.tokens is not None and phase not in ("before", "after"):
                self.job.spent()
            text = self._send(phase, key)
            with self.lock:
                self.known[key] = text
        return self.known[key]

    def _send(self, phase: str, body: str) -> str:
        request = urllib.request.Request(
            f"{self.job.api_base}/chat/completions",
            body.encode(),
            {
                "Authorization": f"Bearer {self.job.run}/{phase}",
                "Content-Type": "application/json",
            },
        )
        return asked(request)["choices"][0]["message"]["content"] or ""

    def node(self, phase: str, node: Node, instruction: str, texts: dict[str, str]) -> str:
        """A node's whole reply."""
        return self(phase, messages(system(node, instruction), blocks(texts)))

    def output(self, phase: str, instructions: Instructions, example: Example) -> str:
        """The system's."""
        values: dict[str, str] = {}
        for node in self.job.graph:
            texts = node.read(example.fields, values)
            values[node.name] = node.value(self.node(phase, node, instructions[node.name], texts))
        return values[self.job.graph[-1].name]

    def outputs(self, phase: str, instructions: Instructions, examples: list[Example]) -> list[str]:
        """Of several, up to 8 at once."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda e: self.output(phase, instructions, e), examples))

    def score(self, instructions: Instructions, examples: list[Example]) -> float:
        """The share of right outputs."""
        found = zip(self.outputs("forward", instructions, examples), examples, strict=True)
        return sum(self.job.right(output, e.answer) for output, e in found) / len(examples)

    def evaluate(
        self, phase: str, instructions: Instructions, examples: list[Example]
    ) -> list[str | None]:
        """Of held-out examples; `None` for one that is refused. Else a failure is raised: it says
        nothing about the instructions."""

        def one(example: Example) -> str | None:
            try:
                return self.output(phase, instructions, example)
            except Refused as error:
                print(f"failed: {error}", file=sys.stderr)
                return None

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(one, examples))


@dataclass
class Record:
    """What is known of training so far; it stays when training fails."""

    instructions: Instructions
    settings: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)


class Evaluate(Protocol):
    """(phase, instructions, examples) → outputs, `None` for one that was refused."""

    def __call__(
        self, phase: str, instructions: Instructions, examples: list[Example], /
    ) -> list[str | None]: ...


Train = Callable[[Job, Record], None]


def revert(chat: Chat, record: Record, new: Instructions, before: float) -> tuple[bool, float]:
    """TextGrad's validation-revert: a step that scores less on the validation set is undone.
    Whether it stays, and the score that does."""
    after = before if new == record.instructions else chat.score(new, chat.job.val)
    if after < before:
        return False, before
    record.instructions = new
    return True, after


def main(prepare: Callable[[str, Job], tuple[Evaluate, Train]], packages: list[str]) -> None:
    """`METHOD JOB.json RESULT.json`: before, training, after. What training found is kept before
    the rest is run, which goes on from there."""
    method, job_file, result_file = sys.argv[1:]
    check_versions(packages)
    job, kept = Job.load(Path(job_file)), Path(result_file)
    evaluate, train = prepare(method, job)
    if kept.exists():
        result = json.loads(kept.read_text("utf-8"))
    else:
        result = trained(method, job, evaluate, train, packages)
        keep(kept, result)
    if result["after"] is None:
        result["after"] = evaluate("after", result["instructions"], job.test)
        keep(kept, result)
    result["usage"] |= job.usage()
    keep(kept, result)


def check_versions(packages: list[str]) -> None:
    """Ends the program where a package is not the one that rows of tables are named after."""
    pinned = dict(line.split("==") for line in PEERS.read_text("utf-8").split())
    for name in packages:
        found = importlib.metadata.version(name)
        if found != pinned.get(name, found):
            sys.exit(f"{name} is {found} here, and is measured as {pinned[name]}: see {PEERS.name}")


def trained(
    method: str, job: Job, evaluate: Evaluate, train: Train, packages: list[str]
) -> dict[str, Any]:
    """A result; "after" is not known yet, but where nothing was learnt."""
    record = Record(job.instructions())
    before = evaluate("before", record.instructions, job.test)
    error = None
    try:
        train(job, record)
    except Spent as spent:
        record.steps.append({"stopped": str(spent)})
    except Exception as failure:
        traceback.print_exc()
        error = told(failure)
    initial = job.instructions()
    versions = {name: importlib.metadata.version(name) for name in packages}
    try:
        usage = job.usage()
    except Gone:  # is asked again at the end
        usage = {}
    return {
        "before": before,
        "after": before if record.instructions == initial else None,
        "instructions": record.instructions,
        "initial": initial,
        "settings": {"method": method, **record.settings},
        "steps": record.steps,
        "versions": {"python": platform.python_version(), **versions},
        "error": error,
        "usage": usage,
    }


def keep(file: Path, result: dict[str, Any]) -> None:
    """Writes a result, whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1), "utf-8")
    new.replace(file)


def told(failure: BaseException) -> dict[str, Any]:
    """An exception for a result: where are its last frames, innermost last."""
    frames = traceback.extract_tb(failure.__traceback__)[-4:]
    return {
        "type": type(failure).__name__,
        "message": str(failure)[:1000],
        "where": [f"{Path(f.filename).name}:{f.lineno} {f.name}: {f.line}" for f in frames],
    }
