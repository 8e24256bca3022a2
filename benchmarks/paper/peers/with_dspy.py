"""DSPy 3.4.1 on a job, by COPRO, MIPROv2 (instructions alone, no demonstrations) or GEPA.

Run in its environment.

A node is a `dspy.Predict` with the node's inputs and an output "answer", whose description is the
node's output format (a `ChainOfThought` where that asks to state the answer after reasoning); DSPy
writes the prompts. Its caches are in memory alone. COPRO scores candidates on the training and gate
questions, as many as it can afford; MIPROv2 and GEPA propose from the former and score on the
latter. How large their searches are is in `sizes.py`. Draws have no seed, so two runs differ. When
the tokens are used up, COPRO and MIPROv2 end with the best program that was scored, GEPA after its
iteration.
"""

from __future__ import annotations

import logging
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMError, LMInvalidRequestError

from benchmarks.paper.peers import sizes
from benchmarks.paper.peers.job import (
    THREADS,
    Evaluate,
    Example,
    Gone,
    Instructions,
    Job,
    Record,
    Spent,
    Train,
    main,
)

logging.getLogger("dspy").setLevel(logging.WARNING)


class Program(dspy.Module):
    """The job's graph."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.graph = job.graph
        for node in self.graph:
            assert "answer" not in node.inputs, "no input may be called as the output is"
            form = {} if node.states or not node.output_format else {"desc": node.output_format}
            fields: dict[str, Any] = {name: (str, dspy.InputField()) for name in node.inputs}
            fields["answer"] = (str, dspy.OutputField(**form))
            signature = dspy.Signature(fields, node.instruction)
            kind = dspy.ChainOfThought if node.states else dspy.Predict
            setattr(self, f"node_{node.name}", kind(signature))

    def forward(self, **fields: str) -> dspy.Prediction:
        values: dict[str, str] = {}
        for node in self.graph:
            call = getattr(self, f"node_{node.name}")
            values[node.name] = call(**node.read(fields, values)).answer
        return dspy.Prediction(answer=values[self.graph[-1].name])

    def put(self, instructions: Instructions) -> Program:
        """With these."""
        for node, predictor in zip(self.graph, self.predictors(), strict=True):
            text = instructions[node.name]
            predictor.signature = predictor.signature.with_instructions(text)
        return self

    def instructions(self) -> Instructions:
        """As they are now."""
        found = zip(self.graph, self.predictors(), strict=True)
        return {node.name: predictor.signature.instructions for node, predictor in found}


class Lost(BaseCallback):
    """Ends the run where the server fails: DSPy would count the sample as wrong."""

    def on_lm_end(self, call_id, outputs, exception=None):
        if isinstance(exception, LMError) and not isinstance(exception, LMInvalidRequestError):
            raise Gone(str(exception))


class Watch(BaseCallback):
    """Notes what was scored and keeps the best; ends training when its tokens are used up."""

    def __init__(self, job: Job, record: Record, hard: bool) -> None:
        self.job, self.record, self.hard = job, record, hard
        self.scored: dict[str, Instructions] = {}
        self.best = 0.0  # what scores nothing is no better than the beginning

    def on_lm_start(self, call_id, instance, inputs):
        if self.hard and self.job.tokens is not None:
            self.job.spent()

    def on_evaluate_start(self, call_id, instance, inputs):
        self.scored[call_id] = inputs["program"].instructions()

    def on_evaluate_end(self, call_id, outputs, exception=None):
        instructions = self.scored.pop(call_id)
        if outputs is None:
            return
        self.record.steps.append({"score": outputs.score, "proposed": instructions})
        if self.hard and outputs.score > self.best:
            self.best, self.record.instructions = outputs.score, instructions


def shown(examples: list[Example]) -> list[dspy.Example]:
    """As DSPy's."""
    return [dspy.Example(**e.fields, answer=e.answer).with_inputs(*e.fields) for e in examples]


def copro(job: Job, allowed: int, metric: Any, writer: dspy.LM, record: Record) -> dspy.Module:
    """It has no gate: its training set is the questions that others train and gate on, or as many
    of them as `sizes` finds room for."""
    known = job.train + [example for example in job.val if example not in job.train]
    size = sizes.copro(allowed, job.run_again(), len(known), job.steps)
    record.settings |= size
    search = dspy.COPRO(
        prompt_model=writer, metric=metric, breadth=size["breadth"], depth=size["depth"]
    )
    trainset = shown(known[: size["trainset"]])
    return search.compile(Program(job), trainset=trainset, eval_kwargs={"num_threads": THREADS})


