"""A short run of `soak.py`: the long one is in README.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_calls_to_a_server_that_fails_now_and_then_are_all_accounted_for() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "always", str(Path(__file__).with_name("soak.py")), "500"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["calls"] >= 500 and found["attempts"] > found["calls"]
