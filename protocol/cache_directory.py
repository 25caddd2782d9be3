"""Where compiled code is kept between runs. What lies there is run, so nobody else may be able to put it there.

The rule is that of sshd's StrictModes (openssh-portable, misc.c, `safe_path`) with two liberties: symbolic links of this user or of
root are followed, and a directory above may be open to all when its entries are safe from each other (the sticky bit, as of /tmp).
"""

import os
import stat
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from protocol.errors import ConfigError

_MOST_LINKS = 40  # that one path may lead through: the kernel's own limit
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_REACHABLE = stat.S_IXGRP | stat.S_IXOTH


class NotPrivateError(OSError):
    """Others could put code into this directory; `str(error)` names what lets them."""


def default_cache(environ: Mapping[str, str]) -> Path:
    """`twodeep` in the service's cache directory ($CACHE_DIRECTORY), in $XDG_CACHE_HOME, or in ~/.cache.

    A user without a home has the temporary one.
    """
    for base in (environ.get("CACHE_DIRECTORY", "").partition(":")[0], environ.get("XDG_CACHE_HOME", "")):
        if os.path.isabs(base):  # a relative one is to be ignored, says the XDG specification
            return Path(base) / "twodeep"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "twodeep" if os.path.isabs(home) else temporary_cache()


def temporary_cache() -> Path:
    """Where the default is of no use: one place for all runs of this user."""
    return Path(tempfile.gettempdir()) / f"twodeep-cache-{os.geteuid()}"


def private_directory(path: Path) -> Path:
    """The real path of a directory, made where it is missing, that only this user and root can change, with all that is in it.

    Raises NotPrivateError when others could, OSError when there can be none. A step is looked at when nobody else can change it any
    more, since the steps before it were found so; what was seen therefore stays true.
    """
    owners = _owners()
    here = Path("/")
    ahead = list(reversed(path.absolute().parts[1:]))
    links = 0
    while ahead:
        _check(here, owners, above=True)
        name = ahead.pop()
        if name == "..":
            here = here.parent
            continue
        status = _find_or_make(here / name)
        if not stat.S_ISLNK(status.st_mode):
            here /= name
            continue
        links += 1
        if links > _MOST_LINKS or status.st_uid not in owners:
            raise NotPrivateError(f"{here / name} is a link of another user, or one of too many")
        target = (here / name).readlink()
        ahead += reversed(target.parts[target.is_absolute() :])
        here = Path("/") if target.is_absolute() else here
    _check(here, owners, above=False)
    _check_contents(here, owners)
    return here


def existing_private_directory(flag: str, path: str) -> Path:
    """The same of a directory that somebody names with a flag, and that must be there. Raises ConfigError naming both."""
    if not Path(path).is_dir():
        raise ConfigError(f"{flag} {path}: no such directory")
    try:
        return private_directory(Path(path))
    except OSError as error:
        raise ConfigError(f"{flag} {path}: what lies there is run as it is, and others could have put it there: {error}") from error


def _find_or_make(path: Path) -> os.stat_result:
    try:
        return path.lstat()
    except FileNotFoundError:
        path.mkdir(mode=0o700, exist_ok=True)
        return path.lstat()


def _check(directory: Path, owners: Collection[int], *, above: bool) -> None:
    """`above`: others may add entries of their own, where entries are safe from each other."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{directory} is no directory")
    if status.st_uid not in owners:
        raise NotPrivateError(f"{directory} belongs to another user (uid {status.st_uid})")
    if status.st_mode & _WRITABLE and not (above and status.st_mode & stat.S_ISVTX):
        raise NotPrivateError(f"others may write to {directory} (`chmod go-w` ends that)")


def _check_contents(directory: Path, owners: Collection[int]) -> None:
    """What was put there while others could stays theirs. Where they cannot even enter, the modes below do not matter."""
    forbidden = _WRITABLE if directory.lstat().st_mode & _REACHABLE else 0
    for parent, folders, files in os.walk(directory):
        for path in (Path(parent, name) for name in (*folders, *files)):
            try:
                status = path.lstat()
            except FileNotFoundError:  # a scratch file of another process that compiles
                continue
            if status.st_uid not in owners:
                raise NotPrivateError(f"{path} belongs to another user (uid {status.st_uid}): remove it")
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & forbidden:
                raise NotPrivateError(f"others may write to {path}: remove it")


def _owners() -> frozenset[int]:
    """Who may own what leads there."""
    uid_map, overflow_uid = Path("/proc/self/uid_map").read_text(), Path("/proc/sys/kernel/overflowuid").read_text()
    return frozenset({0, os.geteuid()}) | unmapped_root(uid_map, overflow_uid)


def unmapped_root(uid_map: str, overflow_uid: str) -> frozenset[int]:
    """The id that the system's own directories have where root has none: in the user namespace of an unprivileged container."""
    uid = int(overflow_uid)
    ranges = [tuple(map(int, line.split())) for line in uid_map.splitlines()]
    return frozenset() if any(first <= uid < first + count for first, _, count in ranges) else frozenset({uid})
