"""How long a prompt is, and how long an engine allows it to be."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from textautograd.checking import whole
from textautograd.engines.base import Engine, Message
from textautograd.errors import ContextOverflowError

_PIECE = re.compile(r" ?[A-Za-z]{1,3}|[^A-Za-z]")
_MESSAGE = 8  # tokens that a chat template puts around a message


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """For each piece of a text, where it ends and how many tokens it is taken for.

    Up to three letters with the space before them are one, any other ASCII character is one, and
    what is not ASCII is as many as its bytes in UTF-8. No tokenizer is asked: this is meant to be
    more than any of the common ones count, by about half in English prose.
    """
    for match in _PIECE.finditer(text):
        piece = match[0]
        yield match.end(), 1 if piece.isascii() else len(piece.encode(errors="surrogatepass"))


def tokens(text: str) -> int:
    """The tokens of a text, estimated from above: see `pieces`."""
    if text.isascii():
        return len(_PIECE.findall(text))
    return sum(count for _, count in pieces(text))


def size(messages: Sequence[Message], schema: Mapping[str, Any] | None = None) -> int:
    """The tokens of a prompt, estimated from above; a schema counts, as some servers show it."""
    shown = 0 if schema is None else tokens(json.dumps(schema)) + _MESSAGE
    return shown + sum(tokens(m["content"]) + _MESSAGE for m in messages) + _MESSAGE


def limit_of(engine: Engine) -> int | None:
    """The most tokens of a prompt that the framework itself writes to this engine, if it has a
    limit.

    Raises:
        UsageError: what it states is no number of tokens.
    """
    limit = getattr(engine, "max_input_tokens", None)
    return None if limit is None else whole(f"max_input_tokens of {engine!r:.80}", limit)


def reserve(limit: int) -> int:
    """What is left free of a limit, so that a reply that cannot be used can be asked for again."""
    return max(limit // 8, 128)


def beginning(text: str, most: int) -> str:
    """As much of a text's beginning as `most` tokens hold."""
    kept = 0
    for end, count in pieces(text):
        most -= count
        if most < 0:
            return text[:kept]
        kept = end
    return text


def check_size(needed: int, limit: int | None, what: str) -> None:
    """Raises ContextOverflowError, before any call, where `needed` tokens are above the limit."""
    if limit is not None and needed > limit:
        raise ContextOverflowError(
            f"{what} needs {needed} tokens, by an estimate from above, of max_input_tokens = "
            f"{limit}: instructions are never shortened. Shorten them, show less (SGD's "
            "examples, COPRO's breadth, earlier steps, a batch's samples) or raise max_input_tokens"
        )
