"""TextGrad 0.1.8 on a job; run in its environment.

As its tutorial on prompts trains (`prompt_optimization.py`): a string-based loss for every sample
of a batch, right or wrong, whose backward is a call of its own; their sum backward; one step of
`TGD`; the step is undone if it scores less on the validation set. Each call of its engines is made
once. A step that fails (its optimizer raises on a reply without tags) ends training, with the
instructions that were validated last.
"""

from __future__ import annotations

import logging
import os
import tempfile

from benchmarks.paper.peers.job import (
    Chat,
    Evaluate,
    Job,
    Node,
    Record,
    Train,
    blocks,
    main,
    messages,
    revert,
    system,
)

os.environ["TEXTGRAD_LOG_DIR"] = tempfile.mkdtemp()
import textgrad as tg
from textgrad.autograd import FormattedLLMCall, StringBasedFunction
from textgrad.autograd.function import BackwardContext, Function
from textgrad.engine.base import EngineLM

logging.disable(logging.CRITICAL)
PURPOSE = "The runtime of string-based function that checks if the prediction is correct."


class Engine(EngineLM):
    """The job's model, with what is fixed at the end of a node's system prompt."""

    def __init__(self, chat: Chat, phase: str, node: Node | None = None) -> None:
        self.chat, self.phase, self.node, self.model_string = chat, phase, node, phase

    def generate(self, prompt, system_prompt=None, **kwargs):
        if self.node:
            said = system(self.node, system_prompt)
        else:
            said = system_prompt or self.system_prompt
        return self.chat(self.phase, messages(said, prompt))

    __call__ = generate


class Call(FormattedLLMCall):
    """Shows the backward model the system prompt as it was sent."""

    def backward(self, response, prompt, system_prompt, backward_engine):
        sent = system(self.engine.node, system_prompt)
        super().backward(response, prompt, sent, backward_engine)


class Statement(Function):
    """The part of a reply that is its value; its gradients are the reply's."""

    def forward(self, reply, node):
        value = tg.Variable(
            node.value(reply.value),
            predecessors=[reply],
            role_description=reply.get_role_description(),
        )
        value.set_grad_fn(BackwardContext(self.backward, response=value))
        return value

    def backward(self, response, backward_engine):
        (reply,) = response.predecessors
        reply.gradients |= response.gradients
        reply.gradients_context.update(response.gradients_context)


def forward(chat, parameters, example):
    """The output of a sample, on TextGrad's graph."""
    fields = {
        name: tg.Variable(text, requires_grad=False, role_description=f"{name}, as it was asked")
        for name, text in example.fields.items()
    }
    values = {}
    for node in chat.job.graph:
        inputs = node.read(fields, values)
        # Its format string takes fields alone; texts that hold tags need other tags around them.
        texts = {name: variable.value for name, variable in inputs.items()}
        template = blocks(texts, {name: f"{{{name}}}" for name in texts})
        asked = dict.fromkeys(texts)
        call = Call(Engine(chat, "forward", node), template, asked, parameters[node.name])
        last = node is chat.job.graph[-1]
        role = "answer of the system" if last else f"output of the step {node.name}"
        reply = call(inputs=inputs, response_role_description=role)
        values[node.name] = Statement()(reply, node) if node.states else reply
    return values[chat.job.graph[-1].name]


def prepare(method: str, job: Job) -> tuple[Evaluate, Train]:
    """How to evaluate and to train."""
    chat = Chat(job)
    check = StringBasedFunction(
        lambda prediction, ground_truth_answer: job.feedback(
            prediction.value, ground_truth_answer.value
        ),
        function_purpose=PURPOSE,
    )
    parameters = {
        node.name: tg.Variable(
            node.instruction,
            requires_grad=True,
            role_description=f"instruction (system prompt) of the step {node.name} of the system",
        )
        for node in job.graph
    }

    def loss(example):
        gold = tg.Variable(
            example.answer, requires_grad=False, role_description="correct answer for the query"
        )
        output = forward(chat, parameters, example)
        return check(inputs={"prediction": output, "ground_truth_answer": gold})

    def train(job: Job, record: Record) -> None:
        record.settings = {
            "loss": "StringBasedFunction, every sample, right or wrong",
            "gate": "validation-revert: undone if lower",
            "constraints": 0,
            "gradient_memory": 0,
        }
        tg.set_backward_engine(Engine(chat, "backward"), override=True)
        optimizer = tg.TGD(list(parameters.values()), engine=Engine(chat, "optimize"))
        score = chat.score(record.instructions, job.val)
        for batch in job.batches():
            optimizer.zero_grad()
            right = chat.score(record.instructions, batch)  # at once: TextGrad would go one by one
            tg.sum([loss(example) for example in batch]).backward()
            optimizer.step()
            new = {name: parameter.value for name, parameter in parameters.items()}
            before = score
            accepted, score = revert(chat, record, new, before)
            record.steps.append(
                {"right": right, "before": before, "after": score, "accepted": accepted}
                | {"proposed": new}
            )
            for name, text in record.instructions.items():
                parameters[name].set_value(text)

    return chat.evaluate, train


if __name__ == "__main__":
    main(prepare, ["textgrad", "openai"])
