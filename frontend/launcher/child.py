"""One child process: started with its specification, heard over its supervision link, reaped when it ends."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from frontend.launcher.events import Child, Role
from frontend.launcher.notify import MANAGER_VARIABLES
from protocol.config import ChildSpec, encode_spec
from protocol.messages import CHILD_TO_LAUNCHER, ChildToLauncher, LauncherToChild
from protocol.supervision import SupervisionLink, socket_pair

Programs: TypeAlias = Mapping[Role, Sequence[str]]  # role -> command line, without the descriptor's number

# -P keeps the working directory off the module path: a folder named `protocol` there must not stand in for ours.
PROGRAMS: Programs = {
    "frontend": (sys.executable, "-P", "-m", "frontend.server"),
    "scheduler": (sys.executable, "-P", "-m", "scheduler_proc"),
    "worker": (sys.executable, "-P", "-m", "tpu_worker"),
    "follower": (sys.executable, "-P", "-m", "tpu_worker.hosts"),
    "grammar": (sys.executable, "-P", "-m", "scheduler_proc.grammar"),
}


class ChildProcess:
    """A running incarnation of a child."""

    def __init__(self, child: Child, spec: ChildSpec, program: Sequence[str], environ: Mapping[str, str]) -> None:
        """Starts it. `environ` is set over this process's own, less what belongs to the service manager. Raises OSError."""
        self.child = child
        self.epoch = spec.epoch
        ours, theirs = socket_pair()
        inherited = {name: value for name, value in os.environ.items() if name not in MANAGER_VARIABLES}
        with contextlib.ExitStack() as undo, theirs:
            undo.callback(ours.close)
            ours.sendall(encode_spec(spec))
            # A group of its own: the terminal's Ctrl-C reaches the launcher alone, which decides the order of the end.
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=inherited | dict(environ),
                pass_fds=(theirs.fileno(), *([spec.http_fd] if spec.http_fd >= 0 else ())),
                process_group=0,
            )
            undo.callback(self._process.wait)
            undo.callback(self._process.kill)
            self.pidfd = os.pidfd_open(self._process.pid)  # readable when the process has ended
            undo.pop_all()
        self._link: SupervisionLink[ChildToLauncher] = SupervisionLink(ours, CHILD_TO_LAUNCHER)

    def fileno(self) -> int:
        """Readable when the child said something, or closed its end."""
        return self._link.fileno()

    def is_silent(self) -> bool:
        """It closed its end, so nothing more will come."""
        return self._link.closed

    def receive(self) -> ChildToLauncher | None:
        """The next message that is here, or None. Raises ProtocolError on a packet that is none."""
        return self._link.receive()

    def send(self, message: LauncherToChild) -> None:
        """Sends one message, now or with a later `flush`; a child that is gone is noticed by its end."""
        self._link.send(message)

    @property
    def wants_write(self) -> bool:
        """Whether a message waits for `fileno` to become writable."""
        return self._link.wants_write

    def flush(self) -> None:
        """Sends what waits, as far as there is room."""
        self._link.flush()

    def is_stopped(self) -> bool:
        """Whether a signal stopped it (SIGSTOP), so that the kernel does not run it."""
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it has ended, and waits to be reaped
            return False

    def signal(self, signum: signal.Signals) -> None:
        """Signals the process, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)

    def reap(self) -> int:
        """Waits for the process that has ended; exit code, or the negated signal. Releases everything it held here."""
        returncode = self._process.wait()
        self._link.close()
        os.close(self.pidfd)
        return returncode
