"""Modules, parameters and losses, as `torch.nn`."""

from textautograd.nn.container import ModuleDict, ModuleList, Sequential
from textautograd.nn.llm import LLM
from textautograd.nn.loss import ExactMatchLoss, FunctionLoss, JudgeLoss
from textautograd.nn.module import Module, Parameter, functional_call

__all__ = [
    "LLM",
    "ExactMatchLoss",
    "FunctionLoss",
    "JudgeLoss",
    "Module",
    "ModuleDict",
    "ModuleList",
    "Parameter",
    "Sequential",
    "functional_call",
]
