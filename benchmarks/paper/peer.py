"""One run of a peer: a job for its script, which runs in its own environment, and its result."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from benchmarks.paper.lines import Line
from benchmarks.paper.methods import METHODS
from benchmarks.paper.numbers import is_count
from benchmarks.paper.questions import Questions, load
from benchmarks.paper.run import scores, tree
from benchmarks.paper.settings import Setting, digest
from textautograd.checking import misfit
from textautograd.data import Example
from textautograd.errors import UsageError
from textautograd.files import read_json, write_whole

COUNTS = {"calls": int, "input_tokens": int, "output_tokens": int}
ERROR = {"type": str, "message": str}
RESULT = {"before": [str | None], "after": [str | None], "steps": [dict], "settings": dict}
RESULT |= {"initial": {str: str}, "instructions": {str: str}, "versions": {str: str}}
RESULT |= {"error": dict | None, "usage": {str: COUNTS}}


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
    told = {**job(setting, questions, api_base, ""), "tokens": tokens}
    known = {name: value for name, value in told.items() if name != "api_base"}
    place = f"{setting.task.replace('/', '-')}-{setting.method}-{setting.seed}-{digest(known)}"
    folder = out / "peers" / place
    folder.mkdir(parents=True, exist_ok=True)
    job_file, result_file = folder / "job.json", folder / "result.json"
    run = f"{place}-{time.time_ns()}"
    if result_file.exists():  # the run goes on under its name
        run = loaded(job_file).get("run")
        if not isinstance(run, str):
            raise UsageError(f"{job_file} is damaged: delete {folder} to run it again")
    write_whole(job_file, json.dumps({**told, "run": run}).encode())
    started = time.time()
    if not (result_file.exists() and loaded(result_file).get("after") is not None):
        check_meters(api_base)
        command = [peers / "bin" / "python", "-m", f"benchmarks.paper.peers.{script}", name]
        with (folder / "log.txt").open("w") as log:
            subprocess.run(
                [*command, job_file, result_file],
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            )
    if not result_file.exists():
        raise UsageError(f"{script} left no result: {last_line(folder / 'log.txt')}")
    result = loaded(result_file)
    if result.get("after") is None:
        raise UsageError(f"{script} is not done, and goes on next time: see {folder / 'log.txt'}")
    why = misfit({"usage": {}} | result, RESULT)
    if why is None and result["error"] is not None:
        why = misfit(result["error"], ERROR, "its error")
    if why:
        raise UsageError(f"{result_file} is damaged, {why}: delete {folder} to run it again")
    if {len(result["before"]), len(result["after"])} != {len(questions.test)}:
        raise UsageError(f"{result_file} is about other questions: delete {folder}, or mend it")
    usage = result.get("usage") or {}
    phases = ["before"] if result["instructions"] == result["initial"] else ["before", "after"]
    if not set(phases) <= usage.keys():
        usage |= asked_of(api_base, run, phases, folder)
        write_whole(result_file, json.dumps({**result, "usage": usage}, indent=1).encode())
    return {
        "key": setting.key(),
        **scores(questions, result["before"], result["after"]),
        "indices": questions.indices,
        "initial": result["initial"],
        "instructions": result["instructions"],
        "steps": result["steps"],
        "stopped": None,
        "settings": {**result["settings"], "tokens": tokens},
        "cost": cost(usage),
        "seconds": round(time.time() - started),
        "versions": {**result["versions"], "tree": tree()},
        "data": questions.digest,
        "error": result["error"],
    }


def last_line(log: Path) -> str:
    """What a log ends with, and where it is."""
    said = log.read_text("utf-8", "replace").strip() if log.exists() else ""
    return f"{said.rpartition(chr(10))[2]:.300} (see {log})"


def loaded(file: Path) -> dict[str, Any]:
    """An object of a file.

    Raises:
        UsageError: it holds none.
    """
    try:
        found = read_json(file)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{file} is damaged: delete {file.parent} to run it again")
    return found


def job(setting: Setting, questions: Questions, api_base: str, run: str) -> dict[str, Any]:
    """What a peer's script is told."""

    def examples(part: list[Example]) -> list[dict[str, Any]]:
        return [{"fields": {"question": e.question, **e.extra}, "answer": e.answer} for e in part]

    return {
        "graph": questions.graph(setting.reasoning, setting.stated),
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


def check_meters(api_base: str) -> None:
    """Finds out, before a peer costs anything, whether a server counts what it costs.

    Raises:
        UsageError: it does not, or there is none.
    """
    try:
        found = usage_of(api_base, "none")
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        found = error
    if found != {}:
        raise UsageError(
            f"{api_base} is no benchmarks.paper.server, which counts what a peer costs "
            f"(GET {api_base}/usage: {found!r:.80}): start that in front of the models"
        )


def usage_of(api_base: str, run: str) -> Any:
    """What the server says of a run."""
    try:
        with urllib.request.urlopen(f"{api_base}/usage?run={run}", timeout=60) as reply:
            return json.loads(reply.read(2**24))
    except HTTPError as error:
        error.close()
        raise


def asked_of(api_base: str, run: str, phases: list[str], folder: Path) -> dict[str, dict[str, int]]:
    """What the server counted in a run, by phase.

    Raises:
        UsageError: it is gone, or does not know these phases of the run.
    """
    try:
        found = usage_of(api_base, run)
    except (OSError, ValueError, HTTPException, RecursionError) as error:
        raise UsageError(
            f"what {run} cost is not known, as {api_base} failed ({error}): its result stays in "
            f"{folder}, and is used when the server answers"
        ) from None
    fits = not (misfit(found, dict.fromkeys(phases, COUNTS)) or misfit(found, {str: COUNTS}))
    if not fits or not all(is_count(found[p][name]) for p in found for name in COUNTS):
        raise UsageError(
            f"{api_base} does not know what {run} cost: delete {folder} to run it again"
        )
    counted: dict[str, dict[str, int]] = found
    return counted


def cost(phases: dict[str, dict[str, int]]) -> dict[str, dict[str, list[int]]]:
    """Calls, input and output tokens by stage and purpose."""
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
