"""What a connection asks of its server."""

from typing import TYPE_CHECKING, Protocol

from frontend.server.api.errors import ApiError
from frontend.server.http.exchange import Exchange
from frontend.server.http.limits import Limits
from frontend.server.turns import Turns

if TYPE_CHECKING:
    from frontend.server.http.connection import Connection


class Host(Protocol):
    """The server."""

    limits: Limits
    draining: bool
    turns: Turns  # of the application, at working on bodies

    def admit(self, connection: "Connection") -> bool:
        """Counts a connection; False: it is one too many."""

    def forget(self, connection: "Connection") -> None:
        """It is gone."""

    def rest(self, connection: "Connection") -> None:
        """It is idle, and the first to go where connections run short once it is idle longest."""

    def wake(self, connection: "Connection") -> None:
        """It is not."""

    def hold(self, size: int) -> bool:
        """Counts bytes that were received, or, below 0, are not held any more. False: more are held than may be."""

    def run(self, exchange: Exchange) -> None:
        """Lets the application answer."""

    def date(self) -> bytes:
        """The time, as HTTP writes it."""

    def refused(self, error: ApiError) -> None:
        """A request was answered by its connection, not by the application."""
