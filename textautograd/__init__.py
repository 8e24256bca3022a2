"""PyTorch for agents: `loss.backward()` gives every instruction a gradient in words.

import textautograd as ta
from textautograd import nn, optim, rules, data, engines
"""

from importlib import import_module

from textautograd import data, engines, errors, nn, optim, rules
from textautograd.backward import BackwardWarning, grad
from textautograd.engines import (
    Budget,
    engine,
    set_default_engine,
    use_engine,
)
from textautograd.errors import BudgetExceeded, Error
from textautograd.evaluation import Evaluation, evaluate
from textautograd.function import Function
from textautograd.functional import call_tool, cat, fill, mean, select
from textautograd.grad_mode import detect_anomaly, is_anomaly_enabled, is_grad_enabled, no_grad
from textautograd.gradient import Feedback, Gradient
from textautograd.mapping import map
from textautograd.nn import functional_call
from textautograd.training import History, fit
from textautograd.variable import TextVariable

__version__ = "0.1.0"

__all__ = [
    "BackwardWarning",
    "Budget",
    "BudgetExceeded",
    "Error",
    "Evaluation",
    "Feedback",
    "Function",
    "Gradient",
    "History",
    "TextVariable",
    "call_tool",
    "cat",
    "data",
    "detect_anomaly",
    "engine",
    "engines",
    "errors",
    "evaluate",
    "fill",
    "fit",
    "functional_call",
    "grad",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "map",
    "mean",
    "nn",
    "no_grad",
    "optim",
    "rules",
    "select",
    "set_default_engine",
    "use_engine",
]


def __getattr__(name: str) -> object:
    if name in ("numeric", "testing"):  # imported on first use, as they need numpy
        return import_module(f"textautograd.{name}")
    raise AttributeError(f"module 'textautograd' has no attribute {name!r}")


def __dir__() -> list[str]:  # what is meant for users, without the modules that it is made of
    return [*__all__, "numeric", "testing", "__version__"]
