"""How much memory the processes of this host may have."""

import contextlib
import os
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")


def memory_limit(groups: Path = CONTROL_GROUPS) -> int:
    """Bytes: of the machine, or of the control group that this process is in, if that is less."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_group_limits(groups)])


def _group_limits(groups: Path) -> list[int]:
    """Of this process's group and those above it. Version 2: memory.max; version 1: memory/memory.limit_in_bytes."""
    limits: list[int] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return limits
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root, name = (groups, "memory.max") if not controllers else (groups / "memory", "memory.limit_in_bytes")
            place = root / path.lstrip("/")
            while place.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError):  # "max", or a group of another namespace
                    limits.append(int((place / name).read_text()))
                place = place.parent
    return limits
