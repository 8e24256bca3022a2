"""The whole loop on the model that comes with the package."""

from pathlib import Path

import pytest

import textautograd as ta
from textautograd import demo, nn, optim


def test_the_demo_s_questions_are_disjoint_and_well_formed() -> None:
    parts = (demo.train, demo.val, demo.test)
    questions = [example.question for part in parts for example in part]
    assert len(set(questions)) == len(questions) == 54
    assert all(example.answer.strip() for part in parts for example in part)


def test_the_demo_s_loss_says_what_an_instruction_can_mend() -> None:
    assert demo.brief("Lima.", "Lima") == (0.0, "")
    assert demo.brief("Quito.", "Lima") == (1.0, "")
    loss, said = demo.brief("word " * 9 + "Lima", "Lima")
    assert loss == 1.0 and "8 words" in said


@pytest.mark.timeout(1500)  # 15 s on an idle machine; llama.cpp shares a busy one badly
def test_one_step_on_the_embedded_model(tmp_path: Path) -> None:
    engine = ta.engine("local", max_tokens=160)
    agent, loss_fn = demo.Agent().to(engine), nn.FunctionLoss(demo.brief)
    optimizer = optim.SGD(
        agent.tell.parameters(),
        engine=ta.engine("local", max_tokens=48),
        examples=1,
        candidates=3,
        temperature=0.7,
        prompt=demo.prompt,
    )
    before = agent.state_dict()
    history = ta.fit(
        agent,
        demo.train,
        loss_fn,
        optimizer,
        val=demo.val[:5],
        steps=1,
        batch_size=6,
        run_dir=tmp_path,
        max_failed=1.0,  # of so small a model's backward replies, most may be unusable
    )
    (step,) = history.metrics
    assert step["wrong"] > 0 and "too long" in step["gradients"]["instruction"][0]
    assert agent.think.instruction.grad, "no semantic gradient passed the second call"
    assert history.usage.calls > 10 and history.usage.tokens > 1000
    assert len(history.states) == 3
    changed = agent.state_dict() != before
    assert changed == step["accepted"]
    assert not step["accepted"] or step["after"] < step["before"]


@pytest.mark.parametrize("returned", [None, 1.0, ("x", "y"), (1.0, None), (-1.0, "z"), (1.0,)])
def test_a_loss_function_must_return_a_number_and_a_text(returned: object) -> None:
    loss = nn.FunctionLoss(lambda output, target: returned)("out", "target")  # type: ignore[arg-type, return-value]
    with pytest.raises(ta.Error, match="must return"):
        loss.item()


def test_a_loss_without_words_has_no_gradient() -> None:
    x = ta.TextVariable("x", requires_grad=True)
    nn.FunctionLoss(lambda output, target: (1.0, ""))(x, "t").backward()
    assert x.grad is None
    nn.FunctionLoss(lambda output, target: (1.0, f"Say {target}."))(x, "t").backward()
    assert str(x.grad) == "Say t."
