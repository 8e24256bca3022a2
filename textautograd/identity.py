"""What a function is, in a line that another process writes alike."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

_OURS = __name__.partition(".")[0]


def identity(function: Any) -> str:
    """A qualified name and a digest of what is behind it: `brief#1f0c9e77a2`.

    The digest of a function covers its code, its defaults, the values it closes over or finds in
    its module, and likewise what it calls there; that of a class its methods and constants; that of
    an object its class and attributes. Texts, numbers, patterns, tuples and dataclasses of them
    count. What changes while it is used does not: lists, dicts and sets, and names and attributes
    that the code assigns, as a counter is. Of other objects that cannot be called the class's name
    counts; code of other modules, or of this package, counts by name. Bytecode belongs to a Python
    version, and so does the digest.
    """
    name = _name(function)
    parts = list(_parts(function, set()))
    if parts == [name]:
        return name
    return f"{name}#{_hash(repr(parts))[:10]}"


def members(value: Any) -> dict[str, str]:
    """What `identity` covers of an object, piece by piece: its class, and a digest of each of its
    attributes, which may be secret."""
    pieces = {name: list(_attribute(attribute, set())) for name, attribute in _attributes(value)}
    digests = {name: f"#{_hash(repr(parts))[:10]}" for name, parts in pieces.items()}
    return {"class": identity(type(value)), **digests}


def digest(value: Any) -> str:
    """A digest of data: texts, numbers, sequences, sets and mappings of them."""
    return _hash(_data(value))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _data(value: Any) -> str:
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(_data, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_data, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_data(k)}: {_data(v)}' for k, v in value.items()))}}}"
    if "__repr__" not in {name for base in type(value).__mro__[:-1] for name in vars(base)}:
        # object's would tell the address
        return f"{_name(value)} {_data(getattr(value, '__dict__', {}))}"
    return repr(value)


def _parts(value: Any, seen: set[int]) -> Iterator[str]:
    """What is compared, in an order that depends on neither hashes nor addresses."""
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes():
            yield repr(value)
        case tuple():
            yield f"tuple of {len(value)}"
            for item in value:
                yield from _parts(item, seen)
        case frozenset():
            yield from sorted(repr(list(_parts(item, seen))) for item in value)
        case re.Pattern():
            yield repr((value.pattern, value.flags))
        case CodeType():
            yield from (value.co_code.hex(), *value.co_names, *value.co_freevars)
            for constant in value.co_consts:
                yield from _parts(constant, seen)
        case functools.partial():
            for part in (value.func, value.args, tuple(sorted(value.keywords.items()))):
                yield from _parts(part, seen)
        case MethodType():
            yield from _parts(value.__func__, seen)
            yield from _once(value.__self__, seen, _object)
        case BuiltinFunctionType() if not isinstance(value.__self__, ModuleType | type):
            yield _name(value)
            yield from _parts(value.__self__, seen)  # as the pattern of `pattern.search`
        case FunctionType():
            yield from _once(value, seen, _function)
        case type():
            yield from _once(value, seen, _class)
        case _ if _has_code(value):
            yield from _once(value, seen, _object)
        case _:
            yield _name(value)


def _once(
    value: Any, seen: set[int], inside: Callable[[Any, set[int]], Iterator[str]]
) -> Iterator[str]:
    yield _name(value)
    if id(value) not in seen:
        seen.add(id(value))
        yield from inside(value, seen)


def _has_code(value: Any) -> bool:
    return callable(value) and not inspect.ismethoddescriptor(value)


def _object(value: Any, seen: set[int]) -> Iterator[str]:
    yield from _class(type(value), seen)
    for name, attribute in _attributes(value):
        yield name
        yield from _attribute(attribute, seen)


def _attributes(value: Any) -> list[tuple[str, Any]]:
    """An object's attributes, but for those that change while it is used."""
    kind: type = type(value)
    changing = {"engine", "training"} | assigned_by(kind)
    return [(name, each) for name, each in attributes(value) if name not in changing]


