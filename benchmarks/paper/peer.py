"""One run of a peer: a job for its script, which runs in its own environment, and its result."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.paper.lines import Line
from benchmarks.paper.methods import METHODS
from benchmarks.paper.questions import Questions, load
from benchmarks.paper.run import scores
from benchmarks.paper.settings import Setting
from textautograd.data import Example
from textautograd.errors import UsageError


def theirs(
    setting: Setting, tokens: int | None, root: Path, out: Path, api_base: str, peers: Path
) -> Line:
    """Runs a setting in the environment `peers`, through the metering server at `api_base`.

    `tokens` is what training may cost, where the peer can be held to it.
    """
    found = METHODS[setting.method].peer
    assert found
    script, name = found
    questions = load(setting.task, root, setting.seed, setting.sizes)
    place = f"{setting.task.replace('/', '-')}-{setting.method}-{setting.seed}"
    folder = out / "peers" / place
    folder.mkdir(parents=True, exist_ok=True)
    run = f"{place}-{time.time_ns()}"
    told = {**job(setting, questions, api_base, run), "tokens": tokens}
    (folder / "job.json").write_text(json.dumps(told), "utf-8")
    result_file = folder / "result.json"
    result_file.unlink(missing_ok=True)
    started = time.time()
    command = [peers / "bin" / "python", "-m", f"benchmarks.paper.peers.{script}", name]
    with (folder / "log.txt").open("w") as log:
        subprocess.run(
            [*command, folder / "job.json", result_file],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        )
    if not result_file.exists():
        raise UsageError(f"{script} left no result: see {folder / 'log.txt'}")
    result = json.loads(result_file.read_text("utf-8"))
    return {
        "key": setting.key(),
        **scores(questions, result["before"], result["after"]),
        "indices": questions.indices,
        "initial": result["initial"],
        "instructions": result["instructions"],
        "steps": result["steps"],
        "stopped": None,
        "settings": {**result["settings"], "tokens": tokens},
        "cost": cost(api_base, run),
        "seconds": round(time.time() - started),
        "versions": result["versions"],
        "error": result["error"],
    }


def job(setting: Setting, questions: Questions, api_base: str, run: str) -> dict[str, Any]:
    """What a peer's script is told."""

    def examples(part: list[Example]) -> list[dict[str, Any]]:
        return [{"fields": {"question": e.question, **e.extra}, "answer": e.answer} for e in part]

    return {
        "graph": questions.graph(setting.reasoning),
        "score": "yes_or_no" if questions.kind == "liar" else "exact",
        "train": examples(questions.train),
        "val": examples(questions.val or questions.train),
        "test": examples(questions.test),
        "model": setting.model,
        "optimizer_model": setting.optimizer_model,
        "api_base": api_base,
        "run": run,
        "max_tokens": setting.max_tokens,
        "optimizer_max_tokens": setting.optimizer_max_tokens,
        "seed": setting.seed,
        "batch_size": setting.batch_size,
        "steps": setting.steps,
        "gate": True,
    }


def cost(api_base: str, run: str) -> dict[str, dict[str, list[int]]]:
    """Calls, input and output tokens by stage and purpose, as the server counted them."""
    with urllib.request.urlopen(f"{api_base}/usage?run={run}") as reply:
        phases = json.load(reply)
    found: dict[str, dict[str, list[int]]] = {}
    for phase, counts in phases.items():
        stage = phase if phase in ("before", "after") else "training"
        purpose = "forward" if stage != "training" else phase or "unknown"
        found.setdefault(stage, {})[purpose] = [
            counts["calls"],
            counts["input_tokens"],
            counts["output_tokens"],
        ]
    return found
