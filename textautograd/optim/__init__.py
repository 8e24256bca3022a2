"""Optimizers, as `torch.optim`: they rewrite parameters from their gradients."""

from textautograd.optim.check import objection
from textautograd.optim.copro import COPRO
from textautograd.optim.optimizer import Candidate, Optimizer, StepResult
from textautograd.optim.optoprime import OptoPrime
from textautograd.optim.sgd import SGD
from textautograd.optim.textgrad import TextGrad

__all__ = [
    "COPRO",
    "SGD",
    "Candidate",
    "Optimizer",
    "OptoPrime",
    "StepResult",
    "TextGrad",
    "objection",
]
