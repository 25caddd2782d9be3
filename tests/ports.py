"""Ports for what has to be told a port, and cannot take any that is free."""

import os
import socket
from contextlib import ExitStack

_FIRST, _LAST = 10000, 15999  # below those that kernels give to whoever asks for any


def ports_in_a_row(count: int) -> int:
    """The first of so many that nobody has now. Test runs beside each other begin to look at different places."""
    size = (_LAST - _FIRST) // count
    for index in range(size):
        first = _FIRST + (os.getpid() * 37 + index) % size * count
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {count} ports in a row are free")
