"""DSPy's side of `benchmarks.speed`: `python peer_dspy.py BASE_URL`, in its environment."""

from __future__ import annotations

import sys

import dspy
from worker import Work, check, serve

url = sys.argv[1]
lm = dspy.LM("openai/model", api_base=url, api_key="none", temperature=0.0, cache=False)
dspy.configure(lm=lm)


def evaluate1000() -> Work:
    agent = dspy.Predict("question -> answer")
    questions = [
        dspy.Example(question=f"Question {i}?", answer="42").with_inputs("question")
        for i in range(1000)
    ]
    evaluate = dspy.Evaluate(
        devset=questions,
        metric=lambda example, prediction, trace=None: example.answer == prediction.answer,
        num_threads=64,
        display_progress=False,
    )

    def work() -> None:
        results = evaluate(agent).results
        answers = {prediction.answer for _, prediction, _ in results}
        check(len(answers) == 1000, f"samples left out: {len(answers)} answers")

    return work


serve(url, {"evaluate1000": evaluate1000})
