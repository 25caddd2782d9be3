"""What the client waits for, whatever it is: the core says when it is there, the faces only know how to wait."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from frontend.errors import DeadlineExceeded
from protocol.errors import EngineError

Answer = TypeVar("Answer")


def nobody() -> None:
    """Nobody waits."""


class Awaited(ABC, Generic[Answer]):
    """An answer that is under way. Knows no socket and no clock."""

    def __init__(self) -> None:
        self.notify: Callable[[], None] = nobody  # called whenever there is news; for who waits to set
        self.error: EngineError | None = None

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether `result` would return, or raise, an answer."""

    @abstractmethod
    def result(self) -> Answer:
        """The answer, when it is ready. Raises why there is none."""

    @abstractmethod
    def late(self, seconds: float) -> DeadlineExceeded:
        """What to raise when the answer did not come in so many seconds."""

    def close(self) -> None:
        """Nobody wants the answer any more. Idempotent."""

    def fail(self, error: EngineError) -> None:
        """There will be no answer. Without effect on one that came, and the first reason stands."""
        if not self.ready:
            self.error = error
            self.notify()
