"""A dataset whose files its authors publish: found under a root, or fetched there."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import overload

from textautograd.data.download import ADDRESSES, fetch, save
from textautograd.data.example import Example
from textautograd.errors import DataError, UsageError
from textautograd.files import as_path

Parse = Callable[[bytes, str], list[Example]]


class Published(Sequence[Example]):
    """A sequence of `Example`, read whole when it is made; a slice is a list.

    A subclass sets `folder`, `suffix`, `kind` (what `name` is: a split or a task), `names` (those
    that are published), `content` (what a file holds), `archived` (files are members of one zip).
    """

    folder: str
    suffix: str
    kind: str
    names: Sequence[str]
    content: str
    archived = False

    def __init__(
        self, root: str | os.PathLike[str], name: str, parse: Parse, *, download: bool
    ) -> None:
        if not isinstance(name, str):
            raise UsageError(f"{self._title}: {self.kind} must be a str, not {type(name).__name__}")
        self.name = name
        self._place = as_path(root, f"{self._title}: root") / self.folder
        self.path = self._place / f"{name}{self.suffix}"
        self._examples = self._load(parse, download)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int, /) -> Example: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[Example]: ...
    def __getitem__(self, index: int | slice, /) -> Example | list[Example]:
        return self._examples[index]

    def __repr__(self) -> str:
        return f"{self._title}({self.name!r}, {len(self)} examples)"

    @property
    def _title(self) -> str:
        return type(self).__name__

    def _load(self, parse: Parse, download: bool) -> list[Example]:
        if not _is_plain(self.name):
            raise self._unknown()
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            if self.name not in self.names:
                raise self._unknown() from None
            if not download:
                raise self._missing() from None
            return self._download(parse)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return parse(raw, str(self.path))

    def _download(self, parse: Parse) -> list[Example]:
        member = f"{self.name}{self.suffix}" if self.archived else None
        try:
            raw = fetch(self._url, member=member)
            # Parsed before it is kept: a login page must not take the file's place for good.
            examples = parse(raw, self._url)
        except DataError as error:
            what = f"take {member} out of it" if member else "fetch it by other means"
            raise DataError(f"{error}. Way out: {what} and save it as {self.path}") from error
        save(raw, self.path)
        return examples

    @property
    def _url(self) -> str:
        return ADDRESSES[self.folder].format(name=self.name)

    def _missing(self) -> DataError:
        return DataError(
            f"{self.path}: no such file. Expected there: {self.content}, as published at "
            f"{self._url}. Pass download=True to fetch it"
        )

    def _unknown(self) -> DataError:
        import difflib

        stems = sorted(path.stem for path in self._place.glob(f"*{self.suffix}"))
        there = list(filter(_is_plain, stems))
        close = difflib.get_close_matches(self.name, [*self.names, *there], n=1)
        return DataError(
            f"{self._title} has no {self.kind} {self.name!r}."
            + (f" Did you mean {close[0]!r}?" if close else "")
            + f" In {self._place}: {_listed(there)}. Published: {_listed(self.names)}"
        )


def _is_plain(name: str) -> bool:
    """Whether a name stays in its folder."""
    return re.fullmatch(r"[\w-]+", name) is not None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
