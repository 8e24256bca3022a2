"""Optimizers, as `torch.optim`: they rewrite parameters from their gradients."""

from textautograd.optim.check import objection
from textautograd.optim.optimizer import Candidate, Optimizer, StepResult
from textautograd.optim.sgd import SGD

__all__ = ["SGD", "Candidate", "Optimizer", "StepResult", "objection"]
