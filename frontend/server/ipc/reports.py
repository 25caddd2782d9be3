"""What the engine says of itself to Python clients: found out once for all who ask at the same time."""

from collections.abc import Callable

import msgspec

from frontend.server.generation import TextEngine
from frontend.server.health import health
from frontend.server.ipc.stories import Stories
from frontend.server.shared import Shared
from frontend.wire import Ask, Detokenize, Detokenized, Health, Report, StatsReport, StoryReport, Tokenize, Tokenized, TraceReport
from protocol.codec import pack_int32, unpack_int32
from protocol.messages import TraceRecords


class Reports:
    """Those of one engine, for all connections."""

    def __init__(self, engine: TextEngine, counters: Callable[[], dict[str, int]]) -> None:
        """`counters`: those of the server, shown beside the scheduler's."""
        self._engine = engine
        self._counters = counters
        self._stats = Shared(engine.router.stats)
        self._trace = Shared(self._find_trace)
        self._stories = Stories(engine.router)

    async def answer(self, ask: Ask | Tokenize | Detokenize) -> Report:
        """The answer to a question that takes time to answer. Raises why it has none."""
        if isinstance(ask, Tokenize):
            (prompt,) = await self._engine.encode([ask.prompt])
            return Tokenized(ask.request_id, pack_int32(prompt.token_ids))
        if isinstance(ask, Detokenize):
            return Detokenized(ask.request_id, await self._engine.text_of(unpack_int32(ask.token_ids_i32)))
        if ask.what == "trace":
            return TraceReport(ask.request_id, *await self._trace.get())
        if ask.what == "story":
            return StoryReport(ask.request_id, await self._stories.find(ask.subject))
        stats = await self._stats.get()
        return StatsReport(ask.request_id, msgspec.structs.replace(stats, counters=stats.counters | self._counters()))

    def health(self) -> Health:
        """Whether the engine serves, and how well."""
        return health(self._engine)

    async def _find_trace(self) -> tuple[TraceRecords, bytes]:
        records = await self._engine.router.trace()
        return records, self._engine.router.answered().tobytes()
