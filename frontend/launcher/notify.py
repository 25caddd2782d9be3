"""Tells systemd how the engine is: the datagram protocol of sd_notify(3), when NOTIFY_SOCKET is set."""

import os
import socket
from collections.abc import Mapping

# A child that sent READY or a watchdog ping, or took a listening descriptor for its own, would confuse the service manager.
MANAGER_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")


class Notifier:
    """Sends state to the service manager; without one, does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # "@" names an abstract socket
        self.watchdog_interval = _watchdog_interval(environ) if address else None  # seconds between pings; None: not asked

    def starting(self, status: str) -> None:
        """The start goes on: a big model may need longer than the unit's TimeoutStartSec, so each sign of life extends it."""
        self._send(f"STATUS={status}\nEXTEND_TIMEOUT_USEC=120000000")

    def ready(self, status: str) -> None:
        """The engine serves."""
        self._send(f"READY=1\nSTATUS={status}")

    def stopping(self) -> None:
        """The engine drains."""
        self._send("STOPPING=1\nSTATUS=draining")

    def alive(self) -> None:
        """One watchdog ping."""
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as datagram:
                datagram.sendto(state.encode(), self._address)
        except OSError:
            pass  # a manager that went away must not take the engine with it


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    try:
        microseconds = int(environ["WATCHDOG_USEC"])
        owner = int(environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    if owner != os.getpid() or microseconds <= 0:
        return None
    return microseconds / 2e6  # half the limit, as sd_watchdog_enabled(3) advises
