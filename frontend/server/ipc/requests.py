"""The requests of one connection: taken in a little at a time, delivered as they come, aborted when nobody wants them."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace

import msgspec

from frontend.errors import InvalidRequest
from frontend.server.access import log_visit
from frontend.server.generation import TextEngine, TextGeneration
from frontend.server.ipc.calls import CallsInMaking
from frontend.server.ipc.refusals import lost, refused
from frontend.server.ipc.resumption import NOTHING, Remainder, outputs
from frontend.server.text.tools.calling import Calling
from frontend.server.visit import Visit, begin, new_name
from frontend.wire import (
    WHOLE_CONNECTION,
    Accepted,
    Conversation,
    Delta,
    Logprob,
    PromptScored,
    Refused,
    ResumedOutput,
    ServerMessage,
    Submit,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from protocol.clock import now
from protocol.codec import pack_float32, pack_int32, unpack_int32
from protocol.errors import EngineError

_MOST_REQUESTS = 20_000  # accepted or waiting to be: above what the engine itself takes
_MOST_WAITING = 1 << 20  # bytes of prompts that wait to be tokenized, and …
_LEAST = 100  # … of any of them
_ANSWERED, _REFUSED = 200, 400  # in the log, as over HTTP
_SECONDS_AT_A_STRETCH = 0.001  # of work for one client, before others get their turn


class Requests:
    """Turns each Submit into generations, and these into Deltas."""

    def __init__(self, engine: TextEngine, say: Callable[[ServerMessage], None], on_room: Callable[[], None]) -> None:
        """`say` sends a message to the client; `on_room` is called when `has_room` becomes true."""
        self._engine = engine
        self._say = say
        self._last_id = WHOLE_CONNECTION
        self._line = engine.router.new_line()
        self._on_room = on_room
        self._intake: deque[Submit] = deque()
        self._waiting = 0  # bytes of these
        self._taking_in = False
        self._running: dict[int, list[TextGeneration]] = {}  # empty: not yet submitted
        self._visits: dict[int, Visit] = {}  # of those that were taken in
        self._tasks: set[asyncio.Task[None]] = set()
        self.may_say = asyncio.Event()  # cleared while the client does not keep up: deltas then merge in the router
        self.may_say.set()

    @property
    def has_room(self) -> bool:
        """For more to be submitted."""
        return self._waiting < _MOST_WAITING

    def submit(self, submit: Submit) -> None:
        """Takes a request in, or refuses it."""
        request_id = submit.request_id
        if request_id <= self._last_id:
            self._say(Refused(request_id, "malformed", f"request ids must rise: {request_id} came after {self._last_id}"))
            return
        self._last_id = request_id
        if len(self._running) >= _MOST_REQUESTS:
            text = f"{_MOST_REQUESTS} requests of this connection are under way: try again later"
            self._say(Refused(request_id, "overloaded", text, retry_after=1.0))
            return
        self._running[request_id] = []
        self._intake.append(submit)
        self._waiting += _weight(submit)
        if not self._taking_in:
            self._taking_in = True
            self.start(WHOLE_CONNECTION, self._take_in())

    def cancel(self, request_id: int) -> None:
        """Aborts a request. Without effect on one that has ended."""
        for generation in self._running.pop(request_id, ()):
            generation.cancel()
        self._end(request_id, None)

    def cancel_all(self) -> list[int]:
        """Aborts everything, and returns what that was."""
        request_ids = list(self._running)
        for request_id in request_ids:
            self.cancel(request_id)
        self.may_say.set()
        return request_ids

    def abandon(self) -> None:
        """The client has left: aborts everything, a little at a time."""
        for submit in self._intake:
            self._running.pop(submit.request_id, None)
        self._intake.clear()
        self._waiting = 0
        self.may_say.set()
        self.start(WHOLE_CONNECTION, self._cancel_in_turns())

    async def _cancel_in_turns(self) -> None:
        began = now()
        for request_id in list(self._running):
            self.cancel(request_id)
            if now() - began > _SECONDS_AT_A_STRETCH:
                await asyncio.sleep(0)
                began = now()

    async def wait(self) -> None:
        """Returns when everything has ended and was said."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def start(self, request_id: int, work: Coroutine[None, None, None]) -> None:
        """Runs `work` for a request; if it fails, the request does."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._fail(request_id, error)

        task.add_done_callback(done)

    async def _take_in(self) -> None:
        """Tokenizes and submits what waits, in order."""
        try:
            began = now()
            while self._intake:
                submit = self._intake.popleft()
                had_room = self.has_room
                self._waiting -= _weight(submit)
                if not had_room and self.has_room:
                    asyncio.get_running_loop().call_soon(self._on_room)
                try:
                    if submit.request_id not in self._running:  # cancelled meanwhile
                        continue
                    if not _has_grammar(submit):
                        await self._submit(submit)
                    else:  # what comes behind it need not wait while its grammar is checked
                        self.start(submit.request_id, self._submit(submit))
                except Exception as error:  # noqa: BLE001 - whatever it is concerns one request, and those behind it go on
                    self._fail(submit.request_id, error)
                if now() - began > _SECONDS_AT_A_STRETCH:
                    await asyncio.sleep(0)
                    began = now()
        finally:
            self._taking_in = False

    async def _submit(self, submit: Submit) -> None:
        request_id, params = submit.request_id, submit.params
        generations: list[TextGeneration] = []
        started: list[tuple[int, ResumedOutput, TextGeneration]] = []
        resumed = submit.resumed
        if resumed is not None and resumed.seed is not None and params.seed is None:
            params = msgspec.structs.replace(params, seed=resumed.seed)
        what = "stream" if submit.stream else "generate"
        begin(self._visits.setdefault(request_id, Visit(new_name(), "unix", what, line=self._line)))
        try:
            asked, calling = submit.prompt, None
            if isinstance(asked, Conversation):
                calling = Calling.of(asked)
                asked = asked if calling is not None else msgspec.structs.replace(asked, tools=())
            (prompt,) = await self._engine.encode([asked], params)
            if resumed is not None and resumed.prompt_i32:  # what a template says may have changed since: the date, for one
                prompt = replace(prompt, token_ids=unpack_int32(resumed.prompt_i32))
            reading = self._engine.dialect.reading(calling, prompt.tail) if isinstance(asked, Conversation) else None
            params = await self._engine.follow(params, reading)
            if request_id not in self._running:  # cancelled while a long text was tokenized
                return
            if submit.stream and params.prompt_logprobs is not None:
                raise InvalidRequest("prompt_logprobs come with whole answers, not with streams", "prompt_logprobs")
            (request,) = self._engine.prepare([prompt], params, reading)  # checks `n` before anything is made `n` times
            for index, came in outputs(submit):
                known = unpack_int32(came.token_ids_i32) if submit.stream and came.token_ids_i32 else None
                generation = self._engine.start(
                    request, index=index, stream=submit.stream, cache_salt=submit.cache_salt, known=known
                )
                generations.append(generation)
                started.append((index, came, generation))
        except EngineError as error:
            for generation in generations:
                generation.cancel()
            if self._running.pop(request_id, None) is not None:
                self._say(refused(request_id, error))
            self._end(request_id, _REFUSED)
            return
        changed = request.max_tokens_clipped is not None or params.truncate_prompt_tokens is not None
        drawn = None if params.seed is not None else request.params.seed
        told = not isinstance(submit.prompt, TokenPrompt) or changed
        if told or drawn is not None:
            prompt_i32 = pack_int32(prompt.token_ids) if told else b""
            self._say(Accepted(request_id, prompt_i32, request.max_tokens_clipped, drawn))
        self._running[request_id] = generations
        for index, came, generation in started:
            self.start(request_id, self._deliver(submit, index, came, generation))

    async def _deliver(self, submit: Submit, index: int, came: ResumedOutput, generation: TextGeneration) -> None:
        """Says one output as it comes, or once it is complete. `came`: what the client has of it."""
        request_id, stream = submit.request_id, submit.stream
        missing = Remainder(came) if stream and came is not NOTHING else None
        texts: list[str] = []
        token_ids: list[int] = []
        logprobs: list[Logprob] = []
        thoughts: list[str] = []
        calls: list[ToolCall] = []
        making = CallsInMaking()
        scores = generation.prompt_logprobs if index == 0 else None
        async for delta in generation:
            if scores is not None and scores.complete:
                found = pack_float32(scores.logprobs), pack_int32(scores.ranks)
                self._say(PromptScored(request_id, scores.candidates, *found))
                scores = None
            if delta.events is None:
                texts.append(delta.text)
            else:
                piece = making.take(delta.events)
                texts.append(piece.text)
                thoughts.append(piece.reasoning)
                calls += piece.calls
            token_ids += delta.token_ids
            logprobs += [Logprob(one.token_id, one.logprob, one.rank, one.top) for one in delta.logprobs]
            end = delta.finish_reason
            if end is None and not stream:
                continue
            text, reasoning, tool_calls = "".join(texts), "".join(thoughts), tuple(calls)
            if missing is not None:
                token_ids = missing.tokens(token_ids)
                text, reasoning, tool_calls = missing.of(text, reasoning, tool_calls)
            self._say(
                Delta(
                    request_id,
                    index,
                    text,
                    token_ids,
                    end,
                    delta.stop_reason,
                    generation.num_cached_tokens,
                    tuple(logprobs),
                    delta.message,
                    reasoning,
                    tool_calls,
                )
            )
            texts, token_ids, logprobs, thoughts, calls = [], [], [], [], []
            if not self.may_say.is_set():
                await self.may_say.wait()
        running = self._running.get(request_id)
        if running is not None:
            running.remove(generation)
            if not running:
                del self._running[request_id]
                self._end(request_id, _ANSWERED)

    def _end(self, request_id: int, status: int | None) -> None:
        if (visit := self._visits.pop(request_id, None)) is not None:
            log_visit(visit, status)
            if self._engine.spans is not None:
                self._engine.spans.record(visit, status)

    def _fail(self, request_id: int, error: BaseException) -> None:
        self.cancel(request_id)
        self._say(lost(request_id, error))


def _has_grammar(submit: Submit) -> bool:
    """Whether outputs may have to follow one: it was asked for, or follows from the tools."""
    return submit.params.structured is not None or (isinstance(submit.prompt, Conversation) and bool(submit.prompt.tools))


def _weight(submit: Submit) -> int:
    """About as many bytes as it holds."""
    match submit.prompt:
        case TokenPrompt(token_ids_i32):
            return _LEAST + len(token_ids_i32)
        case TextPrompt(text):
            return _LEAST + len(text)
        case Conversation(turns):
            contents = (turn.content or "" for turn in turns)
            return _LEAST + sum(_LEAST + (len(one) if isinstance(one, str) else sum(map(len, one))) for one in contents)
