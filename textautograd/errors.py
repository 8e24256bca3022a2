"""Every exception that the package raises on purpose.

Error
├── GraphError            backward cannot run: freed graph, modified leaf, missing seed, wrong arity
├── UsageError            an argument that cannot work; raised before anything is spent
│   ├── DataError         a data file that is missing or malformed
│   └── StateError        a state dict that does not fit the module
├── RunError              concerns the run and not one sample: ends it at once
│   ├── BudgetExceeded    the next call would pass the budget
│   ├── SetupError        what all calls need cannot be used; a UsageError, too
│   └── those of EngineError that are marked with *
├── CheckError            testing: a derivative or a rule is wrong
├── ReplyError            a model's reply that could not be used, after asking again
└── EngineError           a call that brought no usable reply
    ├── AuthenticationError * 401, 403: a wrong or missing key
    ├── NoCreditError *       402: the account or its quota is used up
    ├── NotFoundError *       404: no such model or address
    ├── BadRequestError       400, 413, 422: the request itself is refused
    │   ├── ContextOverflowError   longer than the model's context
    │   ├── ContentFilterError     refused by the provider's filter
    │   └── SchemaRejected         the model takes no JSON schema: ask in words
    ├── IncompleteReplyError  cut off, empty, without choices, or not what the protocol says
    └── TransientError        worth trying again; tried `max_attempts` times already
        ├── RateLimitError    429
        ├── ServerError       408, 409, 425, 5xx
        ├── ConnectionFailed  refused, reset, cut in the middle
        └── TimeoutExpired    no reply within `timeout`
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textautograd.engines.base import Usage


class Error(Exception):
    """Base of every exception that the package raises on purpose."""


class GraphError(Error, RuntimeError):
    """Backward cannot run on this graph."""


class UsageError(Error, ValueError):
    """An argument that cannot work."""


class DataError(UsageError):
    """A data file that is missing or malformed; names the file, the line and what was expected."""


class StateError(UsageError):
    """A state dict that does not fit the module, which stays as it was."""


class CheckError(Error, AssertionError):
    """What `textautograd.testing` found wrong."""


class RunError(Error):
    """Concerns the whole run: `fit`, `evaluate`, backward and a gate raise it at once, whereas what
    else a sample raises is that sample's failure."""


class SetupError(RunError, UsageError):
    """What all calls need cannot be used: the call cache, a budget's prices, the engine's kind."""


class BudgetExceeded(RunError):
    """The next call would pass the budget. Raised before that call is sent."""


class ReplyError(Error):
    """A model's reply that could not be used, even after asking again."""


class EngineError(Error):
    """A call that brought no usable reply.

    `status` is the HTTP status where there was one, `usage` what the call cost nonetheless.
    """

    usage: "Usage | None" = None

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class AuthenticationError(EngineError, RunError):
    """401 or 403: the key is wrong, missing, or lacks permission."""


class NoCreditError(EngineError, RunError):
    """402, or a code that says so: the account or its quota is used up."""


class NotFoundError(EngineError, RunError):
    """404: no such model or address."""


class BadRequestError(EngineError):
    """400, 413 or 422: the request itself is refused."""


class ContextOverflowError(BadRequestError):
    """The request is longer than the model's context."""


class ContentFilterError(BadRequestError):
    """The provider's filter refused the request or its reply."""


class SchemaRejected(BadRequestError):
    """The model takes no JSON schema; the engine's `structured` reads "tagged" from here on."""


class IncompleteReplyError(EngineError):
    """A reply that is cut off, empty, without choices, or not what the protocol says.

    `text` holds what there was of it, `finish_reason` why it ended, where a reply says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        text: str = "",
        finish_reason: str | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.text = text
        self.finish_reason = finish_reason


class TransientError(EngineError):
    """A failure worth trying again. `retry_after` is what the server asked for, in seconds."""

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, status=status)
        self.retry_after = retry_after


class RateLimitError(TransientError):
    """429."""


class ServerError(TransientError):
    """408, 409, 425 or 5xx."""


class ConnectionFailed(TransientError):
    """Refused, reset, or cut in the middle of the reply."""


class TimeoutExpired(TransientError):
    """No reply within the engine's `timeout`."""
