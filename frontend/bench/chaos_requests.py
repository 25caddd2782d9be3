"""What the clients of `engine-bench chaos` ask, the same every time, and what they write down of the answers."""

import asyncio
import random
from collections.abc import Sequence
from typing import Literal

import msgspec

from frontend.bench.http_client import HttpClient, HttpError
from frontend.bench.streams import Payloads
from frontend.client import AsyncClient, EngineError, EngineUnavailable, Overloaded, SamplingParams
from frontend.client.structured import from_schema
from protocol.clock import now

Kind = Literal["stream", "whole", "http"]
Outcome = Literal["complete", "aborted", "broken", "refused", "lost"]

_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer"}, "minItems": 4}},
    "required": ["name", "ages"],
    "additionalProperties": False,
}


class Question(msgspec.Struct, frozen=True):
    """A request."""

    kind: Kind
    prompt: tuple[int, ...]
    params: SamplingParams


class Answer(msgspec.Struct):
    """What came of a request."""

    question: int  # its number
    began: float  # seconds on the one clock, as the times below
    ended: float = 0.0
    outcome: Outcome = "lost"
    why: str = ""
    outputs: dict[int, list[int]] = {}  # token ids, by output
    reasons: dict[int, str] = {}  # why each output ended
    times: list[float] = []  # when something came


def make_questions(count: int, seed: int) -> list[Question]:
    """A mixture: streams and whole answers of the Python client, streams over HTTP; greedy and drawn, with penalties, stops, rules,
    several outputs, and answers that follow a schema."""
    draw = random.Random(seed)
    questions = []
    for index in range(count):
        kind: Kind = ("stream", "http", "stream", "whole")[index % 4]
        shared = tuple(range(50, 50 + 16 * draw.randint(0, 4)))  # some begin alike, so that the prefix cache has work
        prompt = (*shared, *(draw.randrange(300, 40_000) for _ in range(draw.randint(1, 120))))
        params = SamplingParams(max_tokens=draw.randint(20, 160), seed=draw.getrandbits(40), ignore_eos=True)
        match index % 7:
            case 0:
                params = msgspec.structs.replace(params, temperature=0.0)
            case 1:
                params = msgspec.structs.replace(params, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.1)
            case 2:
                params = msgspec.structs.replace(params, stop_token_ids=[draw.randrange(40_000) for _ in range(16)], min_tokens=8)
            case 3:
                params = msgspec.structs.replace(params, n=1 if kind == "http" else 3)
            case 4:
                allowed = sorted(draw.sample(range(300, 40_000), 50))
                params = msgspec.structs.replace(params, allowed_token_ids=allowed, logit_bias={allowed[0]: 2.0})
            case 5 if kind != "http":
                params = msgspec.structs.replace(params, ignore_eos=False, structured=from_schema(_SCHEMA))
        questions.append(Question(kind, prompt, params))
    return questions


class Clients:
    """One Python client and one HTTP client, for many requests at a time."""

    def __init__(self, socket: str, base_url: str) -> None:
        self._python = AsyncClient(socket, reconnect=60.0)
        self._http = HttpClient(base_url)

    async def connect(self) -> None:
        """Raises EngineUnavailable when there is no engine."""
        await self._python.connect()

    def rest(self) -> None:
        """Closes the connections that nobody uses: how many there are is a matter of chance."""
        self._http.close()

    def close(self) -> None:
        """Hangs up."""
        self._python.close()
        self._http.close()

    async def ask(self, number: int, question: Question, abort_after: int | None = None) -> Answer:
        """One attempt. `abort_after`: tokens after which a stream is left."""
        answer = Answer(number, now())
        try:
            match question.kind:
                case "stream":
                    await self._stream(question, answer, abort_after)
                case "whole":
                    await self._whole(question, answer)
                case "http":
                    await self._over_http(question, answer)
        except (Overloaded, EngineUnavailable) as error:  # before it was accepted
            answer.outcome, answer.why = "refused", str(error)
        except (EngineError, HttpError) as error:
            answer.outcome = "broken" if question.kind == "http" else "lost"
            answer.why = str(error)
        answer.ended = now()
        return answer

    async def _stream(self, question: Question, answer: Answer, abort_after: int | None) -> None:
        stream = self._python.stream(list(question.prompt), question.params)
        came = 0
        try:
            async for delta in stream:
                answer.times.append(now())
                answer.outputs.setdefault(delta.index, []).extend(delta.token_ids)
                if delta.finish_reason is not None:
                    answer.reasons[delta.index] = delta.finish_reason
                came += len(delta.token_ids)
                if abort_after is not None and came >= abort_after and len(answer.reasons) < question.params.n:
                    answer.outcome = "aborted"
                    return
        finally:
            stream.close()
        answer.outcome = "complete"

    async def _whole(self, question: Question, answer: Answer) -> None:
        handle = self._python.submit(list(question.prompt), question.params)
        for output in (await handle.result()).outputs:
            answer.outputs[output.index] = list(output.token_ids)
            answer.reasons[output.index] = output.finish_reason or ""
        answer.outcome = "complete"

    async def _over_http(self, question: Question, answer: Answer) -> None:
        body = {"prompt": question.prompt, "stream": True, "return_token_ids": True, **_fields(question.params)}
        reader = _EventReader(answer)
        status = await self._http.request("POST", "/v1/completions", msgspec.json.encode(body), reader.feed)
        if status == 503:
            answer.outcome, answer.why = "refused", f"status {status}"
        elif status != 200 or reader.error:
            answer.outcome, answer.why = "broken", reader.error or f"status {status}"
        elif reader.done:
            answer.outcome = "complete"
        else:
            answer.outcome, answer.why = "broken", "the stream ended without [DONE]"


def _fields(params: SamplingParams) -> dict[str, object]:
    defaults = msgspec.structs.asdict(SamplingParams())
    fields = {name: value for name, value in msgspec.structs.asdict(params).items() if value != defaults[name]}
    if "logit_bias" in fields:
        fields["logit_bias"] = {str(token): bias for token, bias in fields["logit_bias"].items()}
    return fields


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Error | None = None


class _EventReader:
    """Reads the events of one stream."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._payloads = Payloads()
        self.done = False
        self.error = ""

    def feed(self, data: bytes) -> None:
        for payload in self._payloads.feed(data):
            if payload == b"[DONE]":
                self.done = True
                continue
            decoded = msgspec.json.decode(payload, type=_Event)
            if decoded.error is not None:
                self.error = decoded.error.message or "error"
            for choice in decoded.choices:
                self._answer.times.append(now())
                self._answer.outputs.setdefault(0, []).extend(choice.token_ids or [])
                if choice.finish_reason is not None:
                    self._answer.reasons[0] = choice.finish_reason


async def undisturbed(clients: Clients, questions: Sequence[Question], at_a_time: int) -> list[Answer]:
    """Every question, once. Raises EngineError where one is not answered: then there is nothing to compare with."""
    gate = asyncio.Semaphore(at_a_time)

    async def one(number: int, question: Question) -> Answer:
        async with gate:
            answer = await clients.ask(number, question)
        if answer.outcome != "complete":
            raise EngineError(f"a {question.kind} request failed though nothing was disturbed: {answer.why or answer.outcome}")
        return answer

    return list(await asyncio.gather(*(one(number, question) for number, question in enumerate(questions))))
