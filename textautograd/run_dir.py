"""A run's directory: what a killed run resumes from. Each JSON file is written whole or not at all.

run.json        what the run is: settings, data, the module's first state
checkpoint.json the last finished step: state, optimizer, history
best.json       the best state so far, for `module.load_state_dict`
metrics.jsonl   a line per step
states.jsonl    every state that was tried, with its loss
calls.sqlite    every reply that was paid for
lock            held while a run is at work here
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

from textautograd.checking import misfit
from textautograd.errors import UsageError
from textautograd.files import read_json, write_whole

WRITTEN = ("run.json", "checkpoint.json", "best.json", "metrics.jsonl", "states.jsonl")
_DATA = {"train": "the training examples", "val": "the gate's examples (val)"}
_DIGEST = re.compile("#[0-9a-f]{8,}")
_NUMBER = int | float | None

# shapes: see `misfit`
_METRICS = {
    "step": int,
    "loss": _NUMBER,
    "wrong": int,
    "samples": int,
    "failed": [str],
    "gradients": {str: [str]},
    "before": _NUMBER,
    "after": _NUMBER,
    "accepted": bool,
    "changes": {str: (str, str)},
    "problems": [{str: str}],
    "why": str | None,
}
_STATE = {"step": int, "state": {str: str}, "loss": _NUMBER, "error": str | None}
_CHECKPOINT = {"state": {str: str}, "optimizer": dict, "metrics": [_METRICS], "states": [_STATE]}


class RunDir:
    """Reads and writes the files of one run.

    A directory that tells of no step yet may become another run's. Who makes one holds the
    directory (`locked`).

    Args:
        settings: what the run is: JSON.
        state: the module's state: the one that the run began with, or has come to.

    Raises:
        UsageError: the directory cannot be used, is damaged, or holds another run.
    """

    def __init__(self, path: Path, settings: dict[str, Any], state: dict[str, str]) -> None:
        self.path = path
        for name in WRITTEN:
            if (path / name).exists() and not (path / name).is_file():
                raise UsageError(f"cannot use the run directory {path}: its {name} is no file")
        for part in path.glob(".*.part"):  # of a run that was killed while it wrote
            part.unlink()
        self.left = self._checkpoint()
        settings = json.loads(json.dumps({"version": 4, **settings, "state": state}))
        if self.left is not None:
            found = self._object("run.json")
            if found is None:
                raise UsageError(damaged(self.path / "run.json", "it is missing"))
            if self.left["state"] == state:
                settings["state"] = found.get("state")
            if found != settings:
                raise UsageError(_another(self.path, found, settings))
        elif not (self.path / "run.json").exists() and (self.path / "best.json").exists():
            raise UsageError(
                f"{self.path} holds a best.json of no run that is here: move it, or choose another "
                "run_dir"
            )
        elif (path / "best.json").exists() and self._has_steps(settings):
            raise UsageError(
                f"{self.path} holds a run's best.json and metrics.jsonl, but its checkpoint.json "
                "is missing: move them to start anew (calls.sqlite keeps what was paid for), or "
                "choose another run_dir"
            )
        self._write("run.json", settings)  # also where nothing changed: can it be written to?
        if self.left is None:
            for name in ("metrics.jsonl", "states.jsonl"):  # of a run that begins anew here
                (path / name).unlink(missing_ok=True)
            self._write("best.json", state)

    def _has_steps(self, settings: dict[str, Any]) -> bool:
        """Whether the metrics tell of steps: of more than the one that was cut short while it was
        written, or of another run's."""
        file = self.path / "metrics.jsonl"
        count = file.read_bytes().count(b"\n") if file.exists() else 0
        return count > 1 or (count == 1 and self._object("run.json") != settings)

    @property
    def cache(self) -> Path:
        return self.path / "calls.sqlite"

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what a finished step leaves; the checkpoint itself comes last."""
        self._write("best.json", checkpoint["state"])
        for name in ("states", "metrics"):
            self._replace(f"{name}.jsonl", "".join(json.dumps(v) + "\n" for v in checkpoint[name]))
        self._write("checkpoint.json", checkpoint)

    def _checkpoint(self) -> dict[str, Any] | None:
        """What the last finished step left, or `None` before the first."""
        found = self._object("checkpoint.json")
        if found is None:
            return None
        file = self.path / "checkpoint.json"
        if (wrong := misfit(found, _CHECKPOINT)) is not None:
            raise UsageError(damaged(file, wrong))
        if [step["step"] for step in found["metrics"]] != list(range(len(found["metrics"]))):
            raise UsageError(damaged(file, "its steps are not numbered 0, 1, …"))
        for step in found["metrics"]:
            if step["accepted"] and None in (step["before"], step["after"]):
                raise UsageError(damaged(file, f"step {step['step']} won without a loss"))
        return found

    def _object(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        if not file.exists():
            return None
        try:
            value = read_json(file)
        except ValueError as error:
            raise UsageError(damaged(file, error)) from error
        if not isinstance(value, dict):
            raise UsageError(damaged(file, "it must hold a JSON object"))
        return value

    def _write(self, name: str, value: Any) -> None:
        self._replace(name, json.dumps(value, indent=1))

    def _replace(self, name: str, text: str) -> None:
        file = self.path / name
        try:
            write_whole(file, text.encode())
        except OSError as error:
            raise UsageError(
                f"cannot write {file}: {error.strerror or error}. When that is mended, the same "
                "call goes on where this one ended"
            ) from error


def damaged(file: Path, why: object) -> str:
    """What to say of a file of a run that cannot be used."""
    return (
        f"{file} is damaged ({why}): delete the run directory's JSON files to start the run anew; "
        "calls.sqlite keeps what was paid for"
    )


def _another(path: Path, found: dict[str, Any], settings: dict[str, Any]) -> str:
    differing = _differing(found, settings)
    pairs = [pair for k in differing for pair in _pairs(k, found.get(k), settings.get(k))]
    shown = list(dict.fromkeys(_difference(*pair) for pair in pairs if pair[0] not in _DATA))
    more = [f"and {len(shown) - 5} more"] if len(shown) > 5 else []
    details = f" ({'; '.join(shown[:5] + more)})" if shown else ""
    names = ", ".join(_DATA.get(k, k) for k in differing)
    differ = "differ" if len(differing) > 1 or differing[0] in _DATA else "differs"
    return (
        f"{path} holds another run: {names} {differ}{details}. Choose another run_dir, or "
        "delete it to start anew"
    )


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The keys that one of them lacks, or whose values differ."""
    same = {k for k in old.keys() & new.keys() if old[k] == new[k]}
    return sorted((old.keys() | new.keys()) - same)


def _difference(name: str, old: str, new: str) -> str:
    plain = _DIGEST.sub("", new)
    if _DIGEST.sub("", old) == plain:
        whose = plain.strip('"')
        return f"{f'the code of {whose}, or a value in it,' if whose else name} has changed"
    return f"{name} was {shorten(old, 100)} and is {shorten(new, 100)}"


def _pairs(name: str, old: Any, new: Any) -> list[tuple[str, str, str]]:
    """Where two JSON values differ: dotted names, with both of them."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = _differing(old, new)
        return [pair for k in keys for pair in _pairs(f"{name}.{k}", old.get(k), new.get(k))]
    return [(name, json.dumps(old), json.dumps(new))]
