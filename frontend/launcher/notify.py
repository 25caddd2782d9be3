"""Tells systemd how the engine is: the datagram protocol of sd_notify(3), when NOTIFY_SOCKET is set."""

import os
import socket
from collections.abc import Mapping

from frontend.launcher.values import shown
from protocol.errors import ConfigError

# A child that sent READY or a watchdog ping, or took a listening descriptor for its own, would confuse the service manager.
MANAGER_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


EXTENSION = 120.0  # seconds by which a sign of life extends the time to start: far more than lies between two of them

_NEVER = 2**64 - 1  # systemd's USEC_INFINITY
_MOST_DIGITS = 20
_LONGEST_INTERVAL = 3600.0  # seconds; more often than asked does no harm, and no wait of the launcher's loop overflows


class Notifier:
    """Sends state to the service manager; without one, does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises ConfigError when the environment asks for a watchdog in numbers that are none."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # "@" names an abstract socket
        self._unsent: dict[str, str] = {}  # what the manager had no room for: the latest of each variable
        self.watchdog_interval = _watchdog_interval(environ) if address else None  # seconds between pings; None: not asked

    def starting(self) -> None:
        """The start goes on: a big model may need longer than the unit's TimeoutStartSec, so each sign of life extends it."""
        self._send({"EXTEND_TIMEOUT_USEC": str(int(1e6 * EXTENSION))})

    def ready(self, status: str) -> None:
        """The engine serves."""
        self._send({"READY": "1", "STATUS": status})

    def status(self, status: str) -> None:
        """How far it is, or how it serves, has changed."""
        self._send({"STATUS": status})

    def stopping(self, seconds: float) -> None:
        """The engine drains, and will be gone after so many seconds at the latest, whatever the unit's TimeoutStopSec says."""
        self._send({"STOPPING": "1", "STATUS": "draining", "EXTEND_TIMEOUT_USEC": str(int(1e6 * seconds))})

    def alive(self) -> None:
        """One watchdog ping."""
        self._send({"WATCHDOG": "1"})

    def retry(self) -> None:
        """Says again what the manager had no room for."""
        if self._unsent:
            self._send({})

    def _send(self, state: dict[str, str]) -> None:
        if not self._address:
            return
        self._unsent |= state
        text = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as datagram:
                datagram.sendto(text.encode(), self._address)
        except BlockingIOError:
            return  # it is busy: READY must not be lost
        except OSError:
            pass  # a manager that went away must not take the engine with it
        self._unsent.clear()


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    if "WATCHDOG_USEC" not in environ:
        return None
    microseconds, owner = (_number(environ, name) for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
    if owner not in (None, os.getpid()):
        return None
    return min(_LONGEST_INTERVAL, (microseconds or 0) / 2e6)  # half the limit, as sd_watchdog_enabled(3) advises


def _number(environ: Mapping[str, str], name: str) -> int | None:
    """As sd_watchdog_enabled(3) reads it: none is fine, a number that cannot be one is an error, and so is "never" (2^64 - 1)."""
    text = environ.get(name)
    if text is None:
        return None
    value = int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else 0
    if not 0 < value < _NEVER:
        raise ConfigError(f"{name}={shown(text)}: a number from 1 to {_NEVER - 1} is wanted, as systemd sets it: unset it")
    return value
