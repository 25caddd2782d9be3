"""Which request the process works on, where its successor can read it: what ends a process once would end it again and again."""

import mmap
import os
import struct
from pathlib import Path

_FILE = "grammar-suspect"
_ENTRY = struct.Struct("<QQ")  # request id, deaths in a row
_NOBODY, SEVERAL = 0, 2**64 - 1  # no request has these numbers
_MOST_DEATHS = 2  # a single one may have come from outside, just then


class Suspect:
    """A page of a file, shared with the successor."""

    def __init__(self, run_dir: str) -> None:
        """Raises OSError."""
        descriptor = os.open(Path(run_dir, _FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            self._page = mmap.mmap(descriptor, mmap.PAGESIZE)
        finally:
            os.close(descriptor)
        request_id, deaths = _ENTRY.unpack_from(self._page)
        self.last = request_id if request_id != _NOBODY else None  # whom the predecessor died over
        self._deaths = deaths + 1 if self.last is not None else 0

    @property
    def culprit(self) -> int | None:
        """A request that several processes in a row died over."""
        return self.last if self.last != SEVERAL and self._deaths >= _MOST_DEATHS else None

    def begin(self, request_id: int) -> None:
        """Work on this request begins, and that on others has ended."""
        _ENTRY.pack_into(self._page, 0, request_id, self._deaths if request_id == self.last else 0)

    def end(self) -> None:
        """Nobody is worked on."""
        _ENTRY.pack_into(self._page, 0, _NOBODY, 0)

    def close(self) -> None:
        """Leaves nothing behind: this end is no accident."""
        self.end()
        self._page.close()
