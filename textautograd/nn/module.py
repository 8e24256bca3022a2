"""`Module` and `Parameter`: an agent is an object whose attributes hold its instructions.

Parameters are found by walking attributes, lists, tuples and dicts: there is nothing to register
and no `super().__init__()` to forget.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from reprlib import recursive_repr
from typing import Any, TypeVar

from textautograd.anomaly import entered, within
from textautograd.base import RemovableHandle
from textautograd.engines import as_engine
from textautograd.engines.base import Engine
from textautograd.errors import StateError, UsageError
from textautograd.grad_mode import is_anomaly_enabled
from textautograd.variable import TextVariable, overridden

M = TypeVar("M", bound="Module")
_MISSING = object()


class Parameter(TextVariable):
    """A leaf that modules own and optimizers rewrite (`torch.nn.Parameter`)."""

    __slots__ = ("_found_as",)

    def __init__(self, data: str, requires_grad: bool = True, *, name: str | None = None) -> None:
        super().__init__(data, requires_grad=requires_grad, name=name)
        self._found_as: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (*super().__reduce__(), (None, {"_found_as": self._found_as}))

    def _find_as(self, name: str) -> None:
        """Takes a dotted name, unless it has one of its own."""
        if self.name is None or self.name == self._found_as:
            self.name = self._found_as = name


class Module:
    """Base of agents and their parts (`torch.nn.Module`): define `forward`, call the module.

    Attributes that hold a `Parameter`, a `Module`, or a list, tuple or dict of them, are found; a
    part that is reachable twice counts once, under its first name.
    """

    training: bool = True

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What calling the module does."""
        raise UsageError(f"{type(self).__name__} has no forward: define one")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if is_anomaly_enabled() and within()[-1:] != (self,):
            with entered(self):
                return self(*args, **kwargs)
        hooks = self.__dict__.get("_forward_hooks") or {}
        before = self.__dict__.get("_forward_pre_hooks") or {}
        for hook in list(before.values()):
            if isinstance(hook, _WithKwargs):
                args, kwargs = _both(hook(self, args, kwargs), args, kwargs)
                continue
            replaced = hook(self, args)
            if replaced is not None:
                args = replaced if isinstance(replaced, tuple) else (replaced,)
        output = self.forward(*args, **kwargs)
        for hook in list(hooks.values()):
            seen = (args, kwargs) if isinstance(hook, _WithKwargs) else (args,)
            replaced = hook(self, *seen, output)
            output = output if replaced is None else replaced
        return output

    def __setattr__(self, name: str, value: Any) -> None:
        """As in torch, a text does not take a parameter's place: it would be lost from the state.

        Raises:
            UsageError: it would.
        """
        if value is not None and not isinstance(value, Parameter):
            if isinstance(vars(self).get(name), Parameter):
                raise UsageError(
                    f"{name} is a Parameter and cannot be replaced by a {type(value).__name__}: to "
                    f"give it another text, assign .{name}.data"
                )
        super().__setattr__(name, value)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Every module with its dotted name; this one first, under the name ''."""
        for name, part in _walk(self):
            if isinstance(part, Module):
                yield name, part

    def _named_parts(self) -> Iterable[tuple[Any, Any]]:
        """Where parameters and modules are looked for; a container's have names of their own."""
        return vars(self).items()

    def modules(self) -> Iterator[Module]:
        """Every module in here, this one first."""
        return (module for _, module in self.named_modules())

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its dotted name, in the order of attributes.

        One without a name of its own is called by that from now on: so an optimizer's names are
        those in the module whose parameters it was given, whoever asked for them before.
        """
        for name, parameter in self._found_parameters():
            parameter._find_as(name)
            yield name, parameter

    def _found_parameters(self) -> Iterator[tuple[str, Parameter]]:
        for name, part in _walk(self):
            if isinstance(part, Parameter):
                if part.name is None:
                    part._find_as(name)
                yield name, part

    def parameters(self) -> Iterator[Parameter]:
        """Every parameter, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def state_dict(self) -> dict[str, str]:
        """Dotted name → text: JSON, and nothing but texts."""
        return {name: str(parameter) for name, parameter in self._found_parameters()}

    def load_state_dict(self, state: Mapping[str, str], strict: bool = True) -> None:
        """Sets the parameters' texts; all of them or none.

        Raises:
            StateError: a value that is no text, or, if `strict`, a name that is missing or unknown.
            UsageError: a gate's closure is running, which only evaluates.
        """
        own = dict(self._found_parameters())
        check_state(own, state, strict=strict)
        named = {own[name]: text for name, text in state.items() if name in own}
        for parameter in named:
            parameter._check_assignable()
        for parameter, text in named.items():
            parameter.data = text

    def train(self: M, mode: bool = True) -> M:
        """Sets `training` here and in every module within."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """`train(False)`."""
        return self.train(False)

    def to(self: M, engine: Engine | str) -> M:
        """Runs every model call in here on an engine, as `.to(device)` would.

        Raises:
            UsageError: if it is no engine and no engine's name.
        """
        resolved = as_engine(engine)
        for module in self.modules():
            module._to(resolved)
        return self

    def _to(self, engine: Engine) -> None:
        own = vars(self).get("engine", _MISSING)
        if own is None or callable(getattr(own, "complete", None)):
            vars(self)["engine"] = engine

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Whether backward should reach the parameters in here."""
        for _, parameter in self._found_parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Sets every parameter's `.grad` to `None`."""
        for _, parameter in self._found_parameters():
            parameter.grad = None

    def register_forward_hook(
        self, hook: Callable[..., Any], *, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Calls `hook(module, args, output)` after `forward`; what it returns, unless `None`,
        replaces the output.

        Args:
            with_kwargs: `hook(module, args, kwargs, output)`. Inputs of an `nn.LLM` have names, so
                they are in `kwargs`.

        Raises:
            UsageError: it is no function of these arguments.
        """
        return self._hook("_forward_hooks", hook, with_kwargs, "output")

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Calls `hook(module, args)` before `forward`; what it returns, unless `None`, replaces the
        positional arguments.

        Args:
            with_kwargs: `hook(module, args, kwargs)`, which replaces both with a tuple of both.

        Raises:
            UsageError: it is no function of these arguments.
        """
        return self._hook("_forward_pre_hooks", hook, with_kwargs)

    def _hook(self, kind: str, hook: Any, with_kwargs: bool, *more: str) -> RemovableHandle:
        hooks = self.__dict__.setdefault(kind, {})
        if with_kwargs and callable(hook):
            return RemovableHandle(hooks, _WithKwargs(hook), "module", "args", "kwargs", *more)
        return RemovableHandle(hooks, hook, "module", "args", *more)

    def extra_repr(self) -> str:
        """What `repr` says of this module besides its parts."""
        return ""

    @recursive_repr("(a module that contains this one)")
    def __repr__(self) -> str:
        lines = [f"({key}): {_indented(repr(part))}" for key, part in _parts(self)]
        head = f"{type(self).__name__}({self.extra_repr()}"
        return head + ("\n  " + "\n  ".join(lines) + "\n)" if lines else ")")


class _WithKwargs(partial[Any]):
    """A forward hook that sees keyword arguments as well."""


def _both(replaced: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """A call's arguments after a hook has seen them."""
    if replaced is None:
        return args, kwargs
    match replaced:
        case tuple() as args, dict() as kwargs:
            return args, kwargs
    raise UsageError(
        "a forward pre-hook with_kwargs returns None or a tuple (args, kwargs) of a tuple and a "
        f"dict, not {replaced!r}"
    )


def functional_call(
    module: Module, state: Mapping[str, str | TextVariable], *args: Any, **kwargs: Any
) -> Any:
    """Calls a module with other parameter values, without touching it.

    Arguments follow as in a call; `torch.func.functional_call` takes them in a tuple and a dict.
    Names that `state` leaves out keep their value. A variable given as a value gets the gradient;
    a str is a constant.

    Raises:
        StateError: a name the module does not have, or a value that is no text.
    """
    if not isinstance(module, Module):
        raise UsageError(f"functional_call needs a Module, not {type(module).__name__}")
    with overridden(replacements(dict(module.named_parameters()), state)):
        return module(*args, **kwargs)


def replacements(
    own: Mapping[str, Parameter], state: Mapping[str, str | TextVariable]
) -> dict[TextVariable, TextVariable]:
    """For each parameter that a state names, the variable it should read as."""
    check_state(own, state, partial=True)
    return {
        own[name]: value if isinstance(value, TextVariable) else TextVariable(value, name=name)
        for name, value in state.items()
    }


def check_state(
    own: Mapping[str, Parameter],
    state: Mapping[str, Any],
    *,
    strict: bool = True,
    partial: bool = False,
) -> None:
    """Raises `StateError` if a state does not fit these parameters."""
    if not isinstance(state, Mapping):
        hint = ": json.load the file first" if isinstance(state, (str, os.PathLike)) else ""
        raise StateError(f"a state is a dict of name → text, not {type(state).__name__}{hint}")
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    if strict and (unknown or (missing and not partial)):
        raise StateError(
            f"the state does not fit: missing {_some(missing)}, unknown {_some(unknown)}; "
            f"this module has {_some(list(own))}"
        )
    for name, text in state.items():
        if not isinstance(text, str) and not (partial and isinstance(text, TextVariable)):
            raise StateError(f"the state's {name!r:.100} is {type(text).__name__}, not text")


def _some(names: list[Any]) -> str:
    """The names, but for what is too much to read."""
    shown = ", ".join(f"{name!r:.100}" for name in names[:10])
    return f"[{shown}, … {len(names) - 10} more]" if len(names) > 10 else f"[{shown}]"


def _walk(root: Module) -> list[tuple[str, Module | Parameter]]:
    """Modules and parameters with dotted names, depth first, each once.

    Raises:
        UsageError: two of them have the same name, as `{"a.b": x, "a": {"b": y}}` and
            `{1: x, "1": y}` would have it: one would be lost from the state.
    """
    found: list[tuple[str, Module | Parameter]] = []
    places: dict[str, str] = {}
    seen: set[int] = set()
    stack: list[tuple[str, str, Any]] = [("", "", root)]
    while stack:
        name, place, item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (Module, Parameter)):
            if name in places:
                raise UsageError(
                    f"two parts of this {type(root).__name__} are called {name!r}: "
                    f"{places[name]} and {place}; rename one"
                )
            places[name] = place
            found.append((name, item))
        prefix = f"{name}." if name else ""
        stack.extend(
            (f"{prefix}{key}", f"{place}[{key!r}]", part)
            for key, part in reversed(list(_children(item)))
        )
    return found


def _children(item: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(item, Module):
        found = item._named_parts()
    elif isinstance(item, dict):
        found = item.items()
    elif isinstance(item, (list, tuple)):
        found = enumerate(item)
    else:
        return
    for key, part in found:
        if isinstance(part, (Module, Parameter, dict, list, tuple)):
            yield key, part


def _parts(module: Module) -> Iterator[tuple[str, Any]]:
    """The nearest modules and parameters below a module."""
    seen: set[int] = set()
    stack = [(str(key), part) for key, part in _children(module)][::-1]
    while stack:
        key, item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, (Module, Parameter)):
            yield key, item
        else:
            stack.extend((f"{key}.{k}", part) for k, part in reversed(list(_children(item))))


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
