"""Tokens of one optimizer step, as the work grows: by batch, depth, width and prompt length.

    python -m benchmarks.cost                  ours
    python -m benchmarks.cost --peers DIR      beside TextGrad and OptoPrime
    python -m benchmarks.cost --limit          ours with questions of up to 100,000 words, and
                                               max_input_tokens=4000
    python -m benchmarks.cost --data DIR       the estimate that the limit goes by, per file

DIR is a virtual environment with textgrad==0.1.8 and trace-opt==0.1.3.8. No model runs: replies
have a fixed length, and what every system sends is counted with the tokenizer cl100k_base.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PHASES = ["forward", "loss", "backward", "step"]


def measure(python: str, module: str) -> dict[tuple[str, int], dict[str, list[int]]]:
    """What a system's side prints: phase → calls, input tokens, output tokens."""
    ran = subprocess.run(
        [python, "-m", f"benchmarks.counted.{module}"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise SystemExit(f"{module} failed:\n{ran.stderr[-2000:]}")
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    return {(line["case"], line["size"]): line["phases"] for line in lines}


def row(phases: dict[str, list[int]]) -> list[Any]:
    """Tokens of forward and loss, of backward, of the step; of all three; calls."""
    tokens = {phase: phases[phase][1] + phases[phase][2] for phase in PHASES}
    first = tokens["forward"] + tokens["loss"]
    calls = sum(phases[phase][0] for phase in PHASES)
    return [first, tokens["backward"], tokens["step"], sum(tokens.values()), calls]


def limited(most: int = 4000) -> None:
    """One step of the two-step agent with a limit on prompts."""
    from benchmarks.counted.meter import CRITERION, Meter, text
    from benchmarks.counted.ours import TwoSteps, answering
    from textautograd import engines, nn, optim

    print("| words | calls | summaries | tokens | longest prompt (unlimited) |")
    print("|---|---|---|---|---|")
    for words in (10, 100, 1000, 10000, 100000):
        cells: list[list[int]] = []
        for limit in (None, most):
            meter = Meter()
            engine = engines.Scripted(answering(meter))
            engine.max_input_tokens = limit
            agent = TwoSteps("Extract the facts.", "Answer the question.").to(engine)
            output = agent(text(words))
            judge = nn.JudgeLoss(CRITERION, engine=engine)
            judge(output).backward()
            meter.phase = "step"
            assert optim.SGD(agent.parameters(), engine=engine).step().accepted
            asked = [c for c in engine.calls if c.purpose in ("backward", "optimize")]
            longest = max(sum(meter.count(m["content"]) for m in c.messages) for c in asked)
            tokens = sum(sum(found[1:]) for found in meter.take().values())
            cells.append([len(engine.calls), tokens, longest])
        (before, _, unlimited), (calls, tokens, longest) = cells
        print(
            f"| {words:,} | {calls} | {calls - before} | {tokens:,} | {longest:,} ({unlimited:,}) |"
        )


def estimated(data: Path) -> None:
    """How the estimate compares with a tokenizer, by file."""
    from benchmarks.counted.meter import Meter
    from textautograd.prompts.size import tokens

    meter = Meter()
    print("| file | estimate ÷ cl100k_base | lowest for 1,000 characters |")
    print("|---|---|---|")
    for file in sorted(
        p for p in data.rglob("*") if p.suffix in (".json", ".jsonl", ".tsv", ".py")
    ):
        text = file.read_text("utf-8", errors="replace")[:200_000]
        if not text:
            continue
        pieces = [text[i : i + 1000] for i in range(0, len(text), 1000)]
        ratios = [tokens(piece) / meter.count(piece) for piece in pieces]
        print(f"| {file.name} | {tokens(text) / meter.count(text):.2f} | {min(ratios):.2f} |")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, help="a virtual environment with the peers")
    parser.add_argument("--limit", action="store_true", help="the cost of a limit on prompts")
    parser.add_argument("--data", type=Path, help="files to compare the estimate of tokens on")
    arguments = parser.parse_args()
    if arguments.limit:
        return limited()
    if arguments.data:
        if not arguments.data.is_dir():
            parser.error(f"argument --data: there is no directory {arguments.data}")
        return estimated(arguments.data)
    if arguments.peers and not (arguments.peers / "bin" / "python").is_file():
        parser.error(f"argument --peers: there is no {arguments.peers / 'bin' / 'python'}")
    systems = {"ours": measure(sys.executable, "ours")}
    if arguments.peers:
        python = str(arguments.peers / "bin" / "python")
        systems["TextGrad"] = measure(python, "with_textgrad")
        systems["OptoPrime"] = measure(python, "with_trace")
    names = list(systems)
    columns = [f"{n}: forward + loss / backward / step = tokens (calls)" for n in names]
    if len(names) > 1:
        columns += [f"{n} ÷ ours" for n in names[1:]]
    print(f"| case | size | {' | '.join(columns)} |")
    print("|" + "---|" * (len(columns) + 2))
    for case, size in systems["ours"]:
        rows = [row(found[case, size]) for found in systems.values()]
        cells = [f"{r[0]:,} / {r[1]:,} / {r[2]:,} = {r[3]:,} ({r[4]})" for r in rows]
        cells += [f"{r[3] / rows[0][3]:.1f}" for r in rows[1:]]
        print(f"| {case} | {size:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
