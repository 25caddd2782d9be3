"""The embeddings that one connection asks for: one message after the other, each of many prompts, which run side by side."""

import asyncio
from collections.abc import Callable

from frontend.errors import InvalidRequest
from frontend.server.access import log_visit
from frontend.server.embeddings import Wanted, embed
from frontend.server.generation import TextEngine
from frontend.server.ipc.refusals import refused
from frontend.server.visit import Visit, begin, new_name
from frontend.wire import Embed, Embedded, Refused, ServerMessage
from protocol.codec import pack_float32

_MOST_WAITING = 16  # messages: a client has two under way, so that the engine need not wait for the second
_ANSWERED, _REFUSED, _FAILED = 200, 400, 500  # in the log, as over HTTP


class Embeds:
    """Takes them in, and says their answers."""

    def __init__(self, engine: TextEngine, say: Callable[[ServerMessage], None], may_say: asyncio.Event) -> None:
        """`may_say` is cleared while the client does not keep up."""
        self._engine = engine
        self._say = say
        self._may_say = may_say
        self._line = engine.router.new_line()
        self._turn = asyncio.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def embed(self, message: Embed) -> None:
        """Takes a message in, or refuses it."""
        if message.request_id in self._tasks:
            self._say(Refused(message.request_id, "malformed", f"request {message.request_id} is under way"))
        elif len(self._tasks) >= _MOST_WAITING:
            text = f"{len(self._tasks)} lists of prompts of this connection wait: try again later"
            self._say(Refused(message.request_id, "overloaded", text, retry_after=1.0))
        else:
            self._tasks[message.request_id] = asyncio.get_running_loop().create_task(self._answer(message))

    def cancel(self, request_id: int) -> None:
        """Aborts it. Without effect on one that has ended."""
        if (task := self._tasks.pop(request_id, None)) is not None:
            task.cancel()

    def cancel_all(self) -> list[int]:
        """Aborts everything, and returns what that was."""
        request_ids = list(self._tasks)
        for request_id in request_ids:
            self.cancel(request_id)
        return request_ids

    async def wait(self) -> None:
        """Returns when everything has ended and was said."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def _answer(self, message: Embed) -> None:
        visit, status = Visit(new_name(), "unix", "embed", line=self._line), None
        begin(visit)
        answer: ServerMessage
        try:
            async with self._turn:
                await self._may_say.wait()
                found = await embed(self._engine, message.prompts, _wanted(message))
            answer, status = Embedded(message.request_id, pack_float32(found.vectors), found.vectors.shape[1]), _ANSWERED
        except Exception as error:  # noqa: BLE001 - whatever it is concerns this message alone, and its client is told
            answer, status = refused(message.request_id, error), _REFUSED if isinstance(error, InvalidRequest) else _FAILED
        finally:
            log_visit(visit, status)
            if self._engine.spans is not None:
                self._engine.spans.record(visit, status)
        self._say(answer)
        self._tasks.pop(message.request_id, None)


def _wanted(message: Embed) -> Wanted:
    return Wanted(
        dimensions=message.dimensions,
        truncate=message.truncate_prompt_tokens,
        priority=message.priority,
        cache_salt=message.cache_salt,
        field="prompts",
    )
