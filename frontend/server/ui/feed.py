"""What all pages watch: one source, which asks the scheduler for what is new while anybody watches, and nothing otherwise."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from frontend.errors import Overloaded, ShuttingDown
from frontend.server.generation import TextEngine
from frontend.server.ui.events import Counts, about, counts, status, tick
from protocol.clock import now_ns
from protocol.errors import EngineError
from protocol.messages import TraceRecords

_LOG = logging.getLogger(__name__)

MOST_WATCHERS = 64  # a write each, ten times a second: together a few percent of the frontend's processor
_TICK_SECONDS = 0.1
_TICK_NS = int(_TICK_SECONDS * 1e9)
_SILENCE_NS = 10**9  # after which an event says that nothing is new
_MOST_STEPS = 1024  # in an event, or 10,000 a second: some 50 KB. Of more the latest are shown
_MOST_BEHIND = 20  # events that a watcher has not taken: two seconds; what it shows would be past


class Watcher:
    """One page: an async iterator of events, which ends when the engine drains. `dropped` is set when the page does not keep up."""

    def __init__(self, first: bytes) -> None:
        self.dropped = asyncio.Event()
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._events.put_nowait(first)

    def tell(self, event: bytes) -> bool:
        """One more event; False: it has not taken those before, and gets no more."""
        if self._events.qsize() >= _MOST_BEHIND:
            self.dropped.set()
            return False
        self._events.put_nowait(event)
        return True

    def end(self) -> None:
        """No more events."""
        self._events.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if (event := await self._events.get()) is None:
            raise StopAsyncIteration
        return event


class Feed:
    """The source, of one engine. Each event is made once, whoever watches."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._watchers: set[Watcher] = set()
        self._source: asyncio.Task[None] | None = None
        self._said: Counts | None = None  # what everybody knows
        self._state: tuple[str, int] | None = None  # and this
        self._told_ns = 0

    @property
    def num_watchers(self) -> int:
        """How many watch."""
        return len(self._watchers)

    @property
    def runs(self) -> bool:
        """Whether anything is done."""
        return self._source is not None

    def watch(self) -> Watcher:
        """One page more, until `leave`. Raises Overloaded when so many watch that another would cost those who generate, and
        ShuttingDown while the engine drains."""
        if self._engine.router.draining:
            raise ShuttingDown("the engine is shutting down")
        if len(self._watchers) >= MOST_WATCHERS:
            raise Overloaded(f"{MOST_WATCHERS} pages watch this engine, which is as many as it serves: close one", retry_after=5.0)
        watcher = Watcher(about(self._engine))
        self._watchers.add(watcher)
        self._said = None  # the newcomer knows nothing
        if self._source is None:
            self._source = asyncio.get_running_loop().create_task(self._run())
        return watcher

    def leave(self, watcher: Watcher) -> None:
        """This page watches no more; the last one ends the source."""
        self._watchers.discard(watcher)
        if not self._watchers and self._source is not None:
            self._source.cancel()
            self._source = None

    async def _run(self) -> None:
        try:
            await self._tell_while_watched()
        except Exception:  # noqa: BLE001 - a fault of ours; the pages come again
            _LOG.exception("the source of the page's events failed")
        for watcher in self._watchers:
            watcher.end()
        self._watchers.clear()
        self._source = None

    async def _tell_while_watched(self) -> None:
        router, question = self._engine.router, None
        since = -1  # of what was before anybody watched, only how much it is
        next_ns = now_ns()
        try:
            while not router.draining:
                question = question or asyncio.ensure_future(router.trace(max(since, 0), _MOST_STEPS if since >= 0 else 0))
                await asyncio.wait((question,), timeout=_TICK_SECONDS)
                records, missed = None, 0
                if question.done():
                    with contextlib.suppress(EngineError):  # an engine that has lost its scheduler answers later, or not
                        records = question.result()
                        missed = _missed(records, since) if since >= 0 else 0
                        since = records.end
                    question = None
                self._tell(records, missed)
                next_ns = max(next_ns + _TICK_NS, now_ns())
                await asyncio.sleep((next_ns - now_ns()) * 1e-9)
            self._tell(None, 0)
        finally:
            if question is not None:
                question.cancel()

    def _tell(self, records: TraceRecords | None, missed: int) -> None:
        """Tells all watchers what is new, if anything is, or was silent for long."""
        stats, state, now = self._engine.router.latest_stats, status(self._engine), now_ns()
        news: Counts | None = None
        if self._said is None or self._said.at != stats.now_ns // 1000:
            news = self._said = counts(self._engine, stats)
        has_steps = records is not None and len(records.rows_i64) > 0
        if news is None and not has_steps and state == self._state and now - self._told_ns < _SILENCE_NS:
            return
        self._state, self._told_ns = state, now
        event = tick(state, now, records, missed, news)
        for watcher in list(self._watchers):
            if not watcher.tell(event):
                self.leave(watcher)


def _missed(records: TraceRecords, since: int) -> int:
    """Steps from number `since` on that are not among the records. A scheduler that began anew has counted from 0."""
    there = len(records.rows_i64) // (8 * len(records.columns))
    return max(0, records.end - (since if since <= records.end else 0) - there)
