"""What the kernel tells of devices and processes."""

import errno
import os
import resource
import select
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protocol.clock import now

_CAP_IPC_LOCK = 14  # its bit: who has it may pin as much memory as there is


@dataclass(frozen=True, slots=True)
class Places:
    """Where to look; a test has directories of its own."""

    dev: Path = Path("/dev")
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    tpu_lock: Path = Path("/tmp/libtpu_lockfile")


HERE = Places()


@dataclass(frozen=True, slots=True)
class Process:
    """Another process."""

    pid: int
    name: str  # as `ps` shows it; empty: it is not seen

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True, slots=True)
class OpenFiles:
    """Who has which files open, as far as this user may know."""

    by_path: dict[str, tuple[Process, ...]]
    seen: frozenset[int]  # processes whose open files are shown


def numbered(directory: Path, prefix: str) -> list[Path]:
    """The entries `prefix` 0, 1, …, in the order of their numbers."""
    found = {name[len(prefix) :]: name for name in _names(directory) if name.startswith(prefix)}
    return [directory / found[number] for number in sorted((n for n in found if n.isascii() and n.isdigit()), key=int)]


def open_files(paths: Collection[Path], places: Places) -> OpenFiles:
    """Which processes, other than this one, have any of `paths` open."""
    wanted = {str(path) for path in paths}
    by_path: dict[str, list[Process]] = {path: [] for path in wanted}
    seen: set[int] = set()
    for pid in _pids(places):
        directory = places.proc / str(pid) / "fd"
        try:
            with os.scandir(directory) as entries:
                targets = {_target(entry.path) for entry in entries}
        except OSError:  # another user's, or it has ended
            continue
        seen.add(pid)
        for path in wanted & targets:
            by_path[path].append(name_process(pid, places))
    return OpenFiles({path: tuple(found) for path, found in by_path.items()}, frozenset(seen))


def name_process(pid: int, places: Places) -> Process:
    """The process of this number."""
    with suppress(OSError):
        return Process(pid, (places.proc / str(pid) / "comm").read_text(errors="replace").strip())
    return Process(pid, "")


def lock_holder(path: Path, places: Places) -> Process | None:
    """Who holds a lock on the whole file (lockf); a lock ends with its process, the file stays."""
    try:
        file = path.stat()
        lines = (places.proc / "locks").read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    for line in lines:
        fields = line.split()  # 1: POSIX ADVISORY WRITE 4711 fe:00:2146824 0 EOF
        if len(fields) < 6 or fields[1] != "POSIX" or not fields[4].isdigit() or fields[4] == "0":  # 0: of another namespace
            continue
        on, _, inode = fields[5].rpartition(":")
        # File systems without a device of their own (major number 0) have several names for one.
        if inode == str(file.st_ino) and (on == device or on[:3] == device[:3] == "00:"):
            return name_process(int(fields[4]), places)
    return None


def locked_memory_limit(places: Places) -> int | None:
    """How many bytes this user's processes may pin, once they ask for all that they may; None: no limit, or none that is known."""
    with suppress(OSError, ValueError, StopIteration):
        status = (places.proc / "self" / "status").read_text().splitlines()
        if int(next(line for line in status if line.startswith("CapEff:")).split()[1], 16) >> _CAP_IPC_LOCK & 1:
            return None
    with suppress(OSError, ValueError, StopIteration):
        limits = (places.proc / "self" / "limits").read_text().splitlines()
        return int(next(line for line in limits if line.startswith("Max locked memory")).split()[4])
    return None


def raise_locked_memory_limit() -> None:
    """Lets this process and those that it starts pin as much memory as they may."""
    _, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (most, most))


def why_not(path: Path, *, open_it: bool) -> str:
    """Why the device cannot be used ("": nothing is against it), as the name of an error number.

    open_it: by opening it. Only that shows what a control group forbids, or that somebody else has what one process at a time may.
    """
    try:
        if open_it:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        elif not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
            return "EACCES" if path.exists() else "ENOENT"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "EIO")
    return ""


def wait_for_end(processes: Collection[Process], seconds: float) -> None:
    """Waits until all of them have ended, at most so long: a process that is ending holds its devices until it has."""
    deadline = now() + seconds
    for process in processes:
        with suppress(OSError):
            pidfd = os.pidfd_open(process.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                poll.poll(max(0.0, deadline - now()) * 1e3)
            finally:
                os.close(pidfd)


def _pids(places: Places) -> Iterator[int]:
    own = os.getpid()
    return (int(name) for name in _names(places.proc) if name.isascii() and name.isdigit() and int(name) != own)


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _target(link: str) -> str:
    with suppress(OSError):
        return os.readlink(link)
    return ""
