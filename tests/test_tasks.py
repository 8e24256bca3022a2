import json
from pathlib import Path

import pytest

import textautograd as ta
from textautograd import engines, tasks
from textautograd.errors import DataError, UsageError


def bbh(root: Path, n: int) -> Path:
    (root / "bbh").mkdir(parents=True)
    rows = [{"input": f"What is {i} plus 1?", "target": str(i + 1)} for i in range(n)]
    (root / "bbh" / "sums.json").write_text(json.dumps({"examples": rows}))
    return root


def test_held_out_questions_are_the_same_for_every_seed_and_never_trained_on(
    tmp_path: Path,
) -> None:
    root = bbh(tmp_path, 40)
    first, second = (tasks.load("bbh/sums", root, seed=s, sizes=(8, 8, 10)) for s in (0, 1))
    assert first.test == second.test
    assert first.train != second.train
    for task in (first, second):
        parts = [e.question for part in (task.train, task.val, task.test) for e in part]
        assert len(parts) == len(set(parts)) == 26


def test_more_examples_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        tasks.load("bbh/sums", bbh(tmp_path, 10), sizes=(8, 8, 10))


@pytest.mark.parametrize("name", ["bbh", "bbh/", "gsm8k/x", "squad", ""])
def test_unknown_tasks_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        tasks.load(name, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl"):
        tasks.load("gsm8k", tmp_path)


def test_two_hints_is_the_papers_graph() -> None:
    engine = engines.Scripted(lambda request: "fine")
    agent = tasks.TwoHints().to(engine)
    agent.hint_2.instruction.data = "Another hint."
    output = agent(question="q")
    assert output.grad_fn.operation.names == ("instruction", "question", "hint_1", "hint_2")
    assert len(engine.calls) == 3


def test_analysts_is_the_papers_graph_for_liar() -> None:
    engine = engines.Scripted(lambda request: "Yes")
    agent = tasks.Analysts().to(engine)
    fields = {"party": "p", "job_title": "j", "state": "s", "source": "c"}
    assert str(agent(question="q", **fields)) == "Yes"
    assert len(engine.calls) == 6
    assert len(list(agent.parameters())) == 6


@pytest.mark.parametrize(
    ("output", "target", "same"),
    [
        ("8", "8", True),
        ("There are 3 plums and 5 figs, so the answer is 8.", "8", True),
        ("Answer: 8 (of 12)", "8", False),
        ("First 12, then 1,008.0", "1008", True),
        ("The answer is (B).", "(B)", True),
        ("I would say (A), no: (b)", "(B)", True),
        ("B", "(B)", True),
        ("B.", "(B)", True),
        ("The answer is B.", "(B)", True),
        ("The answer is (B), as 5 > 3", "(B)", True),
        ("The answer is A red one, (B)", "(B)", True),
        ("A cat", "(A)", False),
        ("I'm sure", "(I)", False),
        ("Yes and no: Yes", "Yes", True),
        ("The answer is: apple bee cat", "apple bee cat", True),
        ("Sorted:\napple, bee, cat.", "apple bee cat", True),
        ("apple bee cot", "apple bee cat", False),
        ("Answer: ] ) }", "] ) }", True),
        ("] )", "] ) }", False),
        ("**valid**", "valid", True),
        ("The answer is invalid.", "invalid", True),
        ("The answer is invalid.", "valid", False),
        ("The answer is valid, as it follows", "valid", True),
        ("", "valid", False),
        ("", "(A)", False),
        ("Yes, it is.", "Yes", True),
        ("no idea at all", "8", False),
        ("", "8", False),
        ("2.50", "2.5", True),
        ("9" * 400, "9" * 400, True),
        ("-0", "0", True),
    ],
)
def test_lenient_match(output: str, target: str, same: bool) -> None:
    assert tasks.lenient_match(output, target) is same


def test_a_task_trains(tmp_path: Path) -> None:
    task = tasks.load("bbh/sums", bbh(tmp_path, 20), sizes=(4, 4, 4))
    engine = engines.Scripted(lambda request: "fine")
    evaluation = ta.evaluate(task.agent.to(engine), task.test, ta.nn.ExactMatchLoss())
    assert evaluation.accuracy == 0


def test_too_few_examples_are_counted_in_the_words_of_sizes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"10 examples.* are too few: sizes=\(4, 4, 3\) takes 11"):
        tasks.load("bbh/sums", bbh(tmp_path, 10), sizes=(4, 4, 3))
