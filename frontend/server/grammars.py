"""Asks the grammar process whether grammars can be followed, before their requests are accepted."""

import asyncio
from collections import OrderedDict

from frontend.errors import EngineUnavailable, InvalidRequest, Overloaded
from protocol.channel import Receiver, Sender
from protocol.config import EngineConfig
from protocol.endpoints import GRAMMAR_QUESTIONS, grammar_answers, ipc_address
from protocol.grammar_messages import GRAMMAR_TO_FRONTEND, CheckGrammar, GrammarChecked, GrammarToFrontend
from protocol.params import Grammar
from protocol.request_ids import request_ids

_ANSWER_SECONDS = 2.5  # it takes two at most, unless many wait before it, and …
_TIMES = 12  # … a new process is there after three
_REMEMBERED_CHARACTERS = 4 << 20  # of grammars that can be followed

INVALID_GRAMMAR = "invalid_grammar"  # the code of InvalidRequest
_FIELD = "structured_outputs"  # what the field is called where its sender has no other name for it


class Grammars:
    """One frontend's questions. Runs on the event loop."""

    def __init__(
        self, config: EngineConfig, run_dir: str, *, index: int = 0, epoch: int = 0, patience: float = _ANSWER_SECONDS
    ) -> None:
        """`index`, `epoch`: of the frontend. `patience`: seconds after which a question is asked again."""
        self._patience = patience
        self._outbox = Sender(ipc_address(run_dir, GRAMMAR_QUESTIONS), bind=False)
        self._inbox: Receiver[GrammarToFrontend] = Receiver(
            ipc_address(run_dir, grammar_answers(index)), GRAMMAR_TO_FRONTEND, bind=True
        )
        self._ids = request_ids(index, epoch)
        self._questions: dict[int, asyncio.Future[GrammarChecked]] = {}
        self._good: OrderedDict[tuple[str, str], None] = OrderedDict()  # the oldest first
        self._good_characters = 0

    def start(self) -> None:
        """Hears answers from now on."""
        self._inbox.watch(asyncio.get_running_loop(), self._on_answer)

    def close(self) -> None:
        """Closes the pipes."""
        self._inbox.unwatch(asyncio.get_running_loop())
        self._inbox.close()
        self._outbox.close()

    async def check(self, grammar: Grammar) -> None:
        """Returns when it can be followed.

        Raises InvalidRequest saying why not, Overloaded when there was no time to find out, EngineUnavailable without an answer.
        """
        key = grammar.kind, grammar.text
        if key in self._good:
            self._good.move_to_end(key)
            return
        query_id = next(self._ids)
        future: asyncio.Future[GrammarChecked] = asyncio.get_running_loop().create_future()
        self._questions[query_id] = future
        try:
            answer = await self._ask(CheckGrammar(query_id, Grammar(*key)), future)
        finally:
            self._questions.pop(query_id, None)
        if answer.busy:
            raise Overloaded(answer.error)
        if answer.error:
            raise InvalidRequest(f"{_KINDS[grammar.kind]}: {answer.error}", _FIELD, INVALID_GRAMMAR)
        self._good[key] = None
        self._good_characters += len(grammar.text)
        while self._good_characters > _REMEMBERED_CHARACTERS:
            (_, text), _ = self._good.popitem(last=False)
            self._good_characters -= len(text)

    async def _ask(self, question: CheckGrammar, future: asyncio.Future[GrammarChecked]) -> GrammarChecked:
        """Asks again while there is no answer: a process that ended took with it what it had read."""
        for _ in range(_TIMES):
            self._outbox.send(question)
            await asyncio.wait([future], timeout=self._patience)
            if future.done():
                return future.result()
        raise EngineUnavailable("structured output is not available right now: try again shortly")

    def has_passed(self, grammar: Grammar) -> bool:
        """Whether it was checked, and can be followed."""
        return (grammar.kind, grammar.text) in self._good

    def _on_answer(self, answer: GrammarToFrontend) -> None:
        future = self._questions.get(answer.query_id)
        if future is not None and not future.done():
            future.set_result(answer)


_KINDS = {
    "json_object": "JSON object",
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "choices",
    "lark": "Lark grammar",
    "gbnf": "GBNF grammar",
    "structural_tag": "structural tag",
}
