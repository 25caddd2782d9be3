"""Log lines that strangers can cause: at most one in a while, with the number of those left out."""

import logging

from protocol.clock import now

_INTERVAL = 10.0  # seconds


class OccasionalLog:
    """One kind of line of a logger."""

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger = logger
        self._level = level
        self._next = 0.0
        self._left_out = 0

    def say(self, text: str, error: BaseException | None = None) -> None:
        """Logs the text, with the traceback of `error`, unless a line was logged a moment ago."""
        if now() < self._next:
            self._left_out += 1
            return
        self._next = now() + _INTERVAL
        more = f" (and {self._left_out} more since the last such line)" if self._left_out else ""
        self._left_out = 0
        self._logger.log(self._level, "%s%s", text, more, exc_info=error)
