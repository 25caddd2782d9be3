"""Errors that users of the engine meet: the Python client raises them, HTTP turns them into status codes."""

from protocol.errors import EngineError

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"  # the code of InvalidRequest that clients shorten a conversation on


class InvalidRequest(EngineError):
    """The request itself is wrong; sending it again will not help. `param` names the field, `code` the kind for programs."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Overloaded(EngineError):
    """Too many requests wait. Try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(EngineError):
    """Nobody answers at the socket, or a part of the engine is gone."""


class ShuttingDown(EngineUnavailable):
    """The engine was told to end: it takes no new requests, and those that still run at the end of its time to drain end so."""


class RequestLost(EngineError):
    """The engine ended, or failed on this request, before its answer was complete."""


class DeadlineExceeded(EngineError):
    """The answer did not come within the time that the caller allowed; the request was aborted."""
