"""The tutorial's network learns exactly as it does with HIPS/autograd."""

import runpy
from pathlib import Path
from typing import Any

import autograd
import autograd.numpy as anp
import numpy as np

TUTORIAL = Path(__file__).parent.parent / "tutorials" / "2_numbers_on_the_same_tape.py"


def test_the_loss_curve_is_autograd_s() -> None:
    tutorial = runpy.run_path(str(TUTORIAL))
    points, marks = tutorial["points"], tutorial["marks"]

    def loss(params: list[Any]) -> Any:
        w1, b1, w2, b2 = params
        score = anp.tanh(points @ w1 + b1) @ w2 + b2
        return anp.mean(anp.log(1 + anp.exp(-marks * score)))

    params = [p.data for p in tutorial["MLP"](np.random.default_rng(1)).parameters()]
    velocities = [np.zeros(p.shape) for p in params]
    losses = []
    for _ in tutorial["losses"]:
        value, gradients = autograd.value_and_grad(loss)(params)
        losses.append(value)
        velocities = [0.9 * v + g for v, g in zip(velocities, gradients, strict=True)]
        params = [p - 0.2 * v for p, v in zip(params, velocities, strict=True)]
    np.testing.assert_allclose(tutorial["losses"], losses, rtol=1e-9)
    assert losses[-1] < losses[0] / 3
