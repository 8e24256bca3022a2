"""TextGrad's side of `benchmarks.cost` (textgrad 0.1.8); run in its environment."""

from __future__ import annotations

import logging
import os
import tempfile

from benchmarks.counted import meter
from benchmarks.counted.meter import CRITERION, Meter

os.environ["OPENAI_API_KEY"] = "none"
os.chdir(tempfile.mkdtemp())  # it makes a folder of logs where it is imported
import textgrad as tg  # noqa: E402
from textgrad.autograd import FormattedLLMCall  # noqa: E402
from textgrad.engine.base import EngineLM  # noqa: E402

logging.disable(logging.CRITICAL)


class Counting(EngineLM):
    """Replies of fixed length, in the form that the phase asks for."""

    model_string = "counting"

    def __init__(self, meter_: Meter) -> None:
        self.meter = meter_

    def generate(self, prompt, system_prompt=None, **kwargs):
        said = self.meter.said()
        if self.meter.phase == "step":
            said = f"<IMPROVED_VARIABLE>{said}</IMPROVED_VARIABLE>"
        return self.meter.charge([system_prompt or self.system_prompt, prompt], said)

    __call__ = generate


def run(meter_: Meter, case: str, size: int) -> None:
    """One step of one case."""
    engine = Counting(meter_)
    tg.set_backward_engine(engine, override=True)

    def parameter(text: str) -> tg.Variable:
        return tg.Variable(text, requires_grad=True, role_description="instruction of the system")

    def asked(text: str) -> tg.Variable:
        return tg.Variable(text, requires_grad=False, role_description="question")

    if case == "depth":
        parameters = [parameter(f"Step {i}.") for i in range(size)]
        output = asked(meter.text(20, "0:"))
        for each in parameters:
            output = tg.BlackboxLLM(engine, each)(output)
        outputs = [output]
    elif case == "width":
        question = asked(meter.text(20, "0:"))
        parameters = [parameter(f"Give hint {i}.") for i in range(size)]
        hints = {f"hint{i}": tg.BlackboxLLM(engine, p)(question) for i, p in enumerate(parameters)}
        parameters.append(parameter("Answer."))
        fields = {"question": question, **hints}
        solve = FormattedLLMCall(
            engine,
            "\n".join(f"{name}: {{{name}}}" for name in fields),
            dict.fromkeys(fields),
            system_prompt=parameters[-1],
        )
        outputs = [solve(inputs=fields, response_role_description="answer")]
    else:
        questions, extract, answer = meter.shape(case, size)
        parameters = [parameter(extract), parameter(answer)]
        first, second = (tg.BlackboxLLM(engine, p) for p in parameters)
        outputs = [second(first(asked(question))) for question in questions]
    meter_.phase = "loss"
    criterion = f"{CRITERION} Say what is wrong with the output and how it should change."
    losses = [tg.TextLoss(criterion, engine)(output) for output in outputs]
    meter_.phase = "backward"
    tg.sum(losses).backward()
    meter_.phase = "step"
    tg.TGD(parameters=parameters, engine=engine).step()


if __name__ == "__main__":
    meter.main(run)
