"""What Python clients are told in place of an answer."""

import logging

from frontend.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest, Overloaded
from frontend.wire import Refusal, Refused
from protocol.errors import EngineError

_LOG = logging.getLogger(__name__)

_KINDS: tuple[tuple[type[EngineError], Refusal], ...] = (
    (InvalidRequest, "invalid"),
    (Overloaded, "overloaded"),
    (EngineUnavailable, "unavailable"),
)


def refused(request_id: int, error: BaseException) -> Refused:
    """For what was not begun, or is not to be had. Of a fault of ours the log gets the reason, the client learns that it is one."""
    if not isinstance(error, EngineError):
        _LOG.error("a request of a Python client failed", exc_info=error)
        return Refused(request_id, "lost", "the engine failed on this request")
    kind: Refusal = next((kind for family, kind in _KINDS if isinstance(error, family)), "lost")
    retry_after = error.retry_after if isinstance(error, Overloaded) else 0.0
    if isinstance(error, InvalidRequest):
        return Refused(request_id, kind, str(error), error.param, code=error.code)
    return Refused(request_id, kind, str(error), retry_after=retry_after)


def lost(request_id: int, error: BaseException) -> Refused:
    """For what was begun."""
    if not isinstance(error, EngineError):
        return refused(request_id, error)
    return Refused(request_id, "late" if isinstance(error, DeadlineExceeded) else "lost", str(error))
