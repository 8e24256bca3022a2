"""A run's directory: what a killed run resumes from. Each JSON file is written whole or not at all.

run.json        what the run is: settings, data, the module's first state
checkpoint.json the last finished step: state, optimizer, history
best.json       the best state so far, for `module.load_state_dict`
metrics.jsonl   a line per step
states.jsonl    every state that was tried, with its loss
calls.sqlite    every reply that was paid for
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from textautograd.errors import UsageError


class RunDir:
    """Reads and writes the files of one run.

    Args:
        settings: what the run is: JSON.
        state: the module's state: the one that the run began with, or has come to.

    Raises:
        UsageError: the directory cannot be used, or holds another run.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: dict[str, Any], state: dict[str, str]
    ) -> None:
        self.path = Path(path)
        settings = {"version": 1, **settings, "state": state}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = self._read("run.json")
            left = self.checkpoint()
            if found is None:
                self._write("best.json", state)
                self._write("run.json", settings)
        except OSError as error:
            raise UsageError(f"cannot use the run directory {self.path}: {error}") from error
        if found is not None and left is not None and left["state"] == state:
            settings["state"] = found.get("state")
        if found is not None and found != settings:
            differing = sorted(k for k in {*found, *settings} if found.get(k) != settings.get(k))
            raise UsageError(
                f"{self.path} holds another run: {', '.join(differing)} differ. Choose another "
                "run_dir, or delete it to start anew"
            )

    @property
    def cache(self) -> Path:
        return self.path / "calls.sqlite"

    def checkpoint(self) -> dict[str, Any] | None:
        """What the last finished step left, or `None` before the first."""
        found = self._read("checkpoint.json")
        kinds = {"state": dict, "optimizer": dict, "metrics": list, "states": list}
        if found is not None and not all(isinstance(found.get(k), t) for k, t in kinds.items()):
            raise UsageError(_damaged(self.path / "checkpoint.json", "it lacks a part"))
        return found

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Keeps what a finished step leaves; the checkpoint itself comes last."""
        self._write("best.json", checkpoint["state"])
        self._write_lines("states.jsonl", checkpoint["states"])
        self._write_lines("metrics.jsonl", checkpoint["metrics"])
        self._write("checkpoint.json", checkpoint)

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        if not file.exists():
            return None
        try:
            value = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise UsageError(_damaged(file, error)) from error
        if not isinstance(value, dict):
            raise UsageError(_damaged(file, "it must hold a JSON object"))
        return value

    def _write(self, name: str, value: Any) -> None:
        self._replace(name, json.dumps(value, indent=1))

    def _write_lines(self, name: str, values: list[Any]) -> None:
        self._replace(name, "".join(json.dumps(value) + "\n" for value in values))

    def _replace(self, name: str, text: str) -> None:
        part = self.path / (name + ".part")
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / name)


def _damaged(file: Path, why: object) -> str:
    return (
        f"{file} is damaged ({why}): delete the run directory's JSON files to start the run anew; "
        "calls.sqlite keeps what was paid for"
    )
