"""What a run of `fit` is, by which its directory knows it: code, settings, engines and data."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import isfunction
from typing import Any

from textautograd.data.example import Example
from textautograd.engines import default_engine
from textautograd.engines._identity import identity_of
from textautograd.engines.base import Engine
from textautograd.errors import UsageError
from textautograd.evaluation import LossFn
from textautograd.identity import digest, identity, members
from textautograd.nn.module import Module
from textautograd.optim.optimizer import Optimizer
from textautograd.rules import Rule
from textautograd.variable import TextVariable


def settings_of(
    module: Module, loss_fn: LossFn, optimizer: Optimizer, rule: Rule, engine: Engine | None
) -> dict[str, Any]:
    """All of it but for what concerns the data: JSON. `engine` is the one that backward names."""
    return {
        "module": _structure(module),
        "engines": [identity_of(each) for each in engines_of(module)],
        "optimizer_engine": identity_of(optimizer.engine or default_engine()),
        "backward_engine": None if engine is None else identity_of(engine),
        "loss": _loss_of(loss_fn),
        "rule": identity(rule),
        "optimizer": optimizer.settings(),
        "parameters": _paths(module, optimizer.params),
    }


def engines_of(module: Module) -> list[Engine]:
    """The engines of a module's parts that have one."""
    callers = [part for part in module.modules() if "engine" in vars(part)]
    return [vars(part)["engine"] or default_engine() for part in callers]


def digest_of(examples: Sequence[Example]) -> str:
    """What tells these examples from others.

    Raises:
        UsageError: one of them holds itself.
    """
    try:
        return digest([(e.question, e.answer, e.extra) for e in examples])
    except RecursionError:
        raise UsageError(
            "fit: an example's extra holds itself, or is nested too deeply: a run_dir "
            "keeps a digest of all data"
        ) from None


def _structure(module: Module) -> dict[str, dict[str, Any]]:
    """What a module's parts are and what their calls send, but for the parameters' texts."""
    sent = ("output_format", "max_tokens", "temperature", "criterion")
    parts = {id(part) for part in module.modules()}  # each of them is told by itself
    return {
        name: {k: v for k, v in members(part).items() if id(vars(part).get(k)) not in parts}
        | {k: vars(part)[k] for k in sent if k in vars(part)}
        for name, part in module.named_modules()
    }


def _paths(module: Module, parameters: Sequence[TextVariable]) -> list[str]:
    paths = {id(parameter): path for path, parameter in module.named_parameters()}
    return [paths[id(parameter)] for parameter in parameters]


def _loss_of(loss_fn: LossFn) -> str:
    inside = [part for part in getattr(loss_fn, "__dict__", {}).values() if isfunction(part)]
    engines = engines_of(loss_fn) if isinstance(loss_fn, Module) else []
    return " of ".join([*map(identity, (loss_fn, *inside)), *map(identity_of, engines)])
