"""The link between the launcher and each child: one socket pair, inherited by the child.

It carries the child's specification down, progress and last words up, and death both ways: when either process ends, however it
ends, the other reads an end of file.
"""

import ctypes
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from protocol.codec import Decoder, encode
from protocol.config import CHILD_SPEC_DECODER, PROTOCOL_VERSION, ChildSpec
from protocol.errors import EngineError, ExitCode, ProtocolError
from protocol.messages import LAUNCHER_TO_CHILD, Failed, LauncherToChild

Message = TypeVar("Message")

_MAX_FRAME = 1 << 17  # bytes; below the kernel's default send buffer, so that a packet is never refused for its size
_PR_SET_PDEATHSIG = 1


class SupervisionLink(Generic[Message]):
    """One end: sends any message, receives those of its decoder. Packets keep their bounds (SOCK_SEQPACKET)."""

    def __init__(self, end: socket.socket, decoder: Decoder[Message]) -> None:
        self._socket = end
        self._decoder = decoder
        self.closed = False  # the peer is gone
        end.setblocking(False)

    def fileno(self) -> int:
        """For pollers and event loops."""
        return self._socket.fileno()

    def send(self, message: object) -> None:
        """Sends one message; a peer that is gone is not an error here: `receive` finds out."""
        try:
            self._socket.send(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True
        except BlockingIOError:
            pass  # a launcher that does not read its children's progress must not stop them

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


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """The launcher's end and the child's end. The child's is inheritable."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.set_inheritable(True)
    return ours, theirs


def enter_child(fd: int, title: str, *, die_with_launcher: bool) -> tuple[ChildSpec, SupervisionLink[LauncherToChild]]:
    """First call of every child: reads its specification from the inherited descriptor and names the process.

    SIGINT is ignored, since the terminal sends Ctrl-C to the whole group and the launcher decides the order of the end. With
    `die_with_launcher` the kernel kills this process when the launcher ends: for processes that may be deep in a compilation.
    Raises ProtocolError when launcher and child are not of one version.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if die_with_launcher:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    end = socket.socket(fileno=fd)
    frame = end.recv(_MAX_FRAME)
    if not frame:
        raise ProtocolError("the launcher ended before this process began")
    spec = CHILD_SPEC_DECODER.decode(frame)
    if spec.version != PROTOCOL_VERSION:
        raise ProtocolError(f"the launcher speaks protocol {spec.version}, this process {PROTOCOL_VERSION}: reinstall twodeep")
    name = f"{title}-{spec.index}" if spec.role == "worker" else title
    Path("/proc/self/comm").write_text(name[:15])  # the kernel keeps 15 characters
    if spec.cpus:
        os.sched_setaffinity(0, spec.cpus)
    return spec, SupervisionLink(end, LAUNCHER_TO_CHILD)


def run_child(launcher: SupervisionLink[LauncherToChild], serve: Callable[[], object]) -> int:
    """Last call of every child: does its work and returns its exit code. An EngineError becomes its last word to the launcher."""
    try:
        serve()
    except EngineError as error:
        launcher.send(Failed(error.exit_code, str(error)))
        return error.exit_code
    return ExitCode.OK
