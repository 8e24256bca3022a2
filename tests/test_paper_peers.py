"""The peers' scripts: jobs, prompts, sizes; and the peers themselves where they are installed.

TEXTAUTOGRAD_PEERS names the virtual environment that `benchmarks/timed/peers.txt` was installed in.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fault_server import Faults, answer, faults, refusal
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.paper.graphs import analysts, node, two_hints
from benchmarks.paper.peer import job as write_job
from benchmarks.paper.peer import theirs
from benchmarks.paper.peers import sizes
from benchmarks.paper.peers.job import (
    Chat,
    Example,
    Gone,
    Job,
    Node,
    Record,
    Refused,
    Spent,
    check_versions,
    revert,
    told,
)
from benchmarks.paper.peers.job import main as run_script
from benchmarks.paper.questions import Questions
from benchmarks.paper.server import Upstream, application
from benchmarks.paper.settings import Setting
from textautograd import data
from textautograd.errors import UsageError
from textautograd.prompts.forward import forward

PEERS = os.environ.get("TEXTAUTOGRAD_PEERS")
ROOT = Path(__file__).parent.parent
EXAMPLES = [{"fields": {"question": f"What is {i}?"}, "answer": "42"} for i in range(8)]
JOB: dict[str, Any] = {
    "graph": two_hints(reasoning=False),
    "train": EXAMPLES[:4],
    "val": EXAMPLES[4:6],
    "test": EXAMPLES[6:],
    "model": "small",
    "optimizer_model": "large",
    "api_base": "http://127.0.0.1:9/v1",
    "run": "r",
    "max_tokens": 128,
    "optimizer_max_tokens": 512,
    "seed": 0,
    "batch_size": 2,
    "steps": 2,
    "tokens": None,
    "gate": True,
    "score": "exact",
}


def job(place: Path, **changes: Any) -> Job:
    (place / "job.json").write_text(json.dumps(JOB | changes))
    return Job.load(place / "job.json")


def test_a_job_is_read_as_it_is_written(tmp_path: Path) -> None:
    asked = data.Example("Is it so?", "Yes", party="none")
    questions = Questions("liar", [asked], [], [asked, asked], {})
    setting = Setting("liar", "peer-gepa", "small", "large")
    written = write_job(setting, questions, "http://127.0.0.1:9/v1", "r")
    (tmp_path / "job.json").write_text(json.dumps(written))
    found = Job.load(tmp_path / "job.json")
    assert found.train == found.val == [Example({"question": "Is it so?", "party": "none"}, "Yes")]
    assert found.graph[-1].name == "decide" and found.score == "yes_or_no" and found.gate
    assert (found.model, found.optimizer_model, found.tokens) == ("small", "large", None)


@contextmanager
def metered(script: Any) -> Iterator[tuple[str, Faults]]:
    """The metering server in front of canned replies: its URL, and what was asked."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    with faults(script) as up:
        models = {name: Upstream(up.url) for name in ("small", "large")}
        runner = web.AppRunner(application(models), handler_cancellation=True)
        run(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        run(site.start())
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        try:
            yield f"http://127.0.0.1:{port}/v1", up
        finally:
            run(runner.cleanup())
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


PIECES = ["<", "/", "hint", "_1", ">", "-", "2", "1", "\n", "x"]
texts = st.lists(st.sampled_from(PIECES)).map("".join)


@given(texts, texts, st.sampled_from(["", "Be short."]), st.sampled_from([None, "One word."]))
def test_a_node_is_asked_as_ours_is(one: str, two: str, told_to: str, form: str | None) -> None:
    given_ = Node("solve", told_to, form, {"question": "question", "hint_1": "@hint_1"})
    sent: list[Any] = []

    class Kept(Chat):
        def __call__(self, phase: str, messages: Any, **more: Any) -> str:
            sent.append(messages)
            return ""

    Kept(None).node("forward", given_, told_to, {"hint": one, "hint_1": two})  # type: ignore[arg-type]
    assert sent == [forward(told_to, {"hint": one, "hint_1": two}, form)]


def test_a_reply_that_states_its_output_is_worth_what_it_states() -> None:
    reasons = two_hints(reasoning=True)[0]
    plain = node("solve", "Solve it.", None, {})
    reply = (
        "I see. <output statement> 4\n</output statement> Or <output statement>5</output statement>"
    )
    assert Node(**reasons).value(reply) == "5" and Node(**reasons).value("so 4") == "so 4"
    assert Node(**plain).value(reply) == reply


def test_outputs_follow_the_graph_and_calls_are_counted_by_phase(tmp_path: Path) -> None:
    def said(body: dict[str, Any]) -> Any:
        return answer(f"<{body['messages'][-1]['content'].count('<')}>")

    with metered(said) as (url, up):
        told_of = job(tmp_path, api_base=url)
        chat = Chat(told_of)
        found = chat.evaluate("before", told_of.instructions(), told_of.test)
        assert found == ["<8>", "<8>"]
        assert chat.outputs("forward", told_of.instructions(), told_of.test) == found  # no calls
        chat("optimize", [{"role": "user", "content": "Write."}], response_format={"type": "x"})
        assert told_of.used() == {"before": 40, "optimize": 10}  # the two hints ask the same
    hint, solve, write = up.bodies[0], up.bodies[-2], up.bodies[-1]
    assert (hint["model"], hint["max_tokens"], hint["temperature"]) == ("small", 128, 0)
    assert "<hint_1>\n<2>\n</hint_1>" in solve["messages"][-1]["content"]
    assert (write["model"], write["max_tokens"]) == ("large", 512)
    assert write["response_format"] == {"type": "x"}


def test_a_held_out_question_that_fails_leaves_no_output(tmp_path: Path) -> None:
    with metered(refusal(503, "loading")) as (url, _):
        told_of = job(tmp_path, api_base=url)
        with pytest.raises(Gone, match=r"503.*loading"):
            Chat(told_of).evaluate("after", told_of.instructions(), told_of.test)
    with metered(refusal(400, "too long")) as (url, _):
        told_of = job(tmp_path, api_base=url)
        assert Chat(told_of).evaluate("after", told_of.instructions(), told_of.test) == [None, None]
        with pytest.raises(Refused, match=r"400.*too long"):
            Chat(told_of).score(told_of.instructions(), told_of.val)


def test_a_server_that_fails_in_training_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(method: str, job_: Job) -> Any:
        def train(job_: Job, record: Record) -> None:
            try:
                Chat(job_).score(job_.instructions(), job_.val)
            except Exception:
                record.steps.append({"score": 0.0})  # as a peer does with a call that fails

        return lambda *_: ["42"] * 2, train

    result = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["x", "m", str(tmp_path / "job.json"), str(result)])
    with metered(refusal(503, "loading")) as (url, _):
        job(tmp_path, api_base=url)
        with pytest.raises(Gone, match=r"503.*loading"):
            run_script(prepare, [])
    job(tmp_path)  # nobody is there
    with pytest.raises(Gone, match="does not answer"):
        run_script(prepare, [])
    assert not result.exists()


