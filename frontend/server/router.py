"""Moves token ids between the frontend's interfaces and the scheduler: numbers requests, hands each one its tokens."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from frontend.errors import EngineUnavailable, Overloaded, ShuttingDown
from frontend.server.measures import Measures, Snapshot, Timeline
from frontend.server.measures_board import MeasuresBoard
from frontend.server.prompt_scores import PromptLogprobs
from frontend.server.token_stream import Generation
from frontend.server.visit import current
from protocol.channel import Receiver, Sender
from protocol.clock import ChargedClock, now_ns
from protocol.codec import Int32Array, Int64Array, pack_int32, unpack_int32, unpack_uint64
from protocol.config import EngineConfig
from protocol.endpoints import SCHEDULER_INBOX, frontend_inbox, ipc_address, session_dir
from protocol.errors import EngineError
from protocol.messages import (
    SCHEDULER_TO_FRONTEND,
    AbortRequest,
    AddRequest,
    EngineReady,
    EngineStats,
    Finished,
    FinishReason,
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
from protocol.request_ids import request_ids

_LOG = logging.getLogger(__name__)

_MOST_REQUESTS = 16_384  # accepted and not ended, of all frontends: bounds the memory that clients can make the engine hold
_MOST_TOKENS = 1 << 26  # of their prompts together: four bytes each, in the pipe and in the scheduler
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
        self._ids = request_ids(index, epoch)
        self._generations: dict[int, Generation] = {}
        self._num_tokens = 0  # of their prompts
        self._queries: dict[int, _Query] = {}
        self._capacity: EngineReady | None = None
        self._first_ready: asyncio.Future[EngineReady] | None = None
        self._answered = np.zeros((_ANSWERED_CAPACITY, 3), np.int64)
        self._num_answered = 0
        self.num_messages = 0  # from the scheduler
        self.num_resumed = 0  # requests that another scheduler was told of again
        self.num_repeated = 0  # tokens that came a second time, or behind others that are missing: dropped
        self.measures = Measures()
        self._board = MeasuresBoard(run_dir, index, config.frontends)
        self.latest_stats = EngineStats(0, 0, (), {})  # as the scheduler said last by itself, at its pulse
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
        for generation in self._generations.values():
            self._outbox.send(generation.resume())
        self.num_resumed += len(self._generations)
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
        self._board.publish(self.measures, self.num_requests)

    @property
    def is_stalled(self) -> bool:
        """Whether the scheduler has been silent for so long that it cannot be counted on."""
        return self._clock.now_ns - self._heard_ns > self._stall_ns

    @property
    def num_requests(self) -> int:
        """Requests accepted and not ended."""
        return len(self._generations)

    @property
    def is_full(self) -> bool:
        """Whether as many requests are under way as may be."""
        return len(self._generations) >= _MOST_REQUESTS // self._config.frontends

    @property
    def malformed_frames(self) -> int:
        """Frames from the scheduler's side that did not decode."""
        return self._inbox.malformed

    def measured(self) -> dict[int, Snapshot]:
        """What all frontends of the engine have measured, by their numbers."""
        return self._board.all(self.measures, self.num_requests)

    def submit(
        self,
        token_ids: Int32Array,
        params: EngineParams,
        *,
        priority: int = 0,
        stream: bool = True,
        cache_salt: str = "",
        scores: PromptLogprobs | None = None,
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
        if self._generations and self._num_tokens + len(token_ids) > most:
            raise Overloaded(f"requests with {most} tokens of prompts together are under way: try again later")
        visit = current()
        request = AddRequest(
            request_id=next(self._ids),
            token_ids_i32=pack_int32(token_ids),
            num_prompt_tokens=len(token_ids),
            params=params,
            priority=priority,
            stream=stream,
            cache_salt=cache_salt,
            name=visit.name if visit is not None else "",
        )
        timeline = Timeline(len(token_ids), params.max_tokens, now_ns())
        generation = Generation(self, request, timeline, scores, () if known is None else known.tolist())
        if visit is not None:
            visit.outputs.append(generation.timeline)
            visit.model = visit.model or self._config.served_model_names[0]
        self._outbox.send(request if known is None else generation.resume())
        self._generations[generation.request_id] = generation
        self._num_tokens += len(token_ids)
        return generation

    def abort(self, generation: Generation, reason: FinishReason = "abort") -> None:
        """Forgets a request and tells the scheduler; late tokens are dropped. `reason`: why, in measures."""
        if self._generations.pop(generation.request_id, None) is not None:
            self._num_tokens -= generation.timeline.num_prompt_tokens
            self.measures.request_ended(generation.count(), reason, now_ns())
            self._outbox.send(AbortRequest(generation.request_id))
            self._note_end()

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
        self.measures = Measures()

    async def stats(self) -> EngineStats:
        """The scheduler's statistics. Raises EngineUnavailable when it does not answer, and what `fail_all` was given."""
        answer = await self._ask(GetStats)
        assert isinstance(answer, EngineStats)
        return answer

    async def trace(self) -> TraceRecords:
        """The steps that the scheduler's ring buffer holds. Raises what `stats` raises."""
        answer = await self._ask(GetTrace)
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
        if self._generations:
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
        for generation in list(self._generations.values()):
            generation.fail(error)
            self.abort(generation, "error")
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
        query_id = next(self._ids)
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
                self.latest_stats = message
            case EngineStats() | TraceRecords() | Story():
                query = self._queries.pop(message.query_id, None)
                if query is not None and not query.answer.done():
                    query.answer.set_result(message)

    def _on_tokens(self, batch: TokenBatch) -> None:
        came_ns = now_ns()
        self._answered[self._num_answered % _ANSWERED_CAPACITY] = batch.worker, batch.step_id, came_ns
        self._num_answered += 1
        woken = []
        generations, logprobs = self._generations, batch.logprobs
        for request_id, count in batch.num_cached_tokens.items():
            if (generation := generations.get(request_id)) is not None and not generation.resumed:
                generation.num_cached_tokens = count
                generation.timeline.queue_ns = batch.queue_ns.get(request_id, 0)
        waited: dict[int, int] = {}  # when a token before came in -> how many tokens of this batch follow one of that time
        for request_id, scores in batch.prompt_scores.items():
            if (generation := generations.get(request_id)) is not None and generation.scores is not None:
                generation.scores.add(scores)
        request_ids, token_ids = unpack_uint64(batch.request_ids_u64).tolist(), unpack_int32(batch.token_ids_i32).tolist()
        lengths = unpack_int32(batch.lengths_i32).tolist()
        for request_id, token_id, length in zip(request_ids, token_ids, lengths, strict=True):
            generation = generations.get(request_id)
            if generation is not None:
                if length != generation.length + 1:
                    self._on_misplaced(generation, length)
                    continue
                generation.lacks_tokens = False
                generation.push(token_id, logprobs.get(request_id) if logprobs else None)
                woken.append(generation)
                timeline = generation.timeline
                if previous := timeline.last_ns:
                    waited[previous] = waited.get(previous, 0) + 1
                else:
                    self.measures.first_came(timeline, came_ns)
                timeline.last_ns = came_ns
        self.measures.others_came(waited, came_ns)
        for finished in batch.finished:
            generation = generations.get(finished.request_id)
            if generation is not None and not generation.lacks_tokens:
                del generations[finished.request_id]
                self._num_tokens -= generation.timeline.num_prompt_tokens
                generation.finish(finished)
                self._measure(generation.count(), finished, came_ns)
                woken.append(generation)
        for generation in woken:
            generation.wake()
        self._note_end()

    def _on_misplaced(self, generation: Generation, length: int) -> None:
        """A token came that is not the next. One that came before is dropped; behind a gap, the request is told again, once."""
        self.num_repeated += 1
        if length > generation.length and not generation.lacks_tokens:
            _LOG.error("tokens of request %d were lost on the way here: they are computed again", generation.request_id)
            generation.lacks_tokens = True
            self._outbox.send(AbortRequest(generation.request_id))
            self._outbox.send(generation.resume())

    def _measure(self, timeline: Timeline, finished: Finished, now_ns: int) -> None:
        if not timeline.first_ns:
            timeline.queue_ns = finished.queue_ns
        if timeline.num_tokens and not timeline.first_ns:
            self.measures.all_came(timeline, finished.prefill_ns, now_ns)
        self.measures.request_ended(timeline, finished.reason, now_ns)

    def _note_end(self) -> None:
        if self._refusal is not None and not self._generations:
            self._emptied.set()
