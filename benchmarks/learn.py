"""Trains the paper's agent on real questions with real models, and reports what it brought.

    python -m benchmarks.learn --data DIR --out DIR            run what is missing, in order
    python -m benchmarks.learn --out DIR --report              the table of what is there

Each run is one `textautograd train` in a directory of its own, which it resumes; a run that has a
result is not run again. Held-out questions are the same for every seed, training and gate questions
are drawn by it. The settings below were fixed before the first run.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import time
from pathlib import Path

from textautograd.cli import main as command

MODEL = "local/qwen2.5-coder-1.5b"
FULL = ["--sizes", "20", "20", "50", "--steps", "4"]
SMALL = ["--sizes", "20", "12", "30", "--steps", "3"]  # measured to be what fits
RUNS = [
    ("bbh/object_counting", 0, FULL),
    ("bbh/reasoning_about_colored_objects", 0, SMALL),
    ("gsm8k", 0, SMALL),
    ("bbh/object_counting", 1, FULL),
    ("bbh/object_counting", 2, FULL),
    ("bbh/reasoning_about_colored_objects", 1, SMALL),
    ("gsm8k", 1, SMALL),
    ("bbh/reasoning_about_colored_objects", 2, SMALL),
    ("gsm8k", 2, SMALL),
]
SETTINGS = ["--model", MODEL, "--batch-size", "5", "--candidates", "1", "--examples", "2"]
SETTINGS += ["--max-tokens", "256"]


def folder_of(out: Path, task: str, seed: int) -> Path:
    """Where a run is kept."""
    return out / f"{task.replace('/', '-')}-{seed}"


def run(data: Path, out: Path) -> bool:
    """Every run that has no result yet, in order. Whether none failed."""
    codes = []
    out.mkdir(parents=True, exist_ok=True)
    for task, seed, size in RUNS:
        folder = folder_of(out, task, seed)
        if (folder / "result.json").exists():
            continue
        print(f"{task}, seed {seed}", flush=True)
        words = ["--task", task, "--data", str(data), "--seed", str(seed), "--out", str(folder)]
        started = time.time()
        code = command(["train", *words, *size, *SETTINGS, "--cache", str(out / "calls.sqlite")])
        with (out / "times.jsonl").open("a", encoding="utf-8") as file:
            line = {"folder": folder.name, "seconds": time.time() - started, "code": code}
            file.write(json.dumps(line) + "\n")
        codes.append(code)
    return not any(codes)


def report(out: Path) -> str:
    """A Markdown table with one row per run."""
    lines = [
        "| task | seed | exact, before → after | lenient, before → after | failed | accepted "
        "| calls | tokens | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    minutes: dict[str, float] = {}
    if (out / "times.jsonl").exists():
        for text in (out / "times.jsonl").read_text("utf-8").splitlines():
            line = json.loads(text)
            minutes[line["folder"]] = minutes.get(line["folder"], 0) + line["seconds"] / 60
    for task, seed, _ in RUNS:
        folder = folder_of(out, task, seed)
        file = folder / "result.json"
        if not file.exists():
            lines.append(f"| {task} | {seed} | missing | | | | | | |")
            continue
        result = json.loads(file.read_text("utf-8"))
        before, after = result["before"], result["after"]
        calls, tokens = paid(folder / "calls.sqlite", out / "calls.sqlite")
        n = before["questions"]
        lines.append(
            f"| {task} | {seed} | {before['exact']} → {after['exact']} of {n} "
            f"| {before['lenient']} → {after['lenient']} "
            f"| {before['failed']} → {after['failed']} "
            f"| {result['accepted']} of {result['steps']} | {calls} | {tokens} "
            f"| {minutes.get(folder.name, 0):.0f} |"
        )
    return "\n".join(lines)


def paid(run: Path, shared: Path) -> tuple[int, int]:
    """Calls and tokens of a run, over all of its resumptions, as if it had run alone: its cache has
    its calls, the shared one what each of them took when it was made."""
    with sqlite3.connect(shared) as connection:
        tokens = {
            key: sum(json.loads(value)["tokens"])
            for key, value in connection.execute("select key, value from replies")
        }
    with sqlite3.connect(run) as connection:
        keys = [key for (key,) in connection.execute("select key from replies")]
    return len(keys), sum(tokens[key] for key in keys)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="where bbh/ and gsm8k/ are")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--report", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.report and arguments.data is None:
        parser.error("--data is needed to run")
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(
            f"argument --data: there is no directory {arguments.data}; `textautograd train "
            "--download` fetches what is published"
        )
    fine = arguments.report or run(arguments.data, arguments.out)
    print(report(arguments.out))
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    main()
