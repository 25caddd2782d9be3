"""One process that renders, as the frontend sees it: asked one thing at a time, and killed when it takes too long."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import cast

import msgspec

from frontend.server.text.rendering.messages import ANSWERS, LENGTH_BYTES, Answer

# -P keeps the working directory off the module path: a folder named `protocol` there must not stand in for ours.
_PROGRAM = (sys.executable, "-P", "-m", "frontend.server.text.rendering")
_INHERITED = (
    "PATH",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "TZ",
    "LANG",
    "LC_ALL",
)  # all else, keys and tokens among it, is not its concern


class ProcessEnded(Exception):
    """The process ended before it answered. `at_limit`: its time was up; else something else ended it."""

    def __init__(self, at_limit: bool) -> None:
        super().__init__(at_limit)
        self.at_limit = at_limit


class TemplateProcess(asyncio.Protocol):
    """Runs from construction on, until it ends or `kill`. Its loop must be that of the thread that made it."""

    def __init__(self, on_end: Callable[["TemplateProcess"], None]) -> None:
        """`on_end` is called once, when it has ended. Raises OSError when no process can be started."""
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._received = bytearray()
        self._answer: asyncio.Future[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killed = self._hung_up = False
        self._transport: asyncio.Transport | None = None
        self.alive = True
        self.served = False  # it has answered something
        self.end, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*_PROGRAM, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in _INHERITED if name in os.environ},
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            except OSError:
                self.end.close()
                raise
        self._pidfd = os.pidfd_open(self._process.pid)  # readable when it has ended
        self._loop.add_reader(self._pidfd, self._ended)

    async def connect(self) -> None:
        """To be awaited before anything is asked."""
        await self._loop.create_connection(lambda: self, sock=self.end)

    def ask(self, question: bytes, seconds: float) -> "asyncio.Future[Answer]":
        """The answer to a framed question; the process is killed when it takes longer than that many seconds.

        The future raises ProcessEnded. Only when it is done, the next thing may be asked.
        """
        answer = self._answer = self._loop.create_future()
        if self._transport is None or not self.alive:
            answer.set_exception(ProcessEnded(at_limit=False))
            return answer
        self._timer = self._loop.call_later(seconds, self.kill)
        self._transport.write(question)
        return answer

    def kill(self) -> None:
        """Ends it at once; without effect when it has ended."""
        self._killed = True
        if self.alive:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `connect`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self._received += data
        size = LENGTH_BYTES + int.from_bytes(self._received[:LENGTH_BYTES], "little")
        if len(self._received) < max(size, LENGTH_BYTES):
            return
        with memoryview(self._received) as view:
            frame = bytes(view[LENGTH_BYTES:size])
        self._received.clear()
        try:
            answer = ANSWERS.decode(frame)
        except msgspec.DecodeError:  # it is not ours any more
            self.kill()
            return
        self._stop_timer()
        self.served = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """It has hung up, and is about to end."""
        self._hung_up = True
        self._finish()

    def _ended(self) -> None:
        self.alive = False
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._stop_timer()
        returncode = self._process.wait()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ProcessEnded(at_limit=self._killed or returncode == -signal.SIGPROF))
            self._answer.exception()  # whether anybody is left to hear it or not
        if self._transport is not None:
            self._transport.abort()
        else:
            self.end.close()
            self._hung_up = True
        self._finish()

    def _finish(self) -> None:
        if self._hung_up and not self.alive:
            self._on_end(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
