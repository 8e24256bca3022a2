"""Containers, as in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from textautograd.errors import UsageError
from textautograd.nn.module import Module


class _Listed(Module):
    items: list[Module]

    def _named_parts(self) -> Iterable[tuple[int, Module]]:
        return enumerate(self.items)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Module:
        return self.items[index]


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
        if not isinstance(modules, Iterable) or isinstance(modules, (str, Mapping)):
            raise UsageError(f"a ModuleList takes a list of modules, not {modules!r}")
        self.items = [_module(module) for module in modules]

    def append(self, module: Module) -> ModuleList:
        """Adds a module at the end."""
        self.items.append(_module(module))
        return self


class ModuleDict(Module):
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
        if not isinstance(name, str):
            raise UsageError(f"a module's name must be a str, not {name!r}")
        self.items_by_name[name] = _module(module)

    def __getitem__(self, name: str) -> Module:
        return self.items_by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self.items_by_name

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_by_name)

    def __len__(self) -> int:
        return len(self.items_by_name)

    def keys(self) -> Iterable[str]:
        """The names."""
        return self.items_by_name.keys()

    def values(self) -> Iterable[Module]:
        """The modules."""
        return self.items_by_name.values()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Names and modules."""
        return self.items_by_name.items()


def _module(module: Module) -> Module:
    if not isinstance(module, Module):
        raise UsageError(f"a container holds modules, not {type(module).__name__}")
    return module
