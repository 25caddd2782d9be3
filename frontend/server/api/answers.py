"""Writes the JSON of one request's answer, whole or in chunks."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from frontend.server.api import jobs
from frontend.server.api.errors import ApiError
from frontend.server.api.jobs import Output
from frontend.server.api.schemas import GenerationRequest
from frontend.server.api.sse import Answering, EventStream, unless_gone
from frontend.server.generation import TextDelta, TextGeneration, TokenLogprob
from frontend.server.prompts import off_loop
from frontend.server.visit import current_name
from protocol.messages import FinishReason

_json = msgspec.json.encode
_DONE = b"data: [DONE]\n\n"


class Answer(ABC):
    """What completions and chats share, whole and as the events of a stream; each says how it writes text and log-probabilities.

    Chunks are put together from bytes: what does not change within a request is encoded once.
    """

    def __init__(self, asked: GenerationRequest, *, id_prefix: str, kind: str, model: str) -> None:
        # The wall clock: this is for people, and nothing is computed from it.
        self._head = {"id": f"{id_prefix}-{current_name()}", "object": kind, "created": int(time.time()), "model": model}
        self._open = _json(self._head)[:-1] + b',"choices":[{"index":'
        self._n, self._num_outputs = asked.choices, asked.outputs  # of each prompt: shown, and generated
        self._token_ids = asked.return_token_ids is True
        options = asked.stream_options
        self._wants_usage = options is not None and options.include_usage is True
        self._continuous = options is not None and options.continuous_usage_stats is True
        self._begun: set[int] = set()
        self._plain = False  # chunks hold a text and nothing else, but for the first and the last of a choice

    @abstractmethod
    def pieces(self, index: int, delta: TextDelta, *, first: bool, needed: bool) -> list[bytes]:
        """Members of a chunk's choice that hold what a delta brings, for one chunk or several. `first`: of this choice. `needed`:
        at least one, since there is something else to be said.
        """

    @abstractmethod
    def content(self, index: int, output: Output) -> dict[str, object]:
        """Members of a whole choice that hold its text."""

    def finish_reason(self, generation: TextGeneration, reason: FinishReason) -> str:
        """By the name that the route has for it."""
        return reason

    @abstractmethod
    def logprobs(self, index: int, tokens: list[TokenLogprob], *, first: bool) -> dict[str, object] | None:
        """Log-probabilities of choice `index` in the format of the route; None where not asked. `first`: they begin the choice."""

    def chosen(self, outputs: Sequence[Output]) -> list[int]:
        """Indices of the outputs that a whole answer shows as its choices, in their order."""
        return list(range(len(outputs)))

    def about_prompt(self, generations: Sequence[TextGeneration]) -> dict[str, object]:
        """Members of a whole answer that concern its prompt alone."""
        return {}

    def begin(self) -> bytes:
        """See Events: nothing, since clients take the time of the first event for that of the first token."""
        return b""

    def add(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """See Events. Only the first of several chunks tells of tokens, and only the last one of the end."""
        first = index not in self._begun
        if not first and delta.finish_reason is None and self._plain:  # nearly every chunk
            between = b',"logprobs":null,"finish_reason":null}]}\n\ndata: %b%d,' % (self._open, index)
            text = between.join(self.pieces(index, delta, first=False, needed=False))
            return text and b'data: %b%d,%b,"logprobs":null,"finish_reason":null}]}\n\n' % (self._open, index, text)
        self._begun.add(index)
        reason = None if delta.finish_reason is None else self.finish_reason(generation, delta.finish_reason)
        logprobs = self.logprobs(index, delta.logprobs, first=first)
        self._plain = logprobs is None and not self._token_ids and not self._continuous
        extra = b',"logprobs":' + (b"null" if logprobs is None else _json(logprobs))
        if self._token_ids:
            ids = b',"token_ids":' + _json(delta.token_ids)
            extra = (b',"prompt_token_ids":' + _json(generation.prompt_token_ids) + ids if first else ids) + extra
        needed = first or reason is not None or logprobs is not None or self._token_ids or self._continuous
        pieces = self.pieces(index, delta, first=first, needed=needed)
        usage = b',"usage":' + _json(jobs.usage((generation,), 1)) if self._continuous else b""
        written = []
        for number, piece in enumerate(pieces, 1):
            if reason is None or number < len(pieces):
                end = b',"finish_reason":null}]'
            else:
                end = b',"finish_reason":"%b","stop_reason":%b}]' % (reason.encode(), _json(delta.stop_reason))
            written.append(b"data: %b%d,%b%b%b%b}\n\n" % (self._open, index, piece, extra, end, usage))
            extra = b',"logprobs":null'
        return b"".join(written)

    def end(self, generations: Sequence[TextGeneration]) -> bytes:
        """See Events: the usage, where the client asked for it, without choices."""
        if not self._wants_usage:
            return _DONE
        return b"data: " + _json({**self._head, "choices": [], "usage": jobs.usage(generations, self._n)}) + b"\n\n" + _DONE

    def fail(self, error: ApiError) -> bytes:
        """See Events."""
        return b"data: " + error.body() + b"\n\n" + _DONE

    def whole(self, generations: Sequence[TextGeneration], outputs: Sequence[Output]) -> bytes:
        """The answer to a request that does not stream."""
        chosen = enumerate(self.chosen(outputs))
        choices = [self._choice(index, generations[output], outputs[output]) for index, output in chosen]
        more = self.about_prompt(generations)
        return _json({**self._head, "choices": choices, "usage": jobs.usage(generations, self._num_outputs), **more})

    def _choice(self, index: int, generation: TextGeneration, output: Output) -> dict[str, object]:
        choice = {
            "index": index,
            **self.content(index, output),
            "logprobs": self.logprobs(index, output.logprobs, first=True),
            "finish_reason": self.finish_reason(generation, output.finish_reason),
            "stop_reason": output.stop_reason,
        }
        if self._token_ids:
            choice |= {"prompt_token_ids": generation.prompt_token_ids, "token_ids": output.token_ids}
        return choice


async def respond(request: Request, answer: Answering, generations: Sequence[TextGeneration], *, stream: bool) -> ASGIApp:
    """The response that carries an answer: piece by piece, or whole; then what still runs is aborted when the client leaves."""
    if stream:
        return EventStream(generations, answer)
    try:
        outputs = await unless_gone(request.receive, jobs.collect(generations))
    finally:
        jobs.cancel(generations)
    data = await off_loop(jobs.size(outputs, generations), lambda: answer.whole(generations, outputs))
    response = Response(data, media_type="application/json")
    response.raw_headers += jobs.notes(generations)
    return response
