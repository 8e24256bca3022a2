"""What the report compares, and what it says of lines that cannot be compared."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_paper import Model, root, run

from benchmarks import report
from benchmarks.paper.groups import grouped, tried
from benchmarks.paper.means import ALGORITHMIC, NLP
from benchmarks.paper.settings import queued
from benchmarks.paper.statistics import interval, interval_of_mean, sign_test
from textautograd.errors import UsageError

__all__ = ["root"]


def changed(line: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A copy with another seed, method or part."""
    found: dict[str, Any] = json.loads(json.dumps(line))
    for name in ("seed", "method"):
        if name in parts:
            found["key"][name] = parts.pop(name)
    return found | parts


def row(told: str, name: str) -> list[str]:
    """The cells of a method's row in the table with intervals."""
    rows = [line for line in told.split("<details>")[1].split("\n") if line.startswith(f"| {name}")]
    return [cell.strip() for cell in rows[0].split("|")[1:-1]]


def test_lines_of_other_questions_are_not_reported_together(root: Path) -> None:
    line = run(root, "start", Model())
    labels = [*line["labels"][:-1], "Maybe"]
    with pytest.raises(UsageError, match=r"result 2 .*the labels of questions .* in result 1"):
        report.check([line, changed(line, seed=1, labels=labels)])
    with pytest.raises(UsageError, match="the questions of seed 0, by their digest, is 1234 here"):
        report.check([line, changed(line, method="sgd", data="1234")])
    report.check([line, changed(line, seed=1, data="1234")])  # other questions to train on


@pytest.mark.parametrize("settings", ["x", {"tokens": "x"}, {}])
def test_what_a_peer_was_allowed_must_be_a_number(root: Path, settings: Any) -> None:
    line = run(root, "start", Model())
    with pytest.raises(UsageError, match="result 1 cannot be reported: its settings"):
        report.check([changed(line, method="peer-gepa", settings=settings)])


def test_seeds_with_other_questions_are_not_paired_by_place(root: Path) -> None:
    line = run(root, "sgd", Model())
    other = changed(line, seed=1, indices={"test": [i + 100 for i in line["indices"]["test"]]})
    line["after"]["exact"], other["after"]["exact"] = [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]
    line["before"]["exact"] = other["before"]["exact"] = [0] * 6
    same = changed(other, indices=line["indices"])
    # six questions of twelve got right, or each of six on one of two seeds
    assert report.differences(grouped([line, other])) == [2 * 0.5**6]
    assert report.differences(grouped([line, same])) == [2 * 0.5**6]
    other["after"]["exact"] = [0, 0, 0, 0, 0, 1]
    assert report.differences(grouped([line, other])) == [2 * 0.5**4]


def test_the_interval_over_seeds_with_other_questions_covers_what_it_should() -> None:
    rng = np.random.default_rng(1)

    def apart(values: Any) -> Any:
        """The same values of questions that no other seed was asked."""
        seeds, n = np.shape(values)
        found = np.full((seeds, seeds * n), np.nan)
        for seed, own in enumerate(values):
            found[seed, seed * n : seed * n + n] = own
        return found

    covered = 0
    for _ in range(60):
        found = interval(apart(rng.random((5, 40)) < 0.3))
        covered += found.low <= 0.3 <= found.high
    assert covered >= 50
    assert sign_test(apart([[1, 0], [0, 1]])) == sign_test([[1, 1]]) == 0.5
    # equal questions are not more evidence with every seed, other ones are
    equal = [[1.0] * 20 + [0.0] * 20] * 5
    assert interval(equal).low < interval(apart(equal)).low < 0.5


def test_questions_that_some_seeds_share_are_one_each(root: Path) -> None:
    """With held-out questions drawn anew, seeds share most of them, at other places."""
    line = run(root, "sgd", Model())
    line["before"]["exact"] = [0] * 6
    line["after"]["exact"] = [1, 1, 0, 0, 0, 0]
    indices = line["indices"]["test"]
    moved = {**line["indices"], "test": [*indices[3:], *indices[:3]]}
    after = {**line["after"], "exact": [0, 0, 0, 1, 1, 0]}
    other = changed(line, seed=1, indices=moved, after=after)
    other["most_frequent"] = line["most_frequent"] + 1
    assert report.differences(grouped([line, other])) == [sign_test([[1, 1]])]
    told = report.report([line, other])
    assert f"right in {line['most_frequent']}, {other['most_frequent']} of them" in told


