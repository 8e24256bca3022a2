"""One process at a time in a directory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from textautograd.errors import UsageError


class InUseError(UsageError):
    """Another run holds the directory."""


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: ContextVar[frozenset[Path]] = ContextVar("held_directories", default=frozenset())


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a run directory, which is made if it is not there; what runs inside may hold it again.

    The lock is the kernel's, so it ends with the process, however that ends. There is none on
    Windows, nor on a file system that has no locks.

    Raises:
        InUseError: another run holds it. UsageError: it cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        here = directory.resolve()
        again = here in _held.get()
        file = None if again else os.open(here / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        if file is not None and not taken(file):
            os.close(file)
            raise InUseError(
                f"the run directory {directory} is in use by another run: wait until it has "
                "ended, or choose another run_dir"
            )
    except OSError as error:
        raise UsageError(f"cannot use the run directory {directory}: {error}") from error
    token = _held.set(_held.get() | {here})
    try:
        yield
    finally:
        _held.reset(token)
        if file is not None:
            os.close(file)


def taken(file: int, *, wait: bool = False) -> bool:
    """Whether this open file could be locked; it is until it is closed. With `wait`, it waits for
    who holds it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True