def miprov2(job: Job, allowed: int, metric: Any, writer: dspy.LM, record: Record) -> dspy.Module:
    """Instructions alone."""
    size = sizes.miprov2(allowed, len(job.graph), len(job.train), len(job.val))
    record.settings |= size
    search = dspy.MIPROv2(
        metric=metric,
        prompt_model=writer,
        auto=None,
        num_candidates=size["num_candidates"],
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        num_threads=THREADS,
        seed=job.seed + 1,  # it takes 0 for none
    )
    return search.compile(
        Program(job),
        trainset=shown(job.train),
        valset=shown(job.val),
        num_trials=size["num_trials"],
        minibatch=size["minibatch"],
    )


def gepa(job: Job, allowed: int, metric: Any, writer: dspy.LM, record: Record) -> dspy.Module:
    """With the feedback on each run of the program."""

    def explained(gold, pred, trace=None, pred_name=None, pred_trace=None):
        output = pred.get("answer") or ""
        feedback = job.feedback(output, gold.answer)
        return dspy.Prediction(score=float(job.right(output, gold.answer)), feedback=feedback)

    size = sizes.gepa(allowed, len(job.val))
    record.settings |= size
    search = dspy.GEPA(
        metric=explained,
        reflection_lm=writer,
        num_threads=THREADS,
        seed=job.seed,
        track_stats=True,
        gepa_kwargs={"stop_callbacks": [lambda state: over(job)]},
        **size,
    )
    found = search.compile(Program(job), trainset=shown(job.train), valset=shown(job.val))
    results = found.detailed_results
    pairs = zip(results.candidates, results.val_aggregate_scores, strict=True)
    record.steps = [{"score": score, "proposed": each.instructions()} for each, score in pairs]
    return found


def over(job: Job) -> bool:
    """Are the tokens used up?"""
    try:
        if job.tokens is not None:
            job.spent()
    except Spent:
        return True
    return False


def prepare(method: str, job: Job) -> tuple[Evaluate, Train]:
    """How to evaluate and to train."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    search = {"copro": copro, "miprov2": miprov2, "gepa": gepa}[method]

    def model(name: str, phase: str, limit: int, temperature: float) -> dspy.LM:
        return dspy.LM(
            f"openai/{name}",
            api_base=job.api_base,
            api_key=f"{job.run}/{phase}",
            temperature=temperature,
            max_tokens=limit,
        )

    def metric(example, prediction, trace=None):
        return job.right(prediction.get("answer") or "", example.answer)

    def evaluate(
        phase: str, instructions: Instructions, examples: list[Example]
    ) -> list[str | None]:
        run = dspy.Evaluate(
            devset=shown(examples),
            metric=metric,
            num_threads=THREADS,
            max_errors=len(examples) + 1,
        )
        lm = model(job.model, phase, job.max_tokens, 0.0)
        with dspy.context(lm=lm, callbacks=[Lost()]):
            results = run(Program(job).put(instructions)).results
        return [prediction.get("answer") for _, prediction, _ in results]

    def train(job: Job, record: Record) -> None:
        writer = model(job.optimizer_model, "optimize", job.optimizer_max_tokens, 1.0)
        lm = model(job.model, "forward", job.max_tokens, 0.0)
        each = 0.0
        if job.tokens is not None:
            each = job.used().get("before", 0) / max(len(job.test), 1)
        allowed = sizes.runs(job.steps, job.batch_size, len(job.val), job.tokens, each)
        record.settings = {"runs allowed": allowed, "tokens of a run before": round(each)}
        watch = Watch(job, record, hard=method != "gepa")
        # A failed run scores 0, however many there are.
        with dspy.context(lm=lm, callbacks=[watch, Lost()], max_errors=10**6):
            found = search(job, allowed, metric, writer, record)
        record.instructions = found.instructions()

    return evaluate, train


if __name__ == "__main__":
    main(prepare, ["dspy", "gepa", "optuna", "litellm"])
