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
import time
from pathlib import Path

from textautograd.cli import main as command

TASKS = ("bbh/object_counting", "bbh/reasoning_about_colored_objects", "gsm8k")
SEEDS = (0, 1, 2)
MODEL = "local/qwen2.5-coder-1.5b"
SETTINGS = {
    "--model": [MODEL],
    "--sizes": ["20", "20", "50"],
    "--steps": ["4"],
    "--batch-size": ["5"],
    "--candidates": ["1"],
    "--examples": ["2"],
    "--max-tokens": ["256"],
}


def run(data: Path, out: Path) -> None:
    """Every task for the first seed, then for the next."""
    for seed in SEEDS:
        for task in TASKS:
            folder = out / f"{task.replace('/', '-')}-{seed}"
            if (folder / "result.json").exists():
                continue
            words = ["--task", task, "--data", str(data), "--seed", str(seed), "--out", str(folder)]
            for name, values in SETTINGS.items():
                words += [name, *values]
            started = time.time()
            code = command(["train", *words])
            with (out / "times.jsonl").open("a", encoding="utf-8") as file:
                line = {"folder": folder.name, "seconds": time.time() - started, "code": code}
                file.write(json.dumps(line) + "\n")


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
    for seed in SEEDS:
        for task in TASKS:
            folder = out / f"{task.replace('/', '-')}-{seed}"
            file = folder / "result.json"
            if not file.exists():
                lines.append(f"| {task} | {seed} | missing | | | | | | |")
                continue
            result = json.loads(file.read_text("utf-8"))
            before, after = result["before"], result["after"]
            calls, tokens = paid(folder / "calls.sqlite")
            n = before["questions"]
            lines.append(
                f"| {task} | {seed} | {before['exact']} → {after['exact']} of {n} "
                f"| {before['lenient']} → {after['lenient']} "
                f"| {before['failed']} → {after['failed']} "
                f"| {result['accepted']} of {result['steps']} | {calls} | {tokens} "
                f"| {minutes.get(folder.name, 0):.0f} |"
            )
    return "\n".join(lines)


def paid(cache: Path) -> tuple[int, int]:
    """Calls and tokens of a run, over all of its resumptions: what its cache holds."""
    with sqlite3.connect(cache) as connection:
        rows = [json.loads(value) for (value,) in connection.execute("select value from replies")]
    return len(rows), sum(sum(row["tokens"]) for row in rows)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="where bbh/ and gsm8k/ are")
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--report", action="store_true", help="only print the table")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.data is None:
            parser.error("--data is needed to run")
        run(arguments.data, arguments.out)
    print(report(arguments.out))


if __name__ == "__main__":
    main()