def test_training_ends_when_its_tokens_are_used_up(tmp_path: Path) -> None:
    with metered(answer()) as (url, up):
        told_of = job(tmp_path, api_base=url, tokens=20)
        chat = Chat(told_of)
        chat.evaluate("before", told_of.instructions(), told_of.test)  # is not training
        calls = len(up.bodies)
        for i in range(2):
            chat("backward", [{"role": "user", "content": f"Why {i}?"}])
        with pytest.raises(Spent, match="20 of 20 tokens"):
            chat("forward", [{"role": "user", "content": "Which?"}])
        chat("backward", [{"role": "user", "content": "Why 0?"}])  # is known
        chat.evaluate("after", told_of.instructions(), told_of.val)  # is not training either
    assert sum("Why" in str(body) for body in up.bodies) == 2 and calls


def test_a_step_that_scores_less_is_undone(tmp_path: Path) -> None:
    def said(body: dict[str, Any]) -> Any:
        return answer("no" if "Bad." in body["messages"][0]["content"] else "42")

    with metered(said) as (url, _):
        told_of = job(tmp_path, api_base=url)
        start = told_of.instructions()
        record, chat = Record(start), Chat(told_of)
        assert revert(chat, record, {**start, "solve": "Bad."}, 1.0) == (False, 1.0)
        assert record.instructions == start
        other = {**start, "solve": "As good."}
        assert revert(chat, record, other, 1.0) == (True, 1.0) and record.instructions == other


