"""Numbers as a command takes them, and as a server tells them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any


def is_count(value: Any) -> bool:
    """Whether it can be a number of calls or tokens."""
    return type(value) is int and 0 <= value < 2**53


def at_least(least: int) -> Callable[[str], int]:
    """A `type` of argparse's for whole numbers from `least` on."""

    def number(text: str) -> int:
        found = int(text)
        if found < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {found}")
        return found

    return number
