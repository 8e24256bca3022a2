"""What engines, their names and their replies are held to, before anyone reads a reply."""

from __future__ import annotations

from typing import Any

from textautograd.checking import quantity
from textautograd.engines.base import Reply, Request, Usage
from textautograd.errors import ContentFilterError, IncompleteReplyError, UsageError

AT_LIMIT = {"length", "max_tokens"}
CUT_OFF = AT_LIMIT | {"abort", "error", "network_error"}


def a_reply(answer: Any, engine: object) -> Reply:
    """The answer itself.

    Raises:
        UsageError: it is not a `Reply`, or a field of it is not what it is to be.
    """
    if not isinstance(answer, Reply):
        raise UsageError(
            f"{engine!r} returned {type(answer).__name__}, not a Reply: return Reply(text)"
        )
    for name in ("text", "finish_reason"):
        if not isinstance(value := getattr(answer, name), str):
            raise UsageError(
                f"{engine!r} returned a Reply whose {name} is {value!r:.80}, not a str"
            )
    a_usage(answer.usage, engine, "returned a Reply")
    return answer


def a_usage(usage: Any, who: object, did: str) -> Usage:
    """The usage itself, of what `who` answered or raised.

    Raises:
        UsageError: it is not a `Usage`, or a field of it is not what it is to be.
    """
    if not isinstance(usage, Usage):
        raise UsageError(f"{who!r} {did} whose usage is {usage!r:.80}, not a Usage")
    for name in ("input_tokens", "output_tokens", "cached_tokens", "calls"):
        value = getattr(usage, name)
        if type(value) is not int or not 0 <= value < 2**53:
            raise UsageError(
                f"{who!r} {did} whose usage.{name} is {value!r:.80}, not an int from 0 to 2**53"
            )
    if usage.cost is not None and quantity(usage.cost) is None:
        raise UsageError(
            f"{who!r} {did} whose usage.cost is {usage.cost!r:.80}, not US dollars of at least 0, "
            "or None"
        )
    return usage


def model_name(name: Any) -> str:
    """The name, if it can be one.

    Raises:
        UsageError: it is no text, or none that can be sent.
    """
    is_one = isinstance(name, str) and bool(name.strip())
    if not is_one or name.encode(errors="replace") != name.encode(errors="surrogatepass"):
        raise UsageError(
            f"an engine's name is a text such as 'openai/gpt-4o-mini', not {name!a:.80}"
        )
    return str(name)


def is_engine(value: Any) -> bool:
    """Whether it has what every engine has."""
    return not isinstance(value, type) and callable(getattr(value, "complete", None))


def finished(reply: Reply, request: Request) -> Reply:
    """The reply itself, if it is whole.

    Raises:
        IncompleteReplyError: cut off, or without text.
        ContentFilterError: withheld by the provider's filter.
    """
    error: ContentFilterError | IncompleteReplyError
    reason = reply.finish_reason
    if reason == "content_filter":
        error = ContentFilterError("the provider's content filter withheld the reply")
    elif reason in AT_LIMIT:
        limit = "the model's limit" if request.max_tokens is None else f"{request.max_tokens}"
        error = IncompleteReplyError(
            f"the reply was cut off at max_tokens = {limit}: raise max_tokens",
            text=reply.text,
            finish_reason=reason,
        )
    elif reason in CUT_OFF or not reply.text or reply.text.isspace():
        what = "was cut off" if reason in CUT_OFF else "has no text"
        error = IncompleteReplyError(
            f"the reply {what} (finish_reason {reason!r})", text=reply.text, finish_reason=reason
        )
    else:
        return reply
    error.usage = None if reply.cached else reply.usage
    raise error