def test_training_is_kept_when_the_rest_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, down = [], [True]

    def prepare(method: str, job_: Job) -> Any:
        def evaluate(phase: str, instructions: Any, examples: Any) -> list[str | None]:
            if phase == "after" and down[0]:
                raise OSError("gone")
            return ["42"] * len(examples)

        def train(job_: Job, record: Record) -> None:
            trained.append(1)
            record.instructions = {**record.instructions, "solve": "Better."}

        return evaluate, train

    with metered(answer()) as (url, _):
        job(tmp_path, api_base=url)
        result = tmp_path / "result.json"
        monkeypatch.setattr("sys.argv", ["x", "m", str(tmp_path / "job.json"), str(result)])
        with pytest.raises(OSError, match="gone"):
            run_script(prepare, [])
        assert json.loads(result.read_text())["after"] is None
        down[0] = False
        run_script(prepare, [])
    found = json.loads(result.read_text())
    assert found["after"] == ["42"] * 2 and found["instructions"]["solve"] == "Better."
    assert len(trained) == 1


def test_a_package_that_the_rows_are_not_named_after_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {"dspy": "3.4.1", "textgrad": "0.1.9", "other": "1"}
    monkeypatch.setattr("importlib.metadata.version", found.__getitem__)
    check_versions(["dspy", "other"])
    with pytest.raises(SystemExit, match=r"textgrad is 0\.1\.9 here, and is measured as 0\.1\.8"):
        check_versions(["textgrad"])


def test_a_result_is_paid_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input": f"Is {i} odd?", "target": "Yes"} for i in range(20)]
    (tmp_path / "bbh").mkdir()
    (tmp_path / "bbh" / "navigate.json").write_text(json.dumps({"examples": rows}))
    setting = Setting("bbh/navigate", "peer-gepa", "small", "large", 0, (4, 4, 3))
    result = {"before": ["x"] * 3, "after": ["x"] * 3, "initial": {}, "instructions": {}}
    result |= {"settings": {}, "steps": [], "versions": {}, "error": None}
    ran: list[str] = []

    def script(text: str) -> Any:
        def run(command: list[Any], **_: Any) -> None:
            ran.append(json.loads(Path(command[-2]).read_text())["run"])
            Path(command[-1]).write_text(text)

        return run

    def go(url: str, out: str = "out") -> Any:
        return theirs(setting, None, tmp_path, tmp_path / out, url, tmp_path)

    gone = "http://127.0.0.1:9/v1"
    monkeypatch.setattr(subprocess, "run", script(json.dumps(result)))
    with pytest.raises(UsageError, match=r"is no benchmarks\.paper\.server"):
        go(gone)
    with faults({"json": {"phase": {}}}) as plain, pytest.raises(UsageError, match="is no bench"):
        go(plain.url)
    assert not ran
    monkeypatch.setattr("benchmarks.paper.peer.check_meters", lambda api_base: None)  # goes later
    with pytest.raises(UsageError, match="its result stays"):
        go(gone)
    with metered(answer()) as (url, _):
        with pytest.raises(UsageError, match="does not know"):
            go(url)
        Chat(job(tmp_path, api_base=url, run=ran[0]))("before", [{"role": "user", "content": "x"}])
        assert go(url)["cost"] == {"before": {"forward": [1, 7, 3]}}
    assert go(gone)["cost"] == {"before": {"forward": [1, 7, 3]}}
    assert len(ran) == 1
    damages = [{"before": []}, {"before": 5}, {"after": [1, 2, 3]}, {"instructions": {"a": 1}}]
    damages += [{"usage": {"before": {"calls": 1}}}, {"settings": []}, {"steps": [1]}]
    texts = ['{"before": ["x"', "[]", "{}", *(json.dumps(result | damage) for damage in damages)]
    for i, text in enumerate(texts):
        monkeypatch.setattr(subprocess, "run", script(text))
        for _ in range(2):
            with pytest.raises(UsageError, match="is not done" if text == "{}" else "delete"):
                go(gone, f"out-{i}")
    monkeypatch.setattr(subprocess, "run", script(json.dumps(result)))
    many = json.dumps({"before": {"calls": 1, "input_tokens": 10**400, "output_tokens": 1}})
    for i, text in enumerate(("[]", '{"before": {"calls": 1}}', '{"before": []}', "1", many)):
        body = io.BytesIO(text.encode())
        monkeypatch.setattr("urllib.request.urlopen", lambda _, body=body, **_options: body)
        with pytest.raises(UsageError, match=r"does not know what .* cost"):
            go(gone, f"counts-{i}")
    with garbage() as url, pytest.raises(UsageError, match="its result stays"):
        go(url, "garbage")
    (job_file,) = (tmp_path / "garbage" / "peers").glob("*/job.json")
    job_file.write_text("{}")
    with pytest.raises(UsageError, match=r"job\.json is damaged"):
        go(gone, "garbage")


