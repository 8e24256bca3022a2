"""Texts by key in one SQLite file, for many threads and processes."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from textautograd.errors import SetupError
from textautograd.files import as_path

if TYPE_CHECKING:
    from sqlite3 import Connection, Cursor

_BUSY_TIMEOUT = 30.0  # seconds to wait for another process's write


class Store:
    """A file of keys and texts. Opened on first use, and anew in another process.

    Raises:
        SetupError: the file cannot be used; names it and the way out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "the call cache")
        self._connection: Connection | None = None
        self._inherited: list[Connection] = []
        self._process = os.getpid()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)

    def get(self, key: str) -> str | None:
        with self._locked():
            row = self._run("SELECT value FROM replies WHERE key = ?", key).fetchone()
        return row[0] if row and isinstance(row[0], str) else None

    def add(self, key: str, value: str) -> bool:
        """Writes the value, unless the key is there; says whether it was written."""
        with self._locked():
            return self._run("INSERT OR IGNORE INTO replies VALUES (?, ?)", key, value).rowcount > 0

    def replace(self, key: str, value: str) -> None:
        with self._locked():
            self._run("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, value)

    def close(self) -> None:
        with self._locked():
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():
            # A lock may have been held when the process forked, and SQLite's connections must not
            # be used or closed by a child.
            if self._connection is not None:
                self._inherited.append(self._connection)
            self._lock, self._connection, self._process = threading.Lock(), None, os.getpid()
        return self._lock

    def _run(self, statement: str, *values: str) -> Cursor:
        import sqlite3

        try:
            if self._connection is None:
                self._connection = self._open()
            return self._connection.execute(statement, values)
        except (sqlite3.Error, OSError) as error:
            raise SetupError(
                f"the call cache {self.path} cannot be used ({error}): make room for it, make it "
                "writable, or delete the file if it is damaged. Then the same call goes on with "
                "what it holds"
            ) from error

    def _open(self) -> Connection:
        import sqlite3

        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
            )
        except BaseException:
            connection.close()
            raise
        return connection


def _write_ahead(connection: Connection) -> None:
    """Turns it on; SQLite itself does not wait where another process is doing the same."""
    import sqlite3

    end = time.monotonic() + _BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