def attributes(value: Any) -> list[tuple[str, Any]]:
    """An object's attributes, those in slots too, by name."""
    kind: type = type(value)
    members = [(name, member) for base in kind.__mro__ for name, member in vars(base).items()]
    slots = [name for name, member in members if isinstance(member, MemberDescriptorType)]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return sorted({**found, **getattr(value, "__dict__", {})}.items())


def _attribute(attribute: Any, seen: set[int]) -> Iterator[str]:
    is_data = is_dataclass(attribute) and not isinstance(attribute, type)
    return _once(attribute, seen, _object) if is_data else _parts(attribute, seen)


_MAKING = ("__init__", "__new__", "__post_init__")


@functools.lru_cache(256)
def assigned_by(kind: type) -> frozenset[str]:
    """The attributes that the methods of a class assign, but for those that make an object."""
    members = [member for base in kind.__mro__ for member in vars(base).items()]
    used = [
        m.__code__ for name, m in members if isinstance(m, FunctionType) and name not in _MAKING
    ]
    return frozenset().union(*map(_assigned, used))


@functools.lru_cache(256)
def changed_in(kind: type, *methods: str) -> frozenset[str]:
    """The attributes that these methods of a class, and those they call, assign or change in place,
    as `self.seen.append(x)` and `self.count[x] += 1` do."""
    todo, known, changed = [*methods], set(), set()
    while todo:
        name = todo.pop()
        if name in known:
            continue
        known.add(name)
        for base in kind.__mro__:
            member = vars(base).get(name)
            function = inspect.unwrap(getattr(member, "fget", None) or member)  # type: ignore[arg-type]
            if isinstance(function, FunctionType):
                todo += _names(function.__code__)
                changed |= _assigned(function.__code__) | _changed_in_place(function.__code__)
    return frozenset(changed)


_CHANGERS = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"}
_CHANGERS |= {"reverse", "setdefault", "sort", "update"}


def _changed_in_place(code: CodeType) -> set[str]:
    """The attributes that a change in a function's code begins with."""
    steps = [(step, step.positions) for step in dis.get_instructions(code)]
    begun = {
        (at.lineno, at.col_offset)
        for step, at in steps
        if at is not None
        if step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_ATTR")
        or (step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in _CHANGERS)
    }
    own = {
        str(step.argval)
        for step, at in steps
        if step.opname == "LOAD_ATTR" and at is not None and (at.lineno, at.col_offset) in begun
    }
    inner = (_changed_in_place(part) for part in code.co_consts if isinstance(part, CodeType))
    return own.union(*inner)


def _assigned(code: CodeType) -> set[str]:
    """The attributes and outer names that a function, or one inside it, assigns: counters, say."""
    stores = ("STORE_ATTR", "STORE_DEREF", "STORE_GLOBAL")
    own = {str(step.argval) for step in dis.get_instructions(code) if step.opname in stores}
    inner = (_assigned(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return own.union(*inner)


def _function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    changing = _assigned(function.__code__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for cell in (cell for name, cell in cells if name not in changing):
        try:
            yield from _parts(cell.cell_contents, seen)
        except ValueError:
            yield "not assigned yet"
    if _is_ours(function):
        return
    yield from _parts(function.__code__, seen)
    yield from _parts(function.__defaults__, seen)
    yield from _parts(tuple(sorted((function.__kwdefaults__ or {}).items())), seen)
    for name in sorted(_names(function.__code__) - changing):
        found = function.__globals__.get(name)
        if not callable(found) or getattr(found, "__module__", None) == function.__module__:
            yield name
            yield from _parts(found, seen)


def _names(code: CodeType) -> set[str]:
    """The global names that a function, or one inside it, may read."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _class(kind: type, seen: set[int]) -> Iterator[str]:
    """The methods and constants of a class and of those that it inherits from in its module."""
    for base in kind.__mro__:
        if _is_ours(base) or base.__module__ != kind.__module__:
            continue
        for name, value in sorted(vars(base).items()):
            member = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(member, FunctionType) or not name.startswith("__"):
                yield name
                yield from _parts(member, seen)


def _is_ours(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] == _OURS


def _name(value: Any) -> str:
    if isinstance(value, functools.partial):
        return f"partial({_name(value.func)})"
    return str(getattr(value, "__qualname__", None) or type(value).__qualname__)
