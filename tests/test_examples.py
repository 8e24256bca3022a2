"""What users are shown runs: every Python block of the README, and every tutorial."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_the_readme_s_code_runs_as_it_stands() -> None:
    namespace: dict[str, Any] = {"__name__": "readme"}
    found = blocks((ROOT / "README.md").read_text("utf-8"))
    assert found
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_whole_loop_has_at_most_twelve_lines() -> None:
    loop = blocks((ROOT / "README.md").read_text("utf-8"))[0]
    code = [line for line in loop.splitlines() if line.strip()]
    assert len([line for line in code if not line.startswith(("import", "from"))]) <= 12


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(tutorial: Path) -> None:
    assert runpy.run_path(str(tutorial), run_name="__main__")["ta"]
