"""The measures of all frontends of an engine: each writes its own down once a second, since a scrape reaches only one of them."""

import contextlib
import os
from pathlib import Path

import msgspec

from frontend.server.measures import Snapshot

_DECODER = msgspec.msgpack.Decoder(Snapshot)
_LARGEST_FILE = 1 << 20  # bytes; a snapshot has a few thousand


class MeasuresBoard:
    """A file of each frontend in the engine's private directory. An only frontend writes none."""

    def __init__(self, run_dir: str, index: int, count: int) -> None:
        """`index`: of this frontend, among `count`."""
        self._paths = [Path(run_dir) / f"measures-{number}" for number in range(count)]
        self._index = index

    def publish(self, snapshot: Snapshot) -> None:
        """Shows what this frontend has measured."""
        if len(self._paths) == 1:
            return
        path = self._paths[self._index]
        draft = path.with_suffix(".new")
        with contextlib.suppress(OSError):  # the directory goes when the engine does; on a full disk, the last file stays
            draft.write_bytes(msgspec.msgpack.encode(snapshot))
            os.replace(draft, path)

    def all(self, snapshot: Snapshot) -> dict[int, Snapshot]:
        """What every frontend has measured, by its number. `snapshot`: of this one.

        With several, what they wrote last, also of this one: so no counter goes back between scrapes that different ones answer.
        """
        if len(self._paths) == 1:
            return {self._index: snapshot}
        found = {}
        for index, path in enumerate(self._paths):
            try:
                with open(path, "rb") as file:
                    found[index] = _DECODER.decode(file.read(_LARGEST_FILE))
            except (OSError, msgspec.DecodeError):
                continue  # it has not come so far
        return found
