"""OptoPrime's side of `benchmarks.cost` (trace-opt 0.1.3.8); run in its environment.

Its backward makes no calls: the one call of a step shows the whole graph. A batch has to be one
output, so outputs are joined, as its own examples do. No loss is called: feedback is the judge's,
which the other systems pay for, so compare it with their sum without the loss.
"""

from __future__ import annotations

import contextlib
import json
import os
from types import SimpleNamespace

from benchmarks.counted import meter
from benchmarks.counted.meter import Meter

os.environ.update(OPENAI_API_KEY="none", TRACE_DEFAULT_LLM_BACKEND="LiteLLM")
with contextlib.redirect_stdout(None):
    from opto.optimizers import OptoPrime
    from opto.trace import GRAPH, bundle, node


def run(meter_: Meter, case: str, size: int) -> None:
    """One step of one case."""
    GRAPH.clear()

    @bundle()
    def llm(instruction, question):
        """Calls a language model with an instruction and a question."""
        return meter_.charge([instruction, question], meter_.said())

    @bundle()
    def solve(instruction, question, *hints):
        """Calls a language model with an instruction, a question and hints."""
        return meter_.charge([instruction, question, *hints], meter_.said())

    @bundle()
    def joined(*outputs):
        """Joins the outputs of a batch."""
        return "\n".join(f"ID [{i}]: {output}" for i, output in enumerate(outputs))

    def parameter(text):
        return node(text, trainable=True, description="instruction of the system")

    if case == "depth":
        parameters = [parameter(f"Step {i}.") for i in range(size)]
        output = node(meter.text(20, "0:"))
        for each in parameters:
            output = llm(each, output)
        outputs = [output]
    elif case == "width":
        question = node(meter.text(20, "0:"))
        parameters = [parameter(f"Give hint {i}.") for i in range(size)] + [parameter("Answer.")]
        hints = [llm(each, question) for each in parameters[:-1]]
        outputs = [solve(parameters[-1], question, *hints)]
    else:
        questions, extract, answer = meter.shape(case, size)
        parameters = [parameter(extract), parameter(answer)]
        outputs = [llm(parameters[1], llm(parameters[0], node(q))) for q in questions]
    root = outputs[0] if len(outputs) == 1 else joined(*outputs)
    meter_.phase = "loss"
    feedback = "\n".join(f"ID [{i}]: {meter_.said()}" for i in range(len(outputs)))
    if len(outputs) == 1:
        feedback = meter_.said()

    def call(messages, **options):
        names = {p.py_name: meter_.said() for p in parameters}
        said = json.dumps({"reasoning": meter_.said(), "answer": "", "suggestion": names})
        reply = meter_.charge([m["content"] for m in messages], said)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=reply))])

    optimizer = OptoPrime(parameters, llm=call)
    meter_.phase = "backward"
    optimizer.zero_feedback()
    optimizer.backward(root, feedback)
    meter_.phase = "step"
    optimizer.step()


if __name__ == "__main__":
    meter.main(run)
