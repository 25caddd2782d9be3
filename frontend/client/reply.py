"""What comes in one message: the engine's first word, and its answers to questions about itself."""

from collections.abc import Callable

from frontend.client.awaited import Answer, Awaited, nobody
from frontend.errors import DeadlineExceeded, EngineUnavailable
from protocol.errors import ProtocolError


class Reply(Awaited[Answer]):
    """An answer of type `kind`."""

    def __init__(self, kind: type[Answer], overdue: str, forget: Callable[[], object] = nobody) -> None:
        """`overdue`: what to say when it is late. `forget`: what comes after `close` is nobody's."""
        super().__init__()
        self._kind = kind
        self._overdue = overdue
        self._forget = forget
        self._answer: Answer | None = None

    @property
    def ready(self) -> bool:
        """It came, or will not come."""
        return self._answer is not None or self.error is not None

    def take(self, answer: object) -> None:
        """It came."""
        if isinstance(answer, self._kind):
            self._answer = answer
            self.notify()
        else:
            self.fail(ProtocolError(f"the engine answered with {type(answer).__name__} where {self._kind.__name__} was asked for"))

    def result(self) -> Answer:
        """As the base says."""
        if self._answer is None:
            raise self.error or EngineUnavailable("the engine has not answered")
        return self._answer

    def late(self, seconds: float) -> DeadlineExceeded:
        """As the base says."""
        return DeadlineExceeded(f"{self._overdue} within {seconds:g} s")

    def close(self) -> None:
        """As the base says."""
        self._forget()
