"""One Python client: its requests come in as frames, its deltas go out, all of a loop tick in one write."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Protocol, cast

import msgspec

from frontend.errors import EngineRecovering, EngineUnavailable, InvalidRequest, Overloaded
from frontend.generation import TextEngine, TextGeneration
from frontend.ipc.prompts import prompt_token_ids
from frontend.wire import (
    CLIENT_MESSAGES,
    WHOLE_CONNECTION,
    WIRE_VERSION,
    Accepted,
    Ask,
    Cancel,
    ClientMessage,
    Delta,
    FrameReader,
    Health,
    HealthReport,
    Hello,
    Logprob,
    Refusal,
    Refused,
    ServerMessage,
    StatsReport,
    Submit,
    TokenPrompt,
    TraceReport,
    Welcome,
    frames,
)
from protocol.clock import now
from protocol.codec import encode, pack_int32
from protocol.errors import EngineError, ProtocolError
from protocol.messages import FinishReason

_LOG = logging.getLogger(__name__)

_MOST_REQUESTS = 20_000  # of one connection, accepted or waiting to be: a little above what the engine itself takes
_PAUSE_BYTES = 1 << 20  # unread by the client: deltas then merge in the router, where the requests' own length bounds them
_MOST_UNREAD = 1 << 26  # bytes; only refusals and reports can pile up so far, so the client asks and never reads
_INTAKE_SECONDS = 0.001  # of tokenization at a stretch, before others get their turn

_REFUSALS: tuple[tuple[type[EngineError], Refusal], ...] = (
    (InvalidRequest, "invalid"),
    (Overloaded, "overloaded"),
    (EngineRecovering, "recovering"),
    (EngineUnavailable, "unavailable"),
)


class Host(Protocol):
    """The server that a connection belongs to."""

    engine: TextEngine
    malformed_frames: int
    draining: bool
    connections: "set[Connection]"


class Connection(asyncio.Protocol):
    """asyncio's callbacks for one client. When it leaves, its requests are aborted."""

    def __init__(self, host: Host, is_welcome: Callable[[asyncio.Transport], bool]) -> None:
        self._host = host
        self._engine = host.engine
        self._is_welcome = is_welcome
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._greeted = False
        self._last_id = WHOLE_CONNECTION
        self._intake: deque[Submit] = deque()
        self._taking_in = False
        self._requests: dict[int, list[TextGeneration]] = {}  # empty: not yet submitted
        self._tasks: set[asyncio.Task[None]] = set()
        self._outgoing: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)
        if not self._is_welcome(self._transport):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(_PAUSE_BYTES)
        self._host.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            received = self._reader.feed(data)
        except ProtocolError as error:
            self._host.malformed_frames += 1
            self._hang_up("malformed", str(error))
            return
        for frame in received:
            try:
                messages = CLIENT_MESSAGES.decode(frame)
            except ProtocolError as error:
                self._host.malformed_frames += 1
                if not self._greeted:
                    self._hang_up("malformed", f"no Hello of this protocol, version {WIRE_VERSION}: {error}")
                    return
                self._say(Refused(WHOLE_CONNECTION, "malformed", str(error)))
                continue
            for message in messages:
                self._on_message(message)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The client left."""
        self._host.connections.discard(self)
        self._intake.clear()
        for request_id in list(self._requests):
            self._cancel(request_id)
        self._writable.set()
        self._lost.set()

    # for the server

    async def finish(self, *, wait_for_requests: bool) -> None:
        """Delivers what is there and hangs up. Requests that still run are lost, unless they are about to end."""
        if wait_for_requests and self._tasks:
            await asyncio.wait(self._tasks)
        for request_id in list(self._requests):
            self._cancel(request_id)
            self._say(Refused(request_id, "lost", "the engine was shut down before the answer was complete"))
        self._flush()
        self._transport.close()  # after its buffer
        await self._lost.wait()

    def abort(self) -> None:
        """Hangs up now."""
        self._transport.abort()

    # messages

    def _on_message(self, message: ClientMessage) -> None:
        if not self._greeted and not isinstance(message, Hello):
            self._hang_up("malformed", "a connection begins with Hello")
            return
        match message:
            case Submit():
                self._on_submit(message)
            case Cancel(request_id):
                self._cancel(request_id)
            case Ask():
                self._start(message.request_id, self._answer(message))
            case Hello(version):
                self._on_hello(version)

    def _on_hello(self, version: int) -> None:
        if version != WIRE_VERSION:
            text = (
                f"the client speaks version {version} of the protocol, the engine version {WIRE_VERSION}: install the same twodeep"
            )
            self._hang_up("version", text)
            return
        self._greeted = True
        capacity = self._engine.capacity
        self._say(Welcome(WIRE_VERSION, self._engine.config.served_model_names, capacity.max_model_len, capacity.vocab_size))

    def _on_submit(self, submit: Submit) -> None:
        request_id = submit.request_id
        if request_id <= self._last_id:
            self._say(Refused(request_id, "malformed", f"request ids must rise: {request_id} came after {self._last_id}"))
            return
        self._last_id = request_id
        if len(self._requests) >= _MOST_REQUESTS:
            text = f"{_MOST_REQUESTS} requests of this connection are under way: try again later"
            self._say(Refused(request_id, "overloaded", text, retry_after=1.0))
            return
        self._requests[request_id] = []
        self._intake.append(submit)
        if not self._taking_in:
            self._taking_in = True
            self._start(WHOLE_CONNECTION, self._take_in())

    async def _take_in(self) -> None:
        """Tokenizes and submits what waits, in order, a little at a time."""
        try:
            began = now()
            while self._intake:
                submit = self._intake.popleft()
                try:
                    if submit.request_id in self._requests:  # else cancelled meanwhile
                        await self._submit(submit)
                except Exception as error:  # noqa: BLE001 - whatever it is concerns one request, and those behind it go on
                    self._fail(submit.request_id, error)
                if now() - began > _INTAKE_SECONDS:
                    await asyncio.sleep(0)
                    began = now()
        finally:
            self._taking_in = False

    async def _submit(self, submit: Submit) -> None:
        request_id, params = submit.request_id, submit.params
        generations: list[TextGeneration] = []
        try:
            prompt = await prompt_token_ids(self._engine, submit.prompt)
            if request_id not in self._requests:  # cancelled while a long text was tokenized
                return
            self._engine.resolve(prompt, params)  # checks `n` before anything is made `n` times
            for index in range(params.n):
                generations.append(
                    self._engine.generate(prompt, params, stream=submit.stream, index=index, cache_salt=submit.cache_salt)
                )
        except EngineError as error:
            for generation in generations:
                generation.cancel()
            del self._requests[request_id]
            self._refuse(request_id, error)
            return
        if not isinstance(submit.prompt, TokenPrompt):
            self._say(Accepted(request_id, pack_int32(prompt)))
        self._requests[request_id] = list(generations)
        for index, generation in enumerate(generations):
            self._start(request_id, self._deliver(submit, index, generation))

    async def _deliver(self, submit: Submit, index: int, generation: TextGeneration) -> None:
        """Sends one output as it comes, or once it is complete."""
        request_id, stream = submit.request_id, submit.stream
        texts: list[str] = []
        token_ids: list[int] = []
        logprobs: list[Logprob] = []
        async for delta in generation:
            texts.append(delta.text)
            token_ids += delta.token_ids
            logprobs += [Logprob(one.token_id, one.logprob, one.rank, one.top) for one in delta.logprobs]
            end: FinishReason | None = delta.finish_reason
            if end is None and not stream:
                continue
            cached = generation.num_cached_tokens
            text = "".join(texts)
            self._say(Delta(request_id, index, text, token_ids, end, delta.stop_reason, cached, tuple(logprobs), delta.message))
            texts, token_ids, logprobs = [], [], []
            if not self._writable.is_set():
                await self._writable.wait()
        running = self._requests.get(request_id)
        if running is not None:
            running.remove(generation)
            if not running:
                del self._requests[request_id]

    def _cancel(self, request_id: int) -> None:
        for generation in self._requests.pop(request_id, ()):
            generation.cancel()

    async def _answer(self, ask: Ask) -> None:
        match ask.what:
            case "health":
                self._say(HealthReport(ask.request_id, self._health()))
            case "stats":
                stats = await self._engine.router.stats()
                own = {"malformed_client_frames": self._host.malformed_frames, "clients": len(self._host.connections)}
                self._say(StatsReport(ask.request_id, msgspec.structs.replace(stats, counters=stats.counters | own)))
            case "trace":
                records = await self._engine.router.trace()
                self._say(TraceReport(ask.request_id, records, self._engine.router.answered().tobytes()))

    def _health(self) -> Health:
        capacity, config = self._engine.capacity, self._engine.config
        whole = capacity.workers >= config.workers
        return Health(
            status="draining" if self._host.draining else "ok" if whole else "degraded" if capacity.workers else "recovering",
            workers=capacity.workers,
            workers_wanted=config.workers,
            model=config.served_model_names[0],
            device=capacity.device,
            max_model_len=capacity.max_model_len,
            queue_depth=config.queue_depth,
            requests=self._engine.router.num_requests,
        )

    # out

    def _start(self, request_id: int, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(request_id, error)

        task.add_done_callback(done)

    def _fail(self, request_id: int, error: BaseException) -> None:
        """A fault of ours: the log gets the reason, the client only learns that there is one."""
        _LOG.error("a request of a Python client failed", exc_info=error)
        self._cancel(request_id)
        self._say(Refused(request_id, "lost", "the engine failed on this request"))

    def _refuse(self, request_id: int, error: EngineError) -> None:
        kind: Refusal = next((kind for family, kind in _REFUSALS if isinstance(error, family)), "lost")
        retry_after = error.retry_after if isinstance(error, Overloaded) else 0.0
        param = error.param if isinstance(error, InvalidRequest) else None
        self._say(Refused(request_id, kind, str(error), param, retry_after))

    def _hang_up(self, kind: Refusal, text: str) -> None:
        self._say(Refused(WHOLE_CONNECTION, kind, text))
        self._flush()
        self._transport.close()

    def _say(self, message: ServerMessage) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(encode(message))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing or self._transport.is_closing():
            return
        self._transport.write(frames(outgoing))
        if self._transport.get_write_buffer_size() > _MOST_UNREAD:
            _LOG.warning("a Python client does not read its answers: disconnected")
            self._transport.abort()
