"""Requests that were submitted, as users of the blocking client hold them."""

from collections.abc import Iterator

from frontend.client.outputs import Assembly, RequestOutput
from frontend.client.pipe import Pipe
from frontend.errors import DeadlineExceeded
from frontend.wire import Delta


class Handle:
    """A request whose whole answer is wanted."""

    def __init__(self, pipe: Pipe, assembly: Assembly) -> None:
        self._pipe = pipe
        self._assembly = assembly

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._pipe.wait(lambda: self._assembly.done, 0.0)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the whole answer. Raises DeadlineExceeded after `timeout` seconds, and then the request is aborted."""
        if not self._pipe.wait(lambda: self._assembly.done, timeout):
            self.cancel()
            raise DeadlineExceeded(f"no answer within {timeout:g} s; the request was aborted")
        return self._assembly.result()

    def cancel(self) -> None:
        """Aborts the request. Idempotent, and without effect on one that has ended."""
        self._pipe.cancel(self._assembly)


class Stream:
    """The answer to a request, piece by piece. The request is aborted when nobody holds the stream any more."""

    def __init__(self, pipe: Pipe, assembly: Assembly) -> None:
        self._pipe = pipe
        self._assembly = assembly
        self._closed = False

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        assembly = self._assembly
        if not assembly.unread and not self._closed:
            self._pipe.wait(lambda: bool(assembly.unread) or assembly.done, None)
        if self._closed:
            raise StopIteration
        if assembly.unread:
            return assembly.unread.popleft()
        self._closed = True
        assembly.result()  # raises what it failed with
        raise StopIteration

    def close(self) -> None:
        """Aborts the request; nothing follows. Idempotent."""
        self._closed = True
        self._pipe.cancel(self._assembly)

    def __del__(self) -> None:
        self.close()
