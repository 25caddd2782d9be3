"""Moves token ids between the frontend's interfaces and the scheduler: numbers requests, hands each one its tokens."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from frontend.errors import EngineUnavailable, Overloaded, ShuttingDown
from frontend.restarts import Restarts, read_restarts
from frontend.server.journal import Journal
from frontend.server.measures import Measures, Snapshot
from frontend.server.measures_board import MeasuresBoard
from frontend.server.prompt_scores import TakesScores
from frontend.server.token_stream import Generation
from frontend.server.visit import current
from protocol.channel import Receiver, Sender
from protocol.clock import ChargedClock, now_ns
from protocol.codec import Int32Array, Int64Array
from protocol.config import EngineConfig
from protocol.endpoints import SCHEDULER_INBOX, frontend_inbox, ipc_address, session_dir
from protocol.errors import EngineError
from protocol.messages import (
    SCHEDULER_TO_FRONTEND,
    EngineReady,
    EngineStats,
    FrontendJoined,
    FrontendToScheduler,
    GetStats,
    GetStory,
    GetTrace,
    SchedulerToFrontend,
    Story,
    TokenBatch,
    TraceRecords,
)
from protocol.params import EngineParams

_MOST_REQUESTS = 16_384  # accepted and not ended, of all frontends: bounds the memory that clients can make the engine hold
_MOST_TOKENS = 1 << 26  # of their prompts together: four bytes each, in the pipe and in the scheduler
_TOKEN_BYTES = 4
_FIRST_DECODE_SECONDS = 60.0  # at least: whatever is done once is done then
_ANSWERED_CAPACITY = 8192  # as many steps as the scheduler's trace holds


@dataclass(frozen=True, slots=True)
class _Query:
    """A question to the scheduler that is not answered."""

    question: FrontendToScheduler
    answer: asyncio.Future[EngineStats | TraceRecords | Story]


class Router:
    """The frontend's end of the pipes to the scheduler. Runs on the frontend's event loop."""

    def __init__(self, config: EngineConfig, run_dir: str, *, index: int = 0, epoch: int = 0, session: int = 0) -> None:
        """`index`, `epoch`: which frontend this is, in which incarnation. `session`: which life of the scheduler."""
        self._config = config
        self._run_dir = run_dir
        self.index = index
        self._open_pipes(session)
        self._hello = FrontendJoined(index, epoch)
        self.journal = Journal(index, epoch, self._say, self._note_end)
        self._queries: dict[int, _Query] = {}
        self._capacity: EngineReady | None = None
        self._first_ready: asyncio.Future[EngineReady] | None = None
        self._answered = np.zeros((_ANSWERED_CAPACITY, 3), np.int64)
        self._num_answered = 0
        self.num_messages = 0  # from the scheduler
        self._board = MeasuresBoard(run_dir, index, config.frontends)
        # As the scheduler said last by itself, at its pulse, and the time before.
        self.latest_stats = self.stats_before = EngineStats(0, 0, (), {})
        self._clock = ChargedClock(int(config.pulse_interval * 1e9), now_ns())
        self._heard_ns = self._clock.now_ns  # when the scheduler said anything last
        self._stall_ns = int(config.pulse_timeout * 1e9) // 2  # well before the launcher ends what does not get on
        self._refusal: EngineError | None = None  # why no new requests are taken
        self._failure: EngineError | None = None  # why nothing is answered any more
        self._emptied = asyncio.Event()

    async def start(self) -> EngineReady:
        """Waits until every worker has joined."""
        loop = asyncio.get_running_loop()
        self._first_ready = loop.create_future()
        self._inbox.watch(loop, self._on_message)
        self._outbox.send(self._hello)
        return await self._first_ready

    def rejoin(self, session: int) -> None:
        """Another scheduler begins in place of one that ended: tells it of every request that has not ended, with the tokens that
        came so far, and asks again what was not answered. Whoever waits for tokens notices nothing but the time that it takes.
        """
        watched = self._first_ready is not None
        while (message := self._inbox.receive()) is not None:  # what is here is the last that comes of that session
            self._handle(message)
        if watched:
            self._inbox.unwatch(asyncio.get_running_loop())
        self._inbox.close()
        self._outbox.close(deliver=False)
        self._open_pipes(session)
        self._heard_ns = self._clock.now_ns
        if watched:
            self._inbox.watch(asyncio.get_running_loop(), self._on_message)
            self._outbox.send(self._hello)
        self.journal.tell_again()
        for query in self._queries.values():
            self._outbox.send(query.question)

    @property
    def capacity(self) -> EngineReady:
        """Live workers and the model's limits, as the scheduler said last. Raises EngineUnavailable before `start` is done."""
        if self._capacity is None:
            raise EngineUnavailable("the engine is still starting")
        return self._capacity

    def tick(self, now_ns: int) -> None:
        """Time passed. Called once every pulse interval; only what is told here counts against the scheduler."""
        self._clock.advance(now_ns)
        self._board.publish(self._snapshot())

    @property
    def is_stalled(self) -> bool:
        """Whether the scheduler has been silent for so long that it cannot be counted on."""
        return self._clock.now_ns - self._heard_ns > self._stall_ns

    @property
    def num_requests(self) -> int:
        """Requests accepted and not ended."""
        return len(self.journal)

    @property
    def measures(self) -> Measures:
        """Of the requests of this frontend."""
        return self.journal.measures

    @property
    def is_full(self) -> bool:
        """Whether as many requests are under way as may be."""
        return len(self.journal) >= _MOST_REQUESTS // self._config.frontends

    @property
    def malformed_frames(self) -> int:
        """Frames from the scheduler's side that did not decode."""
        return self._inbox.malformed

    def restarts(self) -> Restarts:
        """How often each process of the engine was started again, by cause."""
        return read_restarts(self._run_dir)

    def measured(self) -> dict[int, Snapshot]:
        """What all frontends of the engine have measured, by their numbers."""
        return self._board.all(self._snapshot())

    def _snapshot(self) -> Snapshot:
        return self.measures.snapshot(self.num_requests, _TOKEN_BYTES * self.journal.num_tokens)

    def submit(
        self,
        token_ids: Int32Array,
        params: EngineParams,
        *,
        priority: int = 0,
        stream: bool = True,
        cache_salt: str = "",
        scores: TakesScores | None = None,
        known: Int32Array | None = None,
    ) -> Generation:
        """Hands a request to the scheduler. `token_ids`: int32, shape [prompt]. `scores`: what takes those of the prompt.
        `known`: int32, shape [output tokens], of a request that is resumed.

        Raises Overloaded when too many are under way, EngineUnavailable while the scheduler is stalled, ShuttingDown while
        draining, what `fail_all` was given after it.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        self._check_scheduler()
        if self.is_full:
            raise Overloaded(f"{_MOST_REQUESTS // self._config.frontends} requests are under way: try again later")
        most = _MOST_TOKENS // self._config.frontends
        if len(self.journal) and self.journal.num_tokens + len(token_ids) > most:
            raise Overloaded(f"requests with {most} tokens of prompts together are under way: try again later")
        visit = current()
        if visit is not None and visit.outputs and not visit.line:  # what has several outputs is one client
            visit.line = self.new_line()
        line = visit.line if visit is not None else 0
        share = self.journal.share(line)
        if line and (
            share.requests >= _MOST_REQUESTS // self._config.frontends // 2
            or (share.tokens and share.tokens + len(token_ids) > most // 2)
        ):
            text = f"{share.requests} requests of this client are under way, with {share.tokens} tokens of prompts: half of all"
            raise Overloaded(f"{text}: try again later")
        generation = self.journal.accept(
            token_ids,
            params,
            priority=priority,
            stream=stream,
            cache_salt=cache_salt,
            name=visit.name if visit is not None else "",
            line=line,
            scores=scores,
            known=() if known is None else known.tolist(),
        )
        if visit is not None:
            visit.outputs.append(generation.timeline)
            visit.model = visit.model or self._config.served_model_names[0]
        return generation

    def new_line(self) -> int:
        """A number that requests of one client have in common: see AddRequest."""
        return next(self.journal.ids)

    async def try_out(self) -> None:
        """Has every worker read a prompt and decode, through all processes, before anybody is served. What that took is no measure
        of what clients get.

        Raises EngineUnavailable when it does not succeed.
        """
        prompt, params = np.zeros(1, np.int32), EngineParams(min(2, self.capacity.max_model_len - 1))
        seconds = max(self._config.step_timeout, _FIRST_DECODE_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                for generation in [self.submit(prompt, params) for _ in range(self.capacity.workers)]:
                    async for delta in generation:
                        if delta.finish_reason == "error":
                            raise EngineUnavailable(f"the first decode failed: {delta.message}")
        except TimeoutError as error:
            raise EngineUnavailable(f"the first decode took more than {seconds:g} s") from error
        self.journal.measures = Measures()

    async def stats(self) -> EngineStats:
        """The scheduler's statistics. Raises EngineUnavailable when it does not answer, and what `fail_all` was given."""
        answer = await self._ask(GetStats)
        assert isinstance(answer, EngineStats)
        return answer

    async def trace(self, since: int = 0, most: int = -1) -> TraceRecords:
        """The steps that the scheduler's ring buffer holds, from number `since` on, and at most the latest `most` of these; below
        0: all. Raises what `stats` raises.
        """
        answer = await self._ask(lambda query_id: GetTrace(query_id, since, most))
        assert isinstance(answer, TraceRecords)
        return answer

    async def story(self, request_id: int, name: str = "") -> Story:
        """How a request came to stand where it stands. `request_id`: ANY_REQUEST for the latest of this name, or, without one,
        of all. Raises what `stats` raises.
        """
        answer = await self._ask(lambda query_id: GetStory(query_id, request_id, name))
        assert isinstance(answer, Story)
        return answer

    def answered(self) -> Int64Array:
        """When the tokens of recent steps came in here: rows (worker, step_id, nanoseconds), oldest first."""
        held = min(self._num_answered, _ANSWERED_CAPACITY)
        return np.roll(self._answered, -(self._num_answered % _ANSWERED_CAPACITY), axis=0)[_ANSWERED_CAPACITY - held :]

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._refusal is not None

    async def drain(self) -> None:
        """Takes no new requests and returns when the running ones have ended."""
        self._refusal = self._refusal or ShuttingDown("the engine is shutting down and takes no new requests")
        if len(self.journal):
            await self._emptied.wait()

    def fail_all(self, error: EngineError) -> None:
        """Ends everything under way with `error`, refuses with it what comes later, and has the scheduler forget the requests.

        For an engine that will not answer any more: its time to drain is over, or a part of it is gone.
        """
        self._refusal = self._failure = error
        for query in self._queries.values():
            if not query.answer.done():
                query.answer.set_exception(error)
        self._queries.clear()
        for generation in self.journal.open():
            generation.fail(error)
            self.journal.abort(generation, "error")
            generation.wake()

    def close(self) -> None:
        """Closes the pipes."""
        self._inbox.unwatch(asyncio.get_running_loop())
        self._inbox.close()
        self._outbox.close()

    def _open_pipes(self, session: int) -> None:
        directory = session_dir(self._run_dir, session)
        self._outbox = Sender(ipc_address(directory, SCHEDULER_INBOX), bind=False)
        self._inbox: Receiver[SchedulerToFrontend] = Receiver(
            ipc_address(directory, frontend_inbox(self.index)), SCHEDULER_TO_FRONTEND, bind=True
        )

    def _check_scheduler(self) -> None:
        if self.is_stalled:
            raise EngineUnavailable(f"the scheduler has not answered for {self._stall_ns * 1e-9:g} s: try again shortly")

    async def _ask(self, question: Callable[[int], FrontendToScheduler]) -> EngineStats | TraceRecords | Story:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        self._check_scheduler()
        query_id = next(self.journal.ids)
        query = self._queries[query_id] = _Query(question(query_id), asyncio.get_running_loop().create_future())
        try:
            self._outbox.send(query.question)
            async with asyncio.timeout(self._config.pulse_timeout):
                return await query.answer
        except TimeoutError as error:
            raise EngineUnavailable(f"the scheduler did not answer within {self._config.pulse_timeout:g} s") from error
        finally:
            self._queries.pop(query_id, None)

    def _on_message(self, message: SchedulerToFrontend) -> None:
        self._heard_ns = self._clock.now_ns
        self.num_messages += 1
        self._handle(message)

    def _handle(self, message: SchedulerToFrontend) -> None:
        match message:
            case TokenBatch():
                self._on_tokens(message)
            case EngineReady():
                self._capacity = message
                if self._first_ready is not None and not self._first_ready.done():
                    self._first_ready.set_result(message)
            case EngineStats(query_id=0):
                self.stats_before, self.latest_stats = self.latest_stats, message
            case EngineStats() | TraceRecords() | Story():
                query = self._queries.pop(message.query_id, None)
                if query is not None and not query.answer.done():
                    query.answer.set_result(message)

    def _on_tokens(self, batch: TokenBatch) -> None:
        came_ns = now_ns()
        self._answered[self._num_answered % _ANSWERED_CAPACITY] = batch.worker, batch.step_id, came_ns
        self._num_answered += 1
        self.journal.take(batch, came_ns)

    def _say(self, message: FrontendToScheduler) -> None:
        self._outbox.send(message)  # that of the session

    def _note_end(self) -> None:
        if self._refusal is not None:
            self._emptied.set()
