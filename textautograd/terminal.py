"""Texts of models and files, made harmless to a terminal."""

from __future__ import annotations

import os
import re
import sys

# Controls but tab and newline, lone surrogates, separators, and what reorders a line.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)


def harmless(text: str) -> str:
    """The text with an escape in place of each character that a terminal would obey."""
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def spelled(error: BaseException) -> list[str]:
    """The lines that say an error to who runs a command. A note of where in the code a call was
    made is for who wrote the code, and left out."""
    notes = (note for note in getattr(error, "__notes__", ()) if not note.startswith("  in "))
    return [harmless(line) for line in (str(error), *notes)]


def write_anything() -> None:
    """Has the standard streams escape what their encoding lacks, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def tell(text: str) -> None:
    """Prints to standard error, if there is one: who hangs up takes the terminal along."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # else it fails again when the process ends
    except RuntimeError:  # a signal came within another print
        pass
