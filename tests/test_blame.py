"""The benchmark of blame: its cases, its measures at known answers, and its file."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.blame.__main__ import main
from benchmarks.blame.cases import SHAPES, Case, cases, correct, execute, values
from benchmarks.blame.gradients import RULES, gradients
from benchmarks.blame.measures import asks, scores
from benchmarks.blame.results import read, run
from benchmarks.blame.tables import report
from textautograd import errors
from textautograd.engines import Request, Scripted


def oracle(case: Case) -> Scripted:
    """Knows what the defect spoiled."""

    def reply(request: Request) -> str:
        assert request.purpose == "backward" and request.schema is not None
        names = request.schema["properties"]
        return json.dumps({n: "Change it." if n in case.wrong else "No change." for n in names})

    return Scripted(reply)


def always(text: str) -> Scripted:
    def reply(request: Request) -> str:
        assert request.schema is not None
        return json.dumps(dict.fromkeys(request.schema["properties"], text))

    return Scripted(reply)


@pytest.mark.parametrize("rule", RULES)
def test_an_oracle_is_always_right(rule: str) -> None:
    for case in cases(63):
        found = gradients(case, RULES[rule], oracle(case))
        assert found["failed"] == 0
        assert set(scores(case, found["gradients"]).values()) == {1.0}, case


@pytest.mark.parametrize("text", ["Change it.", "No change."])
@pytest.mark.parametrize("rule", RULES)
def test_who_tells_nothing_scores_chance(rule: str, text: str) -> None:
    for shape in SHAPES:
        of_shape = [c for c in cases(105) if c.shape == shape]
        n = len(of_shape[0].graph)
        some = of_shape[:n]
        for measure in ("blame", "largest"):
            got = 0.0
            for case in some:
                said = gradients(case, RULES[rule], always(text))["gradients"]
                got += scores(case, said)[measure]
            assert got == pytest.approx(1), (shape, measure)


def test_what_shares_blame_counts_its_part_and_the_longest_breaks_the_tie() -> None:
    case = next(c for c in cases(30) if c.shape == "3 → 1" and c.node != "result")
    a, b = [n for n in case.graph if n not in (case.node, "result")]
    said = {case.node: "Change this to that.", a: "Change it.", b: None, "result": "Wrong."}
    assert scores(case, said) == {"blame": 0.5, "largest": 1.0, "exact": 0.0}
    assert scores(case, said, failed=1) == {"blame": 0.0, "largest": 0.0, "exact": 0.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, False),
        ("The list is correct as it is.", False),
        ("It does not need to change.", False),
        ("The list should remain as it is.", False),
        ("The list is correct but should be sorted.", True),
        ("Leave out fig.", True),
        ("fig, plum", False),
        ("fig, plum.", False),
        ("plum, fig", True),
        ("FIG, PLUM", True),
    ],
)
def test_what_asks_for_a_change(text: str | None, expected: bool) -> None:
    assert asks(text, "fig, plum") is expected


def test_any_first_part_is_balanced() -> None:
    some = cases(315)
    assert some[:40] == cases(40)
    for n in range(1, len(some) + 1):
        shapes = Counter(c.shape for c in some[:n])
        assert max(shapes.values()) - min(shapes[s] for s in SHAPES) <= 1
    for shape in SHAPES:
        of_shape = [c for c in some if c.shape == shape]
        nodes = len(of_shape[0].graph)
        at = [(list(c.graph).index(c.node), c.kind) for c in of_shape]
        for n in range(1, len(at) + 1):
            there = Counter(node for node, _ in at[:n])
            assert max(there.values()) - min(there[i] for i in range(nodes)) <= 1
        assert len(set(at[: 3 * nodes])) == 3 * nodes
    for n in range(15, len(some), 15):
        kinds = Counter(c.kind for c in some[:n])
        assert max(kinds.values()) - min(kinds.values()) <= n // 10 + 3


def test_the_truth_about_a_case() -> None:
    """Without the defect it works; the other nodes do as told; no input helps the corrupted one."""
    for case in cases(105):
        repaired = dict(case.instructions) | {
            case.node: correct(case.node, case.graph[case.node][0])
        }
        right = values(case.graph, repaired, case.question)
        spoiled = values(case.graph, case.instructions, case.question)
        assert right["result"] == case.expected != spoiled["result"]
        assert case.node in case.wrong and "result" in case.wrong
        for node, (_, before) in case.graph.items():
            assert node == case.node or node not in case.wrong or case.wrong & set(before)
            assert len(spoiled[node].split()) <= 20
        before = case.graph[case.node][1]
        if len(before) == 1:
            words = right[before[0]].split(", ")
            for size in range(1, len(words) + 1):
                for given in itertools.permutations(words, size):
                    said = execute(case.instructions[case.node], case.question, [", ".join(given)])
                    assert said != right[case.node]


def test_a_run_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    out, engine = tmp_path / "b.jsonl", always("Change it.")
    run(out, engine, "m", ["semantic"], 3)
    first, paid = out.read_text(), len(engine.calls)
    assert paid > 0 and len(first.splitlines()) == 3
    run(out, engine, "m", ["semantic"], 3)
    assert (out.read_text(), len(engine.calls)) == (first, paid)
    out.write_text(first + '{"case": 7, "ru')
    run(out, engine, "m", ["semantic", "textgrad"], 5)
    lines = read(out)
    assert sorted((x["case"], x["rule"]) for x in lines) == [
        (i, rule) for i in range(5) for rule in ("semantic", "textgrad")
    ]
    assert "5 cases, m" in report(out)
    with pytest.raises(errors.UsageError, match="another file"):
        run(out, engine, "other", ["semantic"], 5)


def test_an_unusable_reply_is_counted(tmp_path: Path) -> None:
    case = cases(1)[0]
    assert gradients(case, RULES["semantic"], Scripted(lambda r: "?"))["failed"] > 0


def test_a_call_that_fails_is_no_opinion_and_the_run_goes_on_later(tmp_path: Path) -> None:
    out, fine, calls = tmp_path / "new" / "b.jsonl", always("Change it."), itertools.count()

    def dies(request: Request) -> str:
        if next(calls) > 2:
            raise errors.ServerError("down")
        assert request.schema is not None
        return json.dumps(dict.fromkeys(request.schema["properties"], "Change it."))

    with pytest.raises(errors.ServerError, match="down"):
        run(out, Scripted(dies), "m", ["semantic"], 9)
    run(out, fine, "m", ["semantic"], 9)
    found = read(out)
    assert sorted(line["case"] for line in found) == list(range(9))
    for line in found:
        assert set(line["gradients"].values()) - {None} and line["failed"] == 0

    def cut(request: Request) -> str:
        raise errors.IncompleteReplyError("cut off at its limit")

    assert gradients(cases(1)[0], RULES["semantic"], Scripted(cut))["failed"] > 0


@pytest.mark.parametrize("bad", [b"[]\n", b"{}\n", b'{"case": 1\n', b"\xff\n", None])
def test_a_file_that_is_none_of_its_own_stays(tmp_path: Path, bad: bytes | None) -> None:
    out = tmp_path / "b.jsonl"
    out.mkdir() if bad is None else out.write_bytes(bad)
    for words in (["--report"], ["--model", "openai/m", "--api-base", "http://127.0.0.1:9/v1"]):
        with pytest.raises(SystemExit, match=r"b\.jsonl"):
            main(["--out", str(out), *words])
    assert bad is None or out.read_bytes() == bad
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(out), "--model", "m", "--cases", "0"])


def test_a_damaged_result_is_named_before_a_table_is_made(tmp_path: Path) -> None:
    out = tmp_path / "b.jsonl"
    run(out, always("Change it."), "m", ["semantic"], 2)
    (line,) = [line for line in read(out) if line["case"] == 1]
    for wrong, why in (
        ({"rule": "magic"}, "there is no rule magic"),
        ({"case": 10**12}, "its nodes are not those of case"),
        ({"gradients": {}}, "its nodes are not those of case"),
        ({"gradients": line["gradients"] | {"result": 5}}, "gradients is int"),
        ({"calls": "one"}, "calls is str"),
        ({"tokens": [1]}, "tokens is no list of 2"),
        ({"seconds": None}, "seconds is NoneType"),
    ):
        damaged = tmp_path / "damaged.jsonl"
        damaged.write_text(out.read_text() + json.dumps(line | wrong) + "\n")
        for words in (["--report"], ["--model", "openai/m", "--api-base", "http://127.0.0.1:9"]):
            with pytest.raises(SystemExit, match=rf"damaged\.jsonl: result 3 is damaged: .*{why}"):
                main(["--out", str(damaged), *words])