def test_lines_that_were_asked_in_another_order_are_not_reported_together(root: Path) -> None:
    line = run(root, "start", Model())
    turned = {**line["indices"], "test": line["indices"]["test"][::-1]}
    other = changed(line, method="sgd", indices=turned)
    del line["labels"], other["labels"], other["data"]
    with pytest.raises(UsageError, match="the digest of seed 0's indices is"):
        report.check([line, other])


def test_what_was_not_made_alike_is_told(root: Path) -> None:
    line = run(root, "sgd", Model()) | {"served": {"a": {"size": 1}, "b": {"size": 2}}}
    other = changed(line, seed=1, versions={"tree": "another"})
    assert "They were made by 2 states of the code." in report.report([line, other])
    other = changed(line, seed=1, served={"a": {"size": 1}, "b": {"size": 3}})
    assert "with the same weights of b." in report.report([line, other])
    other = changed(line, seed=1, versions={})
    assert "made" not in report.report([line, other]).split("For each seed")[0]
    with pytest.raises(UsageError, match="its versions"):
        report.check([changed(line, versions=3)])


def test_arms_of_five_candidates_are_compared_with_sgd_of_five(root: Path) -> None:
    line = run(root, "sgd", Model())
    line["after"]["exact"] = [0] * 6
    better = changed(line["after"], exact=[1] * 6)
    found = [line, changed(line, method="sgd-5", after=better)]
    found += [changed(line, method="wrong-labels-5", after=better)]
    found += [changed(line, method="edges", after=better)]
    told = report.report(found, True)
    assert row(told, "SGD, gradients from wrong labels, 5 candidates")[6] == "same"
    assert row(told, "SGD, 5 candidates")[6].strip("*") == "+100 (+100 to +100)"
    assert row(told, "SGD, TextGrad's backward prompt")[6].strip("*") == "+100 (+100 to +100)"


def test_a_difference_of_fewer_seeds_than_three_is_not_bold(root: Path) -> None:
    line = run(root, "sgd", Model())
    line["before"]["exact"], line["after"]["exact"] = [0] * 6, [1] * 6
    seeds = [line, changed(line, seed=1), changed(line, seed=2)]
    assert row(report.report(seeds[:2], True), "optim.SGD")[4] == "+100 (+100 to +100)"
    assert row(report.report(seeds, True), "optim.SGD")[4] == "**+100 (+100 to +100)**"


def test_a_difference_says_of_how_many_seeds_it_is(root: Path) -> None:
    line = run(root, "edges", Model())
    found = [line, changed(line, seed=1), changed(line, method="sgd")]
    assert row(report.report(found, True), "SGD, TextGrad's backward prompt")[6] == "same, 1 seed"


def of_tasks(line: dict[str, Any], tasks: list[str], **parts: Any) -> list[dict[str, Any]]:
    """Copies of a line for these tasks and two seeds, with other scores in each."""
    rng = np.random.default_rng(len(tasks))
    found = []
    for task, seed in itertools.product(tasks, (0, 1)):
        scores = {name: rng.integers(0, 2, 6).tolist() for name in ("exact", "lenient")}
        copy = changed(line, seed=seed, after={**line["after"], **scores}, **parts)
        copy["key"]["task"] = f"bbh/{task}"
        found.append(copy)
    return found


def means_of(told: str) -> list[list[str]]:
    """The rows of the table of means, if it is there."""
    found = [part for part in told.split("\n\n") if part.startswith("| method | seeds | NLP")]
    return [[c.strip() for c in r.split("|")[1:-1]] for part in found for r in part.split("\n")[2:]]


def test_the_means_over_tasks_are_those_of_a_count_by_hand(root: Path) -> None:
    line = run(root, "sgd", Model())
    nlp, algorithmic = of_tasks(line, NLP), of_tasks(line, ALGORITHMIC)
    others = of_tasks(line, NLP[1:], method="textgrad") + of_tasks(line, NLP, method="copro")
    (sgd, copro) = means_of(report.report([*nlp, *algorithmic, *others, line]))
    assert (sgd[0], sgd[1]) == ("optim.SGD, semantic gradient descent", "2")
    assert copro[4:] == ["", ""]  # and TextGrad has none of all tasks
    cells = [(k, s) for k in (nlp, algorithmic) for s in ("exact", "lenient")]
    for cell, (lines, score) in zip(sgd[2:], cells, strict=True):
        right = sum(sum(each["after"][score]) for each in lines)
        assert cell.startswith(f"{100 * right / (6 * len(lines)):.0f} (")


