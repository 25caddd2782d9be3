"""How often each process of an engine was started again, and why: counted by the launcher, shown by the frontends."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

_FILE = "restarts"  # in the engine's private directory
_LARGEST_FILE = 1 << 20  # bytes; an entry has a few dozen, and there are few causes

Restarts = dict[str, dict[str, int]]  # process -> cause -> how often

_DECODER = msgspec.msgpack.Decoder(Restarts)


def publish_restarts(run_dir: str, restarts: Mapping[str, Mapping[str, int]]) -> None:
    """Shows them to every frontend, those that start later too."""
    path = Path(run_dir) / _FILE
    draft = path.with_suffix(".new")
    with contextlib.suppress(OSError):  # on a full disk, the last file stays
        draft.write_bytes(msgspec.msgpack.encode(restarts))
        os.replace(draft, path)


def read_restarts(run_dir: str) -> Restarts:
    """As they were shown last; none before the first."""
    try:
        with open(Path(run_dir) / _FILE, "rb") as file:
            return _DECODER.decode(file.read(_LARGEST_FILE))
    except (OSError, msgspec.DecodeError):
        return {}