@contextmanager
def garbage() -> Iterator[str]:
    """A server of something else."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_once() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"garbage nonsense\r\n\r\n")

        threading.Thread(target=answer_once, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_batches_are_drawn_by_the_seed(tmp_path: Path) -> None:
    def drawn(**changes: Any) -> list[list[Example]]:
        return list(job(tmp_path, **changes).batches())

    epoch = drawn(steps=2)
    assert sorted(e.fields["question"] for batch in epoch for e in batch) == [
        f"What is {i}?" for i in range(4)
    ]
    assert drawn(steps=2) == epoch and len(drawn(steps=5)) == 5
    assert any(drawn(seed=seed) != epoch for seed in range(1, 5))


def test_answers_are_compared_as_ours_are(tmp_path: Path) -> None:
    exact, verdict = job(tmp_path), job(tmp_path, graph=analysts(), score="yes_or_no")
    assert exact.right(" 42\n", "42") and not exact.right("42.", "42")
    assert verdict.right(" yes, it is", "Yes") and verdict.right("It is.", "No")
    assert exact.feedback("41", "42") == 'The expected output is: "42".'
    assert exact.feedback("42", "42") == "The output is correct."


def test_an_error_is_told_without_a_path() -> None:
    try:
        json.loads("{")
    except ValueError as failure:
        found = told(failure)
    assert found["type"] == "JSONDecodeError" and "Expecting" in found["message"]
    assert "decoder.py" in found["where"][-1] and os.sep not in str(found["where"])


@given(
    st.integers(1, 5000),
    st.integers(1, 6),
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 8),
)
def test_searches_keep_to_the_runs_allowed(
    allowed: int, nodes: int, train: int, val: int, steps: int
) -> None:
    each = (nodes + 1) / 2  # of a chain
    copro = sizes.copro(allowed, each, train, steps)
    breadth, depth = copro["breadth"], copro["depth"]
    least = copro == {"breadth": 2, "depth": 2, "trainset": 1}
    new = breadth * depth - 1  # for each node, beside the program as it is
    assert copro["trainset"] * (1 + new * each) <= allowed * (1 + 1e-9) or least
    if copro["trainset"] < train:  # nothing larger fits
        assert (copro["trainset"] + 1) * (1 + 3 * each) > allowed * (1 - 1e-9)
    assert 2 <= breadth <= 10 and 2 <= depth <= max(steps, 2) and copro["trainset"] <= train
    mipro = sizes.miprov2(allowed, nodes, train, val)
    assert train + val + mipro["num_trials"] * val <= allowed or mipro["num_trials"] == 1
    assert mipro["num_candidates"] >= 2 and not mipro["minibatch"]
    assert sizes.gepa(allowed, val)["max_metric_calls"] <= max(allowed, val + 6)


def test_what_runs_again_after_a_change_is_the_node_and_what_follows_from_it() -> None:
    def job(graph: dict[str, list[str]]) -> float:
        nodes = [
            Node(n, "", None, {s.strip("@"): s for s in sources}) for n, sources in graph.items()
        ]
        return Job(nodes, [], [], [], "m", "m", "", "run").run_again()

    assert job({"a": ["question"]}) == 1
    assert job({"a": ["question"], "b": ["@a"], "c": ["@b"]}) == 2
    assert job({"a": ["question"], "b": ["question"], "c": ["@a", "@b"]}) == 5 / 3


def test_runs_are_those_of_gated_steps_or_what_tokens_pay_for() -> None:
    assert sizes.runs(2, 4, 10, None, 0.0) == 10 + 2 * (4 + 10)
    assert sizes.runs(2, 4, 10, 100_000, 500.0) == 160


def canned(body: dict[str, Any]) -> Any:
    """Whoever is told to say 42 does, each rewrite tells so, in each system's own form."""
    messages = [str(message["content"]) for message in body["messages"]]
    everything = "\n".join(messages)
    better = "Say 42 and nothing else."
    said = "42" if better in messages[0] else "no idea"
    if variables := re.findall(r"\(str\) (\w+_instruction\d+)=", everything):
        text = json.dumps({"reasoning": "", "suggestion": dict.fromkeys(variables, better)})
    elif "<IMPROVED_VARIABLE>" in messages[0]:
        text = f"<IMPROVED_VARIABLE>{better}</IMPROVED_VARIABLE>"
    elif "JSON object" in messages[-1]:
        text = json.dumps(dict.fromkeys(re.findall(r"`(\w+)`", messages[-1]), better))
    elif "Respond with" in messages[-1]:
        asked = re.findall(r"\[\[ ## (\w+) ## \]\]", messages[-1][messages[-1].rindex("Respond") :])
        values = {"answer": said}
        text = "\n\n".join(f"[[ ## {n} ## ]]\n{values.get(n, better)}" for n in asked)
    else:
        text = said
    return answer(text)


