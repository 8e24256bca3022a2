"""Imports go down only, and importing the package does no work."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import textautograd

ROOT = Path(textautograd.__file__).parent

# From the bottom up; a module may import its own level and those below it. Names are modules or
# packages; what is not named by itself belongs to the package that it is in.
LEVELS = [
    ["errors"],
    # on their own: arguments, files, names of functions, terminals
    ["calling", "cancelling", "checking", "files", "identity", "locking", "terminal"],
    ["stopping"],
    # L0
    ["tape"],
    # L1
    ["call_site", "pending"],
    ["loop"],
    ["dispatch"],
    ["engines"],
    # what flows backward is data: prompts show it, operations pass it on
    ["gradient", "grad_mode"],
    ["traced"],
    ["prompts"],
    # L2
    ["operation", "base", "anomaly"],
    ["backward"],
    ["variable"],
    ["numeric"],
    # L3
    ["rules"],
    ["functional", "function"],
    ["testing"],
    ["mapping"],
    # L4
    ["nn", "data"],
    ["optim"],
    # L5
    ["evaluation", "progress", "run_dir", "tasks"],
    ["fit_gate", "settings"],
    ["training"],
    [""],  # textautograd itself
    ["demo"],
    ["commands"],
    ["cli"],
    ["__main__"],
]
ALLOWED_FROM_BELOW = {
    # for annotations only: an error tells what the failed call cost
    ("errors", "engines.base"),
}
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def level(name: str) -> int:
    first = name.split(".", maxsplit=1)[0]
    assert first in LEVEL, (
        f"textautograd.{name} is in no layer: add it to LEVELS, and to the design"
    )
    return LEVEL[first]


def under_type_checking(tree: ast.Module) -> set[ast.AST]:
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }


def imports(name: str) -> list[tuple[str, bool]]:
    """The modules of the package that a module imports, also inside functions, and whether it is
    for annotations only."""
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    annotations = under_type_checking(tree)
    found = []
    for node in ast.walk(tree):
        full = []
        if isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            module = node.module or ""
            full = [
                f"{module}.{alias.name}"
                if f"{module}.{alias.name}".removeprefix("textautograd.") in MODULES
                else module
                for alias in node.names
            ]
        for imported in full:
            if imported == "textautograd" or imported.startswith("textautograd."):
                found.append((imported[len("textautograd.") :], node in annotations))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_only(name: str) -> None:
    for imported, is_annotation in imports(name):
        if is_annotation and (name, imported) in ALLOWED_FROM_BELOW:
            continue
        assert level(imported) <= level(name), f"{name} imports {imported}, which is above it"


def test_no_two_modules_import_one_another() -> None:
    """Between modules, not packages: also within a layer."""
    graph = {
        name: {
            i for i, annotation in imports(name) if not annotation and i in MODULES and i != name
        }
        for name in MODULES
        if name
    }
    seen: set[str] = set()
    while rest := {n for n in graph if n not in seen}:
        free = {n for n in rest if graph[n] <= seen | {""}}
        # a package's __init__ imports its modules, and a module may import its own package's later
        assert free, f"a cycle of imports among {sorted(rest)}"
        seen |= free


def test_the_tape_needs_the_standard_library_and_errors_only() -> None:
    assert {i for i, _ in imports("tape")} == {"errors"}


def test_the_reader_of_imports_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from textautograd import variable
if TYPE_CHECKING:
    from textautograd.variable import TextVariable
def f():
    import textautograd.engines.base
"""
    (tmp_path / "m.py").write_text(source)
    monkeypatch.setitem(MODULES, "tape", tmp_path / "m.py")
    assert set(imports("tape")) == {
        ("variable", False),
        ("variable", True),
        ("engines.base", False),
    }
    with pytest.raises(AssertionError, match="above"):
        test_imports_go_down_only("tape")


HEAVY = (
    "litellm openai httpx aiohttp pydantic numpy asyncio tenacity sqlite3 tqdm xllamacpp requests "
    "urllib3 urllib.request http.client ssl multiprocessing"
).split()


def test_import_is_light_and_touches_neither_files_nor_network(tmp_path: Path) -> None:
    code = f"""
import logging, sys, threading
allowed = {str(ROOT)!r}, sys.prefix, sys.base_prefix
events = []
def watch(event, args):
    if event == "open" and isinstance(args[0], str):
        reads = args[1] is None or not set(args[1]) & set("wax+")
        if not (reads and args[0].startswith(allowed)):
            events.append((event, args[0], args[1]))
    elif event.split(".")[0] in ("socket", "subprocess", "sqlite3", "shutil", "tempfile"):
        events.append((event, args))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.putenv", "os.system", "os.fork"):
        events.append((event, args))
sys.dont_write_bytecode = True
before = len(logging.root.handlers), logging.root.level, set(logging.root.manager.loggerDict)
sys.addaudithook(watch)
import textautograd
print(events)
print([name for name in {HEAVY} if name in sys.modules])
print(threading.active_count())
loggers = set(logging.root.manager.loggerDict) - before[2] - {{"concurrent", "concurrent.futures"}}
print((len(logging.root.handlers), logging.root.level) == before[:2], loggers)
"""
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT.parent)!r})\n{code}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    events, heavy, threads, logging = done.stdout.splitlines()
    assert events == "[]"
    assert heavy == "[]"
    assert threads == "1"
    assert logging == "True set()"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_says_it_exports_exists_and_is_sorted(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    declared = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
    ]
    if not declared:
        return
    (names,) = declared
    module = importlib.import_module(f"textautograd.{name}" if name else "textautograd")
    assert [n for n in names if not hasattr(module, n)] == []
    assert len(names) == len(set(names))
    # ruff's order: constants, classes, the rest
    kind = {n: 0 if n.isupper() and len(n) > 1 else 1 if n[0].isupper() else 2 for n in names}
    assert list(names) == sorted(names, key=lambda n: (kind[n], n))


@pytest.mark.parametrize("package", ["", "data", "engines", "nn", "optim"])
def test_public_packages_say_what_they_export(package: str) -> None:
    module = importlib.import_module(f"textautograd.{package}" if package else "textautograd")
    assert module.__all__
    assert not [n for n in module.__all__ if n.startswith("_")]


def test_completion_offers_what_is_meant_for_users_and_it_exists() -> None:
    offered = dir(textautograd)
    assert {"numeric", "testing", *textautograd.__all__} <= set(offered)
    assert "cancelling" not in offered and all(hasattr(textautograd, n) for n in offered)


def test_numbers_and_checkers_are_there_without_an_import_of_their_own() -> None:
    code = (
        "import sys, textautograd as ta\n"
        "assert 'numpy' not in sys.modules\n"
        "ta.numeric.array([1.0]), ta.testing.gradcheck\n"
        "try:\n    ta.nothing\nexcept AttributeError as error:\n    assert 'nothing' in str(error)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
