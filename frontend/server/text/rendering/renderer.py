"""Renders conversations in processes of their own: a template that goes on for ever, or takes all memory, harms itself alone.

One process answers all, one conversation at a time, and another stands by: when the first is busy for long, the next conversations
go there, and a third is started. So what a template does with one message holds up nobody else.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from frontend.errors import EngineUnavailable, InvalidRequest
from frontend.server.http.occasional import OccasionalLog
from frontend.server.text.fences import Messages
from frontend.server.text.rendering.messages import Answer, Load, Loaded, OutOfMemory, Refused, Render, Rendered, frame
from frontend.server.text.rendering.process import ProcessEnded, TemplateProcess
from protocol.errors import ModelError

_LOG = logging.getLogger(__name__)
_TRIAL: Messages = [{"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class RenderLimits:
    """What templates may take."""

    processor_seconds: float = 2.0  # for one conversation, and for being compiled
    seconds: float = 60.0  # the same by the clock, on a host that is busy with other things
    memory: int = 256 << 20  # bytes of each process, beside the 30 MiB or so of the interpreter
    processes: int = 4
    standing_by: int = 2  # of these, with nothing to do: one for the next conversation, one for those behind it
    patience: float = 0.02  # seconds for which all may be busy before another is started


def render_job(messages: Messages, **options: Any) -> bytes:
    """A conversation as `Renderer.render` takes it. `options`: what `ChatTemplate.render` takes besides, JSON's values all.

    Raises InvalidRequest on texts with lone surrogates.
    """
    try:
        return frame(Render(messages, options))
    except UnicodeEncodeError as error:
        raise InvalidRequest("the messages hold lone surrogates, which no encoding of Unicode allows", "messages") from error


class Renderer:
    """Renders with one template, from `start` to `close`. `fault` says why conversations are refused; empty: they are not."""

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], limits: RenderLimits | None = None) -> None:
        """`source=None`: the model has no template, and each `render` says so."""
        self.limits = limits or RenderLimits()
        self.fault = "this model has no chat template: use completions with a prompt" if source is None else ""
        self.takes_tools = False  # whether the template tells the model of tools, once it has started
        self._load = frame(Load(source or "", dict(special_tokens), self.limits.processor_seconds, self.limits.memory))
        self._kills = OccasionalLog(_LOG, logging.WARNING)
        self._processes: set[TemplateProcess] = set()
        self._idle: list[TemplateProcess] = []  # the last one that was busy is the next one to be
        self._starting: asyncio.Task[None] | None = None
        self._growth: asyncio.TimerHandle | None = None
        self._waiting: deque[asyncio.Future[TemplateProcess]] = deque()
        self._closed = False
        self._emptied = asyncio.Event()

    async def start(self) -> None:
        """Compiles the template and tries it. If it does not end, that is said, and conversations are refused for that reason.

        Raises ModelError when it does not compile.
        """
        if self.fault:
            return
        try:
            process = await self._new_process()
            answer = await process.ask(render_job(_TRIAL), self.limits.seconds)
        except ProcessEnded:
            answer = OutOfMemory()
        if isinstance(answer, OutOfMemory):
            self.fault = (
                f"this model's chat template {self._exceeds} with a conversation of one word: it is not used, completions are"
            )
            _LOG.warning("%s", self.fault)
            self._kill_all()
            return
        self._release(process)  # a refusal is as good: what the template wants of a conversation is its own matter
        while (missing := self.limits.standing_by - len(self._processes)) > 0:
            self._start_another()
            if self._starting is not None:
                await asyncio.wait({self._starting})
            if self.limits.standing_by - len(self._processes) == missing:  # it could not be started: later, when it is asked for
                break

    async def render(self, job: bytes) -> str:
        """The prompt's text. Raises InvalidRequest when the template refuses the conversation or does not end on it.

        Raises EngineUnavailable when there is no process to run it.
        """
        if self.fault:
            raise InvalidRequest(self.fault, "messages")
        answer = await self._ask(job)
        match answer:
            case Rendered(text):
                return text
            case Refused(message, param, code):
                raise InvalidRequest(message, param, code)
            case OutOfMemory():
                text = f"the model's chat template {self._exceeds} with this conversation"
                self._kills.say(text)
                raise InvalidRequest(text, "messages")
        raise RuntimeError("a chat template could not be run")  # its process has said why

    async def close(self) -> None:
        """Ends all processes; what is under way fails."""
        self._closed = True
        if self._growth is not None:
            self._growth.cancel()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        self._kill_all()
        while self._processes:
            self._emptied.clear()
            await self._emptied.wait()
        self._fail_waiting()

    @property
    def _exceeds(self) -> str:
        limits = self.limits
        return f"takes more than {limits.processor_seconds:g} s of the processor, or {limits.memory >> 20} MiB of memory,"

    async def _ask(self, job: bytes) -> Answer:
        for _ in range(2):  # what ends a process from outside is nobody's fault here
            process = await self._acquire()
            asked = process.ask(job, self.limits.seconds)
            asked.add_done_callback(partial(self._answered, process))  # whether the client still waits or not
            try:
                return await asyncio.shield(asked)
            except ProcessEnded as error:
                if error.at_limit:
                    return OutOfMemory()
        raise EngineUnavailable("the process that renders chat templates was ended from outside")

    # the processes

    async def _acquire(self) -> TemplateProcess:
        """One with nothing to do, in the order of the askers. Raises EngineUnavailable when there can be none."""
        self._stand_by()
        while self._idle and not self._waiting:
            if (process := self._idle.pop()).alive:
                return process
        turn: asyncio.Future[TemplateProcess] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._grow_soon()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())
            raise

    def _answered(self, process: TemplateProcess, _: "asyncio.Future[Answer]") -> None:
        self._release(process)

    def _release(self, process: TemplateProcess) -> None:
        """To the one who waits longest."""
        if not process.alive or self._closed:
            return
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(process)
                return
        if len(self._idle) < self.limits.standing_by:
            self._idle.append(process)
        else:
            process.kill()

    def _grow_soon(self) -> None:
        if self._growth is None and not self._closed:
            patience = self.limits.patience if self._processes else 0.0
            self._growth = asyncio.get_running_loop().call_later(patience, self._grow)

    def _grow(self) -> None:
        self._growth = None
        if self._waiting and len(self._processes) < self.limits.processes:
            self._start_another()

    def _stand_by(self) -> None:
        if len(self._processes) < self.limits.standing_by:
            self._start_another()

    def _start_another(self) -> None:
        if self._starting is None and not self._closed:
            self._starting = asyncio.get_running_loop().create_task(self._start())

    async def _start(self) -> None:
        try:
            self._release(await self._new_process())
            asyncio.get_running_loop().call_soon(self._stand_by)
        except (OSError, ProcessEnded, ModelError) as error:
            self._kills.say(f"no process could be started to render chat templates: {error}")
            if not self._processes:
                self._fail_waiting()
        finally:
            self._starting = None
            if self._waiting:
                self._grow_soon()

    async def _new_process(self) -> TemplateProcess:
        """With the template loaded. Raises ModelError when it does not compile, ProcessEnded when that does not end, OSError."""
        process = TemplateProcess(self._ended)
        self._processes.add(process)
        try:
            await process.connect()
            answer = await process.ask(self._load, self.limits.seconds)
        except BaseException:
            process.kill()
            raise
        if isinstance(answer, Loaded) and not answer.error:
            self.takes_tools = answer.takes_tools
            return process
        process.kill()
        if isinstance(answer, Loaded):
            raise ModelError(answer.error)
        raise ProcessEnded(at_limit=True)

    def _ended(self, process: TemplateProcess) -> None:
        self._processes.discard(process)
        if not self._processes:
            self._emptied.set()
        if process in self._idle:
            self._idle.remove(process)
        if process.served and not self.fault:  # else what ended it would end the next one too: who asks has it tried again
            self._stand_by()

    def _fail_waiting(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(EngineUnavailable("no process can be started to render the chat template: try again later"))

    def _kill_all(self) -> None:
        self._idle.clear()
        for process in self._processes:
            process.kill()