def limit(body: dict[str, Any]) -> Any:
    """Of the reply's tokens, by either name of it."""
    return body.get("max_tokens") or body["max_completion_tokens"]


METHODS = [
    ("with_textgrad", "textgrad"),
    ("with_trace", "optoprime"),
    ("with_dspy", "copro"),
    ("with_dspy", "miprov2"),
    ("with_dspy", "gepa"),
]


def run_peer(
    script: str, method: str, place: Path, **changes: Any
) -> subprocess.CompletedProcess[str]:
    (place / "job.json").write_text(json.dumps(JOB | changes))
    assert PEERS
    command = [f"{PEERS}/bin/python", "-m", f"benchmarks.paper.peers.{script}", method]
    return subprocess.run(
        [*command, place / "job.json", place / "result.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )


def peer(script: str, method: str, place: Path, **changes: Any) -> dict[str, Any]:
    ran = run_peer(script, method, place, **changes)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "cost_map" not in ran.stderr, "it looked for prices on the network"
    found: dict[str, Any] = json.loads((place / "result.json").read_text())
    return found


@pytest.mark.skipif(not PEERS, reason="TEXTAUTOGRAD_PEERS names no environment")
@pytest.mark.parametrize("script, method", METHODS)
class TestPeers:
    def test_it_learns(self, script: str, method: str, tmp_path: Path) -> None:
        with metered(canned) as (url, up):
            steps = 8 if method == "gepa" else 2  # it rewrites one instruction at a time
            found = peer(script, method, tmp_path, api_base=url, steps=steps)
            used = Job.load(tmp_path / "job.json").used()
        assert found["error"] is None, found["error"]
        assert found["before"] == ["no idea"] * 2 and found["after"] == ["42"] * 2, found
        assert found["initial"] == {n["name"]: n["instruction"] for n in JOB["graph"]}
        assert found["instructions"]["solve"] == "Say 42 and nothing else."
        assert found["steps"] and found["settings"]["method"] == method and found["versions"]
        assert (
            {"before", "after", "forward"}
            < set(used)
            <= {*("before", "after", "forward", "backward", "optimize")}
        )
        writes = [body for body in up.bodies if body["model"] == "large"]
        assert writes and {limit(body) for body in writes} == {512}
        reads = [body for body in up.bodies if body["model"] == "small"]
        assert {(limit(body), body["temperature"]) for body in reads} == {(128, 0)}

    def test_it_ends_when_its_tokens_are_used_up(
        self, script: str, method: str, tmp_path: Path
    ) -> None:
        with metered(canned) as (url, _):
            found = peer(script, method, tmp_path, api_base=url, tokens=60, steps=50)
            used = Job.load(tmp_path / "job.json").used()
        assert found["error"] is None and len(found["after"]) == 2
        training = sum(used[phase] for phase in used if phase not in ("before", "after"))
        assert training <= 60 + 8 * 10 + 200 * (method == "gepa")

    @pytest.mark.parametrize("model", ["small", "large"])
    def test_a_server_that_fails_leaves_none(
        self, script: str, method: str, tmp_path: Path, model: str
    ) -> None:
        asked: list[Any] = []

        def failing(body: dict[str, Any]) -> Any:
            asked.append(body)
            down = body["model"] == "large" if model == "large" else len(asked) > 7
            return refusal(503, "loading") if down else canned(body)

        with metered(failing) as (url, _):
            ran = run_peer(script, method, tmp_path, api_base=url)
        assert ran.returncode and "Gone" in ran.stderr, ran.stderr[-3000:]
        assert not (tmp_path / "result.json").exists()

    def test_a_failure_leaves_a_result(self, script: str, method: str, tmp_path: Path) -> None:
        def failing(body: dict[str, Any]) -> Any:
            return refusal(400, "no such luck") if body["model"] == "large" else canned(body)

        with metered(failing) as (url, _):
            found = peer(script, method, tmp_path, api_base=url)
        assert found["before"] == found["after"] == ["no idea"] * 2
        assert found["instructions"] == found["initial"]
        if method not in ("optoprime", "gepa", "miprov2"):
            assert "no such luck" in found["error"]["message"] and found["error"]["where"]
