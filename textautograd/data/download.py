"""Fetches a dataset's file from where its authors publish it, whole or not at all."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from textautograd.errors import DataError
from textautograd.files import write_whole

if TYPE_CHECKING:
    from http.client import HTTPResponse

# By folder under the root; {name} is the split or task.
ADDRESSES = {
    "bbh": "https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/main/bbh/{name}.json",
    "gsm8k": "https://raw.githubusercontent.com/openai/grade-school-math/master"
    "/grade_school_math/data/{name}.jsonl",
    "liar": "https://www.cs.ucsb.edu/~william/data/liar_dataset.zip",
}
LIMIT = 64 << 20  # bytes; the largest published file has 4 MB
SILENCE = 30.0  # seconds without a byte
DEADLINE = 300.0  # seconds in all
_BLOCK = 1 << 16


def fetch(url: str, *, member: str | None = None) -> bytes:
    """The bytes at `url`, or those of `member` if that is a zip archive.

    Raises `DataError` that names the address and the cause: not reachable, an HTTP status, too
    slow, cut short, more than `LIMIT` bytes, not an archive, no such member.
    """
    import http.client
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as response:
            announced = response.headers.get("Content-Length")
            raw = _read(response, url)
    except urllib.error.HTTPError as error:
        error.close()
        raise failed(url, f"HTTP status {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise failed(url, str(getattr(error, "reason", error)) or type(error).__name__) from error
    if announced is not None and announced.isdecimal() and len(raw) < int(announced):
        raise failed(url, f"the reply was cut off after {len(raw)} of {announced} bytes")
    return raw if member is None else _extract(raw, member, url)


def save(raw: bytes, path: Path) -> None:
    """Writes a file, and the directory that it is in."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, raw)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error}") from error


def failed(url: str, cause: str) -> DataError:
    return DataError(f"Download of {url} failed: {cause}")


def _read(response: "HTTPResponse", url: str) -> bytes:
    deadline = time.monotonic() + DEADLINE
    raw = bytearray()
    while block := response.read1(_BLOCK):
        raw += block
        if len(raw) > LIMIT:
            raise failed(url, f"the file has more than {LIMIT} bytes")
        if time.monotonic() > deadline:
            raise failed(url, f"not complete after {DEADLINE:g} s")
    return bytes(raw)


def _extract(raw: bytes, member: str, url: str) -> bytes:
    import io
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if member not in archive.namelist():
                there = ", ".join(archive.namelist()[:10]) or "nothing"
                raise failed(url, f"the archive has no member {member!r}; it holds {there}")
            with archive.open(member) as file:
                content = file.read(LIMIT + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or a compression that this Python does not know.
        raise failed(url, f"not a usable zip archive: {error}") from error
    if len(content) > LIMIT:
        raise failed(url, f"{member} has more than {LIMIT} bytes")
    return content
