"""What users are shown runs: every Python block of the README, and every tutorial."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from fault_server import answer, faults

import textautograd as ta
from textautograd import demo

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def model(body: dict[str, Any]) -> Any:
    """Knows the capitals, and says them in a sentence until it is told not to."""
    if "response_format" in body:
        names = body["response_format"]["json_schema"]["schema"]["properties"]
        return answer(json.dumps({name: "Name the city alone." for name in names}))
    alone = "alone" in body["messages"][0]["content"]
    asked = body["messages"][1]["content"]
    city = next(e.answer for e in (*demo.train, *demo.val) if e.question in asked)
    return answer(city if alone else f"I think that it is {city}.")


@pytest.fixture
def readme(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The README's blocks, run in order; litellm's calls go to a server on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    namespace: dict[str, Any] = {"__name__": "readme"}
    with faults(model) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
        monkeypatch.setenv("OPENAI_API_BASE", server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        for block in blocks((ROOT / "README.md").read_text("utf-8")):
            exec(compile(block, "README.md", "exec"), namespace)
            namespace.setdefault("learnt", str(namespace["agent"].solve.instruction))
        namespace["sent"] = server.bodies
        yield namespace


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_readme_s_code_runs_and_learns(readme: Any) -> None:
    assert readme["learnt"] == "Name the city alone."
    assert str(readme["agent"].solve.instruction) == "Answer in one word."
    assert {body["model"] for body in readme["sent"]} == {"gpt-4o-mini", "gpt-4o"}


def test_the_whole_loop_has_at_most_twelve_lines() -> None:
    loop = blocks((ROOT / "README.md").read_text("utf-8"))[0]
    code = [line for line in loop.splitlines() if line.strip()]
    training = code[code.index(next(line for line in code if line.startswith("agent,"))) :]
    assert len(training) <= 12


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_run(tutorial: Path) -> None:
    assert runpy.run_path(str(tutorial), run_name="__main__")["ta"] is ta
