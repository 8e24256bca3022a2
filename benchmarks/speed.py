"""How much time the framework adds to the calls it makes, ours and others' side by side.

    python -m venv DIR && DIR/bin/pip install -r benchmarks/timed/peers.txt      once, if wanted
    python -m benchmarks.speed [--peers DIR] [--out DIR] [--repeat 5]

Every system runs in a process of its own against one server that answers each call after 50 ms, so
the least that a program can take is known: the calls of its critical path, one after the other.
Systems are timed in turn, case by case. Writes speed.json (every measurement) and speed.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.paper.numbers import at_least
from benchmarks.timed.chart import chart
from benchmarks.timed.worker import ask

HERE = Path(__file__).resolve().parent
PATHS = {  # calls one after the other: ours, TextGrad's
    "wide16": {"ours": 4, "litellm": 4, "textgrad": 6},
    "batch32": {"ours": 5, "litellm": 5, "textgrad": 7},
    "deep12": {"ours": 23, "litellm": 23, "textgrad": 24},
    "evaluate1000": dict.fromkeys(("ours", "litellm", "dspy"), 1000 / 64),
    "bare aiohttp": {"ours": 1000 / 64},
    "bare litellm": {"litellm": 1000 / 64},
}
CALLS = {
    "wide16": {"ours": 19, "textgrad": 52},
    "batch32": {"ours": 130, "textgrad": 226},
    "deep12": {"ours": 23, "textgrad": 35},
    "evaluate1000": {"ours": 1000, "dspy": 1000},
}
MODULES = {
    "ours": "textautograd",
    "textgrad": "textgrad",
    "trace": "opto.trace",
    "dspy": "dspy",
    "litellm": "litellm",
}
HEAVY = ("litellm", "openai", "httpx", "pydantic", "aiohttp", "numpy", "asyncio")

Row = dict[str, Any]


class Worker:
    """A system in a process of its own."""

    def __init__(self, system: str, command: list[str], folder: str) -> None:
        self.system = system
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(Path(folder) / f"{system}.log", "w", encoding="utf-8"),
            text=True,
            cwd=HERE.parent if system in ("ours", "litellm") else folder,
            env={
                **os.environ,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "HOME": folder,
                "XDG_CACHE_HOME": folder,
            },
        )
        self.log = Path(folder) / f"{system}.log"
        self.cases: list[str] = self._answer()

    def run(self, case: str) -> dict[str, float]:
        """One run of a case."""
        assert self.process.stdin
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        figures: dict[str, float] = self._answer()
        return figures

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.system} failed:\n{self.log.read_text('utf-8')[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """Lets it end."""
        self.process.communicate()


@contextmanager
def server(latency_ms: float) -> Iterator[str]:
    """The chat server's base URL, while it runs."""
    command = [sys.executable, "-m", "benchmarks.timed.server", "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        try:
            ask(url, "/reset")
            yield url
        finally:
            process.terminate()


def commands(url: str, peers: Path | None) -> dict[str, list[str]]:
    """How each system is started."""
    ours = [sys.executable, "-m", "benchmarks.timed.ours", url]
    found = {"ours": [*ours, "http"], "litellm": [*ours, "litellm"]}
    if peers is not None:
        python = peers.absolute() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        if not python.exists():
            raise SystemExit(f"{peers} is no environment: make it as `--help` says")
        for name in ("textgrad", "dspy", "trace"):
            found[name] = [str(python), str(HERE / "timed" / f"peer_{name}.py"), url]
    return found


def measured(url: str, peers: Path | None, repeat: int, only: str | None) -> list[Row]:
    """Every run of every case, the systems in turn."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = [Worker(name, c, folder) for name, c in commands(url, peers).items()]
        for worker in workers:
            stack.callback(worker.close)
        for case in dict.fromkeys(case for worker in workers for case in worker.cases):
            if only is not None and only not in case:
                continue
            for _ in range(repeat if not case.endswith("00000") else 1):
                for worker in workers:
                    if case in worker.cases:
                        figures = worker.run(case)
                        rows.append({"case": case, "system": worker.system, **figures})
                        right = CALLS.get(case, {}).get(worker.system, figures["calls"])
                        if figures["calls"] != right:
                            raise SystemExit(f"{case}, {worker.system}: {figures}, not {right}")
            print(f"  {case}", file=sys.stderr, flush=True)
    return rows


def imports(peers: Path | None, repeat: int) -> list[Row]:
    """Seconds that an import takes in a fresh interpreter, beyond the interpreter's own start, from
    byte code, as everywhere but on the first import."""
    code = "import sys, time; t = time.perf_counter(); import {}; t = time.perf_counter() - t; "
    code += "print(t, *(m for m in {!r} if m in sys.modules))"
    environment = os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    rows: list[Row] = []
    for system, command in commands("", peers).items():
        for run in range(repeat + 1):
            output = subprocess.check_output(
                [command[0], "-c", code.format(MODULES[system], HEAVY)],
                cwd=HERE.parent if system == "ours" else tempfile.gettempdir(),
                env=environment,
                stderr=subprocess.DEVNULL,
                text=True,
            ).splitlines()[-1]
            seconds, *heavy = output.split()
            row = {"case": "import", "system": system, "seconds": float(seconds), "heavy": heavy}
            if run:  # the first may have had to compile
                rows.append(row)
    return rows


def summary(rows: list[Row], latency: float) -> list[Row]:
    """Per case and system: median, least and most; times the ideal where there is one."""
    found = []
    for case, system in dict.fromkeys((row["case"], row["system"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["system"]) == (case, system)]
        line: Row = {"case": case, "system": system, "runs": len(mine)}
        for figure in ("seconds", "cpu", "forward_us", "backward_us", "bytes_per_node"):
            values = sorted(row[figure] for row in mine if figure in row)
            if values:
                line[figure] = [median(values), values[0], values[-1]]
        line |= {k: mine[-1][k] for k in ("calls", "connections", "bytes_left") if k in mine[-1]}
        path = PATHS.get(case, {}).get(system)
        if path is not None:
            line["ideal"] = path * latency
            line["x_ideal"] = [value / line["ideal"] for value in line["seconds"]]
        found.append(line)
    return found


def table(lines: list[Row]) -> str:
    """The summary in Markdown."""
    out = [
        "| case | system | path | seconds: median (least to most) | x path | calls | connections |"
    ]
    out += ["|---|---|---|---|---|---|---|"]
    for line in lines:
        if "ideal" in line:
            out.append(
                f"| {line['case']} | {line['system']} | {line['ideal']:.2f} s "
                f"| {_spread(line['seconds'], '.2f')} | **{line['x_ideal'][0]:.2f}** "
                f"| {line['calls']} | {line['connections']} |"
            )
    out += ["", "| per node | system | forward, µs | backward, µs |", "|---|---|---|---|"]
    for line in lines:
        if "forward_us" in line:
            forward, backward = (_spread(line[f"{way}_us"], ".0f") for way in _WAYS)
            out.append(f"| {line['case']} | {line['system']} | {forward} | {backward} |")
    out += ["", "| other | system | |", "|---|---|---|"]
    for line in lines:
        if "bytes_per_node" in line:
            bytes_ = f"{line['bytes_per_node'][0]:.0f} bytes a node, {line['bytes_left']:.0f} left"
            out.append(f"| {line['case']} | {line['system']} | {bytes_} |")
        if line["case"] == "import":
            seconds = _spread(line["seconds"], ".2f")
            out.append(f"| import | {line['system']} | {seconds} s |")
    return "\n".join(out)


_WAYS = ("forward", "backward")


def _spread(values: list[float], how: str) -> str:
    middle, least, most = (format(value, how) for value in values)
    return f"{middle} ({least} to {most})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, metavar="DIR", help="the peers' environment")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR")
    parser.add_argument("--repeat", type=at_least(1), default=5)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--only", metavar="TEXT", help="the cases with this in their name")
    asked = parser.parse_args()

    asked.out.mkdir(parents=True, exist_ok=True)
    commands("", asked.peers)  # is it there?
    load = [os.getloadavg()[0]]
    with server(asked.latency_ms) as url:
        rows = measured(url, asked.peers, asked.repeat, asked.only)
    if asked.only is None or asked.only in "import":
        rows += imports(asked.peers, asked.repeat)
    load.append(os.getloadavg()[0])
    lines = summary(rows, asked.latency_ms / 1000)
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before_and_after": load,
        "latency_ms": asked.latency_ms,
    }
    parts = {"summary": lines, "runs": rows}
    listed = [f'"{k}": [\n' + ",\n".join(map(json.dumps, v)) + "\n]" for k, v in parts.items()]
    result = f'{{"machine": {json.dumps(machine)},\n' + ",\n".join(listed) + "}\n"
    (asked.out / "speed.json").write_text(result, "utf-8")
    (asked.out / "speed.svg").write_text(chart(lines), "utf-8")
    print(f"{machine}\n\n{table(lines)}")


if __name__ == "__main__":
    main()
