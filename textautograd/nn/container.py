"""Containers, as in PyTorch: what a list or a dict can do, with modules as items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, Self, overload

from textautograd.errors import UsageError
from textautograd.nn.module import Module


class _Listed(Module, MutableSequence[Module]):
    items: list[Module]

    def _named_parts(self) -> Iterable[tuple[int, Module]]:
        return enumerate(self.items)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module | Self:
        if not isinstance(index, slice):
            return self.items[index]
        some = type(self).__new__(type(self))
        some.items, some.training = self.items[index], self.training
        return some

    def __setitem__(self, index: Any, module: Any) -> None:
        is_slice = isinstance(index, slice)
        self.items[index] = _modules(self, module) if is_slice else _module(module)

    def __delitem__(self, index: int | slice) -> None:
        del self.items[index]

    def insert(self, index: int, module: Module) -> Self:  # type: ignore[override]
        """Adds a module before another."""
        self.items.insert(index, _module(module))
        return self

    def append(self, module: Module) -> Self:  # type: ignore[override]
        """Adds a module at the end."""
        return self.insert(len(self), module)

    def extend(self, modules: Iterable[Module]) -> Self:  # type: ignore[override]
        """Adds several; all of them or none."""
        self.items += _modules(self, modules)
        return self


class Sequential(_Listed):
    """Calls modules in turn, each with the output of the one before."""

    def __init__(self, *modules: Module) -> None:
        self.items = [_module(module) for module in modules]

    def forward(self, text: Any) -> Any:
        """Passes one value through all modules."""
        for module in self.items:
            text = module(text)
        return text


class ModuleList(_Listed):
    """A list of modules."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.items = _modules(self, modules)


class ModuleDict(Module, MutableMapping[str, Module]):
    """A dict of modules."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        if modules is not None and not isinstance(modules, Mapping):
            raise UsageError(f"a ModuleDict takes a dict of modules, not {modules!r}")
        self.items_by_name: dict[str, Module] = {}
        for name, module in (modules or {}).items():
            self[name] = module

    def _named_parts(self) -> Iterable[tuple[str, Module]]:
        return self.items_by_name.items()

    def __setitem__(self, name: str, module: Module) -> None:
        if not isinstance(name, str) or not name:
            raise UsageError(f"a module's name must be a str, and not empty, not {name!r}")
        self.items_by_name[name] = _module(module)

    def __getitem__(self, name: str) -> Module:
        return self.items_by_name[name]

    def __delitem__(self, name: str) -> None:
        del self.items_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_by_name)

    def __len__(self) -> int:
        return len(self.items_by_name)

    __eq__, __hash__ = Module.__eq__, Module.__hash__  # itself alone, as other modules


def _modules(container: Module, modules: Iterable[Module]) -> list[Module]:
    if not isinstance(modules, Iterable) or isinstance(modules, (str, Mapping)):
        raise UsageError(f"a {type(container).__name__} takes a list of modules, not {modules!r}")
    return [_module(module) for module in modules]


def _module(module: Module) -> Module:
    if not isinstance(module, Module):
        raise UsageError(f"a container holds modules, not {type(module).__name__}")
    return module
