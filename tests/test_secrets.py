"""Keys are planted wherever one can be given, and a server repeats them whenever it fails: nothing
that a run writes, prints, warns of, logs, raises or shows holds one."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fault_server import Step, answer, faults, refusal
from test_cli import model
from test_engines_http import everything_said
from test_tasks import bbh

import textautograd as ta
from textautograd import errors, nn, optim
from textautograd.cli import main
from textautograd.data import Example
from textautograd.engines import Budget, LiteLLM, Retrying

KEY, LOGIN = "sk-planted-0123456789", "planted-päss/wörd"
BASIC = base64.b64encode(f"me:{LOGIN}".encode("latin-1")).decode()
FOUND = re.compile(f"planted|{re.escape(BASIC)}|{base64.b64encode(KEY.encode()).decode()[:20]}")


def known(place: str) -> str:
    """What the server was sent, in the ways in which it may say so."""
    if place != "address":
        return f"Bearer {KEY}, {base64.b64encode(KEY.encode()).decode()}"
    return f"Basic {BASIC}, {LOGIN}, {quote(LOGIN)}, {json.dumps(LOGIN)}, ?k={KEY}"


def telltale(place: str) -> Step:
    """Does its work, and for each third question fails with all that it knows."""
    said = known(place)

    def reply(body: dict[str, Any]) -> Step:
        numbers = re.findall(r"What is (\d+) plus", body["messages"][-1]["content"])
        match int(numbers[0]) % 9 if numbers else 1:
            case 0:
                return refusal(400, f"Who is {said}?", said)
            case 3:
                return {"json": {"choices": [{"message": said}]}}
            case 6:
                return answer(None, refusal=said)
        return model(body)

    return reply


def written(folder: Path) -> Iterator[str]:
    """Every file in there, as text."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.read_bytes().decode(errors="replace")


def holds_none(*texts: Any) -> None:
    for text in texts:
        assert (found := FOUND.search(str(text))) is None, str(text)[max(0, found.start() - 300) :]


class Agent(nn.Module):
    def __init__(self) -> None:
        self.hint, self.solve = nn.LLM("Give a hint."), nn.LLM("Solve it.")

    def forward(self, question: str) -> ta.TextVariable:
        output: ta.TextVariable = self.solve(question=question, hint=self.hint(question=question))
        return output


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("place", ["argument", "environment", "address", "litellm", "litellm env"])
def test_nothing_of_a_run_holds_a_key(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    caplog.set_level(logging.DEBUG)
    data = [Example(f"What is {n} plus 1?", str(n + 1)) for n in range(12)]
    with faults(telltale(place)) as server:
        if place in ("environment", "litellm env"):
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
        login = server.url.replace("://", f"://me:{quote(LOGIN, safe='')}@")
        match place:
            case "argument":
                engine = ta.engine("m", api_base=server.url, api_key=KEY)
            case "environment":
                engine = ta.engine("m", api_base=server.url)
            case "address":
                engine = ta.engine("m", api_base=f"{login}?k={KEY}")
            case _:
                key = KEY if place == "litellm" else None
                engine = Retrying(LiteLLM("openai/m", api_base=server.url, api_key=key))
        agent, loss = Agent().to(engine), nn.ExactMatchLoss()
        optimizer = optim.SGD(agent.parameters(), engine=engine, candidates=2)
        with Budget(calls=10_000) as budget:
            history = ta.fit(
                agent,
                data,
                loss,
                optimizer,
                steps=2,
                batch_size=8,
                run_dir=tmp_path,
                progress=False,
            )
            done = ta.evaluate(agent, data, loss)
        with pytest.raises(errors.EngineError) as caught:
            agent(data[0].question).backward("wrong")
        computed = agent(data[0].question)
        holds_none(repr(computed))
        with pytest.raises(errors.EngineError) as again:
            computed.item()
        assert (len(server.bodies), done.failed) > (20, 3)
        assert all(
            BASIC in headers["Authorization"] if place == "address" else KEY in str(headers)
            for headers in server.headers
        )
    assert any("[redacted]" in failure for m in history.metrics for failure in m["failed"])
    assert {"run.json", "checkpoint.json", "metrics.jsonl", "states.jsonl", "calls.sqlite"} <= {
        file.name for file in tmp_path.iterdir()
    }
    holds_none(*written(tmp_path))
    holds_none(*capfd.readouterr(), caplog.text, *(warning.message for warning in recwarn))
    holds_none(*(everything_said(row.error) for row in done.rows if row.error))
    holds_none(everything_said(caught.value), everything_said(again.value))
    holds_none(pickle.dumps([row.error for row in done.rows]), pickle.dumps(data))
    for shown in (engine, agent, optimizer, history, history.metrics, done, done.rows, budget):
        holds_none(repr(shown), str(shown))
    holds_none(agent.state_dict(), optimizer.state_dict(), engine.identity)  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["environment", "address"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_command_holds_a_key(
    place: str,
    fails: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root, out = bbh(tmp_path / "data", 30), tmp_path / "run"
    with faults(refusal(401, known(place)) if fails else telltale(place)) as server:
        address = server.url
        if place == "environment":
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
        else:
            address = address.replace("://", f"://me:{quote(LOGIN, safe='')}@") + f"?k={KEY}"
        words = ["--task", "bbh/sums", "--data", str(root), "--model", "m", "--api-base", address]
        words += ["--sizes", "10", "6", "8"]
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            train = ["--out", str(out), "--steps", "2", "--batch-size", "10"]
            assert main(["train", *words, *train]) == fails
            assert main(["eval", *words]) == fails
        assert server.bodies
    printed = "".join(capfd.readouterr())
    assert "[redacted]" in printed
    holds_none(printed, *written(out), *(warning.message for warning in warned))
    if not fails:
        assert "[redacted]" in "".join(written(out))
