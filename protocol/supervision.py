"""The link between the launcher and each child: one socket pair, inherited by the child.

It carries the child's specification and orders down, pulses, progress and last words up, and death both ways: when either process
ends, however it ends, the other reads an end of file. What tells how far things are may be dropped when the other end does not
read; orders, hellos and last words wait until there is room, so every loop that owns an end flushes it.
"""

import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from protocol.clock import now
from protocol.codec import Decoder, encode
from protocol.config import CHILD_SPEC_DECODER, PROTOCOL_VERSION, ChildSpec
from protocol.errors import EngineError, ExitCode, ProtocolError, describe
from protocol.logs import set_up_logging
from protocol.messages import LAUNCHER_TO_CHILD, Failed, LauncherToChild, Progress, Pulse
from protocol.outbox import Outbox
from protocol.process import die_with_parent, name_process

_LOG = logging.getLogger(__name__)

Message = TypeVar("Message")

_MAX_FRAME = 1 << 17  # bytes; below the kernel's default send buffer, so that a packet is never refused for its size
_MOST_WAITING = 1024  # packets behind a full socket: more orders or reports than an engine has causes for
_LAST_WORDS_SECONDS = 1.0  # for the launcher to make room; it reads at once unless it is stopped


class SupervisionLink(Generic[Message]):
    """One end: sends any message, receives those of its decoder. Packets keep their bounds (SOCK_SEQPACKET).

    Never waits, but in `deliver`. Any thread may send.
    """

    def __init__(self, end: socket.socket, decoder: Decoder[Message]) -> None:
        self._socket = end
        self._decoder = decoder
        self._outbox = Outbox(self._write, _MOST_WAITING)
        self._lock = threading.Lock()  # of the outbox
        self.closed = False  # the peer is gone, as `receive` found out
        end.setblocking(False)

    def fileno(self) -> int:
        """For pollers and event loops."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Says one message, now or with a later `flush`; only progress and pulses may be dropped.

        A peer that is gone is not an error here: `receive` finds out. One that leaves so much unread that orders and reports pile
        up is as good as gone: the link is shut down, which both ends see as the other's death. Raises ProtocolError on a message
        that no packet holds.
        """
        packet = encode(message)
        if len(packet) > _MAX_FRAME:
            raise ProtocolError(f"a {type(message).__name__} of {len(packet)} bytes: a supervision link carries {_MAX_FRAME}")
        with self._lock:
            if not self._outbox.push(packet, may_drop=isinstance(message, Progress | Pulse)):
                self._outbox.clear()
                self._socket.shutdown(socket.SHUT_RDWR)

    @property
    def wants_write(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return len(self._outbox) > 0

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        with self._lock:
            self._outbox.flush()

    def deliver(self, timeout: float = _LAST_WORDS_SECONDS) -> bool:
        """Waits until the peer's socket holds all that was said, so that this process may end; False after `timeout` seconds."""
        deadline = now() + timeout
        poll = select.poll()
        poll.register(self._socket, select.POLLOUT)
        self.flush()
        while self.wants_write and (left := deadline - now()) > 0:
            poll.poll(left * 1e3)
            self.flush()
        return not self.wants_write

    def receive(self) -> Message | None:
        """The next message that is here, or None. Sets `closed` when the peer is gone. Never waits.

        Raises ProtocolError when the packet is not a message of this link.
        """
        try:
            frame = self._socket.recv(_MAX_FRAME)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            frame = b""
        if not frame:
            self.closed = True
            return None
        return self._decoder.decode(frame)

    def close(self) -> None:
        """Closes this end."""
        self._socket.close()

    def _write(self, packet: bytes) -> bool:
        try:
            self._socket.send(packet)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass  # nobody will ever read it
        return True


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The launcher's end and the child's end. The child's is inheritable."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.set_inheritable(True)
    return ours, theirs


def enter_child(fd: int, title: str, *, die_with_launcher: bool) -> tuple[ChildSpec, SupervisionLink[LauncherToChild]]:
    """First call of every child: reads its specification from the inherited descriptor, names the process and lets it log.

    SIGINT is ignored, since the terminal sends Ctrl-C to the whole group and the launcher decides the order of the end. With
    `die_with_launcher` the kernel kills this process when the launcher ends: for processes that may be deep in a compilation.
    Raises ProtocolError when launcher and child are not of one version.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if die_with_launcher:
        die_with_parent()
    end = socket.socket(fileno=fd)
    frame = end.recv(_MAX_FRAME)
    if not frame:
        raise ProtocolError("the launcher ended before this process began")
    spec = CHILD_SPEC_DECODER.decode(frame)
    if spec.version != PROTOCOL_VERSION:
        raise ProtocolError(f"the launcher speaks protocol {spec.version}, this process {PROTOCOL_VERSION}: reinstall twodeep")
    numbered = spec.role == "worker" or spec.index > 0
    name_process(f"{title}-{spec.index}" if numbered else title)
    config = spec.config
    set_up_logging(f"{spec.role} {spec.index}" if numbered else spec.role, config.log_format, config.log_level)
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    return spec, SupervisionLink(end, LAUNCHER_TO_CHILD)


def run_child(launcher: SupervisionLink[LauncherToChild], serve: Callable[[], object]) -> int:
    """Does the work of a child and returns its exit code. Whatever ends it early becomes its last word to the launcher."""
    code = ExitCode.OK
    try:
        serve()
    except EngineError as error:
        code = error.exit_code
        launcher.send(Failed(code, describe(error)))
    except Exception as error:  # noqa: BLE001 - a fault of ours: logged, and told to the operator
        _LOG.exception("this process cannot go on")
        code = ExitCode.CRASHED
        launcher.send(Failed(code, f"{type(error).__name__}: {describe(error)}"))
    launcher.deliver()
    return code


def leave(code: int) -> NoReturn:
    """Last call of every child: ends the process at once, with everything that mattered delivered.

    An interpreter that ends by itself waits for its threads, which may compile for minutes or count the tokens of a long text, and
    tears libraries down beneath them. The kernel takes back memory, sockets and devices all the same, and sooner.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
