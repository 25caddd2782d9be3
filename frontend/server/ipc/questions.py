"""The questions of one connection: a few at a time, answered one after the other while the client reads."""

import asyncio
from collections import deque
from collections.abc import Callable

from frontend.server.ipc.refusals import refused
from frontend.server.ipc.reports import Reports
from frontend.wire import Ask, Detokenize, HealthReport, Refused, ServerMessage, TextPrompt, Tokenize, TokenPrompt

_MOST_QUESTIONS = 64  # that wait: more than a program asks at a time. An answer may be a megabyte


_MOST_BYTES = 4 << 20  # of texts and token ids that wait, beyond the first: as much as a long context holds

Question = Ask | Tokenize | Detokenize


class Questions:
    """Takes questions, and says their answers."""

    def __init__(self, reports: Reports, say: Callable[[ServerMessage], None], may_say: asyncio.Event) -> None:
        """`may_say` is cleared while the client does not keep up."""
        self._reports = reports
        self._say = say
        self._may_say = may_say
        self._waiting: deque[Question] = deque()
        self._answering: asyncio.Task[None] | None = None

    def ask(self, ask: Question) -> None:
        """Takes a question, or refuses it."""
        if isinstance(ask, Ask) and ask.what == "health":  # is known
            self._say(HealthReport(ask.request_id, self._reports.health()))
        elif len(self._waiting) >= _MOST_QUESTIONS or (self._waiting and sum(map(_size, self._waiting)) > _MOST_BYTES):
            text = f"{len(self._waiting)} questions of this connection are unanswered: try again later"
            self._say(Refused(ask.request_id, "overloaded", text, retry_after=1.0))
        else:
            self._waiting.append(ask)
            if self._answering is None:
                self._answering = asyncio.get_running_loop().create_task(self._answer())

    def close(self) -> list[int]:
        """Answers nothing more, and returns what was not answered."""
        if self._answering is not None:
            self._answering.cancel()
        left = [ask.request_id for ask in self._waiting]
        self._waiting.clear()
        return left

    async def _answer(self) -> None:
        while self._waiting:
            await self._may_say.wait()
            ask = self._waiting[0]
            answer: ServerMessage
            try:
                answer = await self._reports.answer(ask)
            except Exception as error:  # noqa: BLE001 - whatever it is concerns one question, and those behind it go on
                answer = refused(ask.request_id, error)
            self._waiting.popleft()
            self._say(answer)
            await asyncio.sleep(0)  # it is written then, and shows whether the client reads
        self._answering = None


def _size(question: Question) -> int:
    """About as many bytes as it holds."""
    match question:
        case Tokenize(_, TextPrompt(text)):
            return len(text)
        case Tokenize(_, TokenPrompt(packed)) | Detokenize(_, packed):
            return len(packed)
        case Tokenize():
            return _MOST_BYTES // 4  # a conversation: not many of them
        case Ask():
            return 0
