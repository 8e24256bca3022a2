"""Trace's OptoPrime (trace-opt 0.1.3.8) on a job; run in its environment.

As its examples train: a bundle for each node, the outputs of a batch joined to one, the feedback on
each sample joined likewise, one call of the optimizer. Every step goes on from the one before; with
the job's gate, what scored best on the validation set is kept in the end, as in its example on
BIG-Bench Hard.
"""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace

from benchmarks.paper.peers.job import Chat, Evaluate, Job, Record, Train, main

os.environ.update(OPENAI_API_KEY="none", TRACE_DEFAULT_LLM_BACKEND="LiteLLM")
with contextlib.redirect_stdout(None):
    from opto.optimizers import OptoPrime
    from opto.trace import GRAPH, bundle, node


@bundle()
def concat(*items):
    """Joins items, each with its number."""
    return "\n".join(f"ID [{i}]: {item}" for i, item in enumerate(items))


def operation(chat: Chat, each):
    """A node of the graph as an operation of Trace's."""

    def call(instruction, **inputs):
        return each.value(chat.node("forward", each, instruction, inputs))

    call.__name__ = call.__qualname__ = each.name
    form = f" and to keep to this form: {each.output_format}" if each.output_format else ""
    description = (
        f"[{each.name}] Asks a language model to follow the instruction{form}. "
        "The instruction is the system prompt, the inputs are the user's message."
    )
    return bundle(description=description, traceable_code=False)(call)


def prepare(method: str, job: Job) -> tuple[Evaluate, Train]:
    """How to evaluate and to train."""
    chat = Chat(job)

    def write(messages, max_tokens, **options):
        text = chat("optimize", messages, max_tokens=max_tokens, **options)
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])

    def train(job: Job, record: Record) -> None:
        record.settings = {
            "feedback": "every sample, right or wrong",
            "gate": "the best on the validation set" if job.gate else None,
            "memory_size": 0,
            "temperature": 0,
        }
        operations = {each.name: operation(chat, each) for each in job.graph}
        parameters = {
            each.name: node(
                each.instruction,
                name=f"{each.name}_instruction",
                trainable=True,
                description=f"The instruction of {each.name}.",
            )
            for each in job.graph
        }
        optimizer = OptoPrime(
            list(parameters.values()), llm=write, max_tokens=job.optimizer_max_tokens
        )

        def forward(example):
            fields = {name: node(text, name=name) for name, text in example.fields.items()}
            values: dict = {}
            for each in job.graph:
                inputs = each.read(fields, values)
                values[each.name] = operations[each.name](parameters[each.name], **inputs)
            return values[job.graph[-1].name]

        best = chat.score(record.instructions, job.val) if job.gate else None
        now = record.instructions
        for batch in job.batches():
            right = chat.score(now, batch)  # at once: Trace would go one by one
            outputs = [forward(example) for example in batch]
            told = [job.feedback(o.data, e.answer) for o, e in zip(outputs, batch, strict=True)]
            optimizer.zero_feedback()
            optimizer.backward(concat(*outputs), concat(*told).data)
            optimizer.step()
            now = {name: parameter.data for name, parameter in parameters.items()}
            record.steps.append({"right": right, "proposed": now})
            if best is None:
                record.instructions = now
                continue
            score = chat.score(now, job.val)
            record.steps[-1]["score"] = score
            if score > best:
                best, record.instructions = score, now

    GRAPH.clear()
    return chat.evaluate, train


if __name__ == "__main__":
    main(prepare, ["trace-opt", "litellm"])
