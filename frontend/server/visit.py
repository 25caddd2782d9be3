"""What one request of a client is called, and what came of it: for logs and stories, known to whoever works for it.

It is found through the context, which the tasks that are begun for a request inherit.
"""

import secrets
from contextvars import ContextVar
from dataclasses import dataclass, field

from frontend.server.measures import Timeline
from protocol.clock import now_ns
from protocol.params import SamplingParams

_LONGEST_NAME = 256


@dataclass(slots=True)
class Visit:
    """One request over HTTP, or of the Python client."""

    name: str  # its client's own, or ours: an HTTP answer's x-request-id, and the end of the answer's id
    client: str = ""  # from where
    what: str = ""  # method and path, or the Python client's
    model: str = ""
    prompt: str | None = None  # what was asked, where the log is to say it
    began_ns: int = field(default_factory=now_ns)
    outputs: list[Timeline] = field(default_factory=list)  # what the engine was asked for on its behalf
    outputs_per_prompt: int = 1
    line: int = 0  # that its requests wait in, see AddRequest; 0: none yet
    params: SamplingParams | None = None  # of the outputs
    trace: dict[str, str] = field(default_factory=dict)  # W3C's headers of the trace that the request is a part of


_CURRENT: ContextVar[Visit | None] = ContextVar("visit", default=None)


def begin(visit: Visit) -> None:
    """From now on this task, and those that it begins, work for this request."""
    _CURRENT.set(visit)


def current() -> Visit | None:
    """The request that this task works for."""
    return _CURRENT.get()


def current_name() -> str:
    """What that request is called; without one, a name that nobody else has."""
    visit = _CURRENT.get()
    return visit.name if visit is not None and visit.name else new_name()


def new_name() -> str:
    """For a request whose client gave it none."""
    return secrets.token_hex(12)


def is_name(text: bytes) -> bool:
    """Whether a client's name for its request is one that can be sent back, written into a log and typed again."""
    return 0 < len(text) <= _LONGEST_NAME and text.isascii() and text.decode().isprintable()
