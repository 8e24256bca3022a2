"""What makes a reply usable: whatever an engine returns is held to this before anyone reads it."""

from __future__ import annotations

from typing import Any

from textautograd.engines.base import Reply, Request
from textautograd.errors import ContentFilterError, IncompleteReplyError, UsageError

_CUT_OFF = {"length", "max_tokens", "abort", "error"}


def a_reply(answer: Any, engine: object) -> Reply:
    """The answer itself.

    Raises:
        UsageError: it is not a `Reply`.
    """
    if not isinstance(answer, Reply):
        raise UsageError(
            f"{engine!r} returned {type(answer).__name__}, not a Reply: return Reply(text)"
        )
    return answer


def finished(reply: Reply, request: Request) -> Reply:
    """The reply itself, if it is whole.

    Raises:
        IncompleteReplyError: cut off, or without text.
        ContentFilterError: withheld by the provider's filter.
    """
    error: ContentFilterError | IncompleteReplyError
    if reply.finish_reason == "content_filter":
        error = ContentFilterError("the provider's content filter withheld the reply")
    elif reply.finish_reason in ("length", "max_tokens"):
        limit = "the model's limit" if request.max_tokens is None else f"{request.max_tokens}"
        error = IncompleteReplyError(
            f"the reply was cut off at max_tokens = {limit}: raise max_tokens", text=reply.text
        )
    elif reply.finish_reason in _CUT_OFF:
        error = IncompleteReplyError(
            f"the reply was cut off (finish_reason {reply.finish_reason!r})", text=reply.text
        )
    elif not reply.text or reply.text.isspace():
        error = IncompleteReplyError(
            f"the reply has no text (finish_reason {reply.finish_reason!r})", text=reply.text
        )
    else:
        return reply
    error.usage = reply.usage
    raise error