def test_there_are_no_means_of_some_tasks_or_of_several_settings(root: Path) -> None:
    line = run(root, "sgd", Model())
    assert not means_of(report.report(of_tasks(line, NLP[1:])))
    found = of_tasks(line, NLP)
    found[0]["key"]["steps"] = found[1]["key"]["steps"] = 9
    assert not means_of(report.report(found))
    failed = changed(line, error={"type": "x", "message": "x"})
    assert not means_of(report.report([*of_tasks(failed, NLP[:1]), *of_tasks(line, NLP[1:])]))
    right = of_tasks(line, NLP)
    for each in right:
        each["after"] |= {"exact": [1] * 6, "lenient": [0] * 6}
    assert means_of(report.report(right))[0][2:4] == ["100 (95 to 100)", "0 (0 to 5)"]  # of 72


def test_the_interval_of_a_mean_over_tasks_is_that_of_all_draws() -> None:
    nan = float("nan")
    tasks = [[[1, 0, nan], [1, 1, 0]], [[0, 1, 1], [0, 1, 0]]]
    each = []
    for values in tasks:
        seeds, questions = (range(len(v)) for v in (values, values[0]))
        means = []
        for picked in itertools.product(seeds, repeat=len(seeds)):
            for chosen in itertools.product(questions, repeat=len(questions)):
                asked = [values[s][q] for s in picked for q in chosen]
                asked = [value for value in asked if value == value]
                means += [sum(asked) / len(asked)] if asked else []
        each.append(means)
    drawn = np.array([(a + b) / 2 for a, b in itertools.product(*each)])
    found = interval_of_mean(tasks)
    assert found.mean == pytest.approx((3 / 5 + 3 / 6) / 2)
    for bound, share in ((found.low, 0.025), (found.high, 0.975)):
        assert (drawn < bound - 1e-9).mean() <= share + 0.005
        assert (drawn <= bound + 1e-9).mean() >= share - 0.005


def test_the_tasks_of_both_kinds_are_those_of_the_queue() -> None:
    tasks = {setting.task for setting in queued("full")} - {"gsm8k", "liar"}
    assert tasks == {f"bbh/{task}" for task in (*NLP, *ALGORITHMIC)}
    assert len(NLP) == 12 and len(ALGORITHMIC) == 11 + 2 + 2


def test_no_difference_is_counted_twice(root: Path) -> None:
    line = run(root, "start", Model())
    found = [changed(line, method=name) for name in ("start", "format", "sgd")]
    # form less start, SGD less start, SGD less form
    assert len(report.differences(grouped(found))) == 3


def test_the_report_says_where_the_untrained_agent_was_another(root: Path) -> None:
    line = run(root, "start", Model())
    other = changed(line, method="sgd", before=line["before"] | {"exact": [1] * 6})
    right = sum(line["before"]["exact"])
    told = report.report([line, other])
    assert f"was not always the same: right are {right} in 1 runs, 6 in 1 runs." in told
    assert "not always the same" not in report.report([line, changed(line, method="sgd")])


def test_a_proposal_of_what_is_there_is_no_try() -> None:
    kept = {"a": "old"}, {"a": "new"}, {"a": "newer"}
    steps = [
        {"proposed": kept[0], "accepted": True},
        {"proposed": kept[1], "accepted": True},
        {"proposed": kept[1], "accepted": False},
        {"proposed": kept[2], "accepted": False},
    ]
    assert tried({"initial": kept[0], "steps": steps}) == 2
    ungated = [{"proposed": kept[1]}] * 3  # Trace's: taken as it is, then not proposed again
    assert tried({"initial": kept[0], "steps": ungated}) == 1


def test_what_is_left_out_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reported(*lines: dict[str, Any], words: tuple[str, ...] = ()) -> object:
        file = root / "r.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        monkeypatch.setattr(sys, "argv", ["report", "--results", str(file), *words])
        try:
            report.main()
        except SystemExit as end:
            return end.code
        return 0

    line = run(root, "start", Model())
    old = changed(line, method="sgd-old")
    assert reported(line, old) == 0
    assert "left out, as there is no such method: sgd-old" in capsys.readouterr().err
    assert "but of methods that are not known: sgd-old" in str(reported(old))
    assert "leave out --results" in str(reported(line, words=("--write",)))
    monkeypatch.setattr(sys, "argv", ["report", "--results", str(root)])
    with pytest.raises(SystemExit, match="is no file"):
        report.main()
