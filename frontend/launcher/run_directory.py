"""The private directory that holds one engine's sockets, and those that killed engines left behind."""

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from protocol.errors import ConfigError

_PREFIX = "twodeep-"
_LOCK = "launcher.lock"


class RunDirectory:
    """A fresh directory, readable by this user alone. Its lock is held for as long as this process lives, however it ends."""

    def __init__(self, base: Path | None = None) -> None:
        """`base`: $XDG_RUNTIME_DIR, or where temporary files go. Raises ConfigError when nothing can be made there."""
        self._base = base or Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        while True:
            try:
                self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=self._base)  # mkdtemp creates with mode 0700
            except OSError as error:
                text = f"no directory for sockets can be made in {self._base}: {error.strerror}; set XDG_RUNTIME_DIR to another"
                raise ConfigError(text) from error
            lock = Path(self.path, _LOCK)
            self._lock = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if lock.exists():
                return
            os.close(self._lock)  # an engine that starts at the same moment took it for abandoned before it was locked

    def remove(self) -> None:
        """The engine has ended."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def sweep(self) -> list[str]:
        """Removes the directories of engines that were killed together with their launcher; returns what these were.

        Only what has a lock of ours that nobody holds: the kernel lets go of a lock when its process ends, and never before.
        """
        return [str(path) for path in self._base.glob(f"{_PREFIX}*") if path != Path(self.path) and _remove_abandoned(path)]


def _remove_abandoned(path: Path) -> bool:
    with contextlib.suppress(OSError):  # not ours, just removed by another, or no directory
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            return True
        finally:
            os.close(lock)
    return False
