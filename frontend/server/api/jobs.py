"""What one HTTP request asks of the engine: several prompts, several outputs each."""

import asyncio
from collections.abc import Sequence

import msgspec
from starlette.requests import Request as HttpRequest

from frontend.errors import InvalidRequest
from frontend.server.api import schemas
from frontend.server.api.errors import ApiError
from frontend.server.api.schemas import ChatRequest, GenerationRequest, TokenizeRequest
from frontend.server.generation import TextDelta, TextEngine, TextGeneration, TokenLogprob
from frontend.server.prompts import Asked, Prompt, check_number, off_loop
from frontend.server.text.dialect import Reading
from frontend.server.text.tools.events import Event
from frontend.server.text_request import TextRequest
from frontend.wire import Conversation, Tool
from protocol.messages import FinishReason
from protocol.params import SamplingParams

MAX_SCORES = 1 << 20  # log-probabilities of prompts in one answer: some 60 MB of JSON
MAX_STREAMED_SCORES = 10_000  # in one stream, whose events are made on the event loop: some milliseconds
_AT_A_TIME = 16  # outputs started before others get their turn: some milliseconds with long prompts
MAX_OUTPUTS = 1024  # prompts × n of one request: each is a request of the engine's own


class Output(msgspec.Struct):
    """One finished output."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason
    stop_reason: int | str | None
    events: list[Event] | None = None  # what the text is made of, where it is not all content


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens read and written. A prompt counts once, however many outputs it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


def model_name(engine: TextEngine, asked: str | None) -> str:
    """The name to answer with. Raises ApiError 404 when the model asked for is another."""
    names = engine.config.served_model_names
    if not asked:
        return names[0]
    if asked not in names:
        message = f"the model {asked[:200]!r} is not served here; this engine serves {', '.join(names)}"
        raise ApiError(404, message, param="model", code="model_not_found")
    return asked


async def conversation(engine: TextEngine, asked: ChatRequest | TokenizeRequest, tools: Sequence[Tool] = ()) -> Conversation:
    """The conversation as the engine takes it. Raises InvalidRequest on more messages than a context holds, and on what is not
    supported in one.
    """
    messages = asked.messages or []
    check_number(len(messages), engine.capacity.max_model_len)  # before anything is made of them
    pieces = sum([len(message.content) if isinstance(message.content, list) else 1 for message in messages])
    return await off_loop(10 * pieces, lambda: schemas.conversation(asked, tools))  # a piece takes as long as ten characters


def one_by_one(given: str | Sequence[str | int | list[int]], field: str) -> Sequence[str | list[int]]:
    """The texts, or lists of token ids, that `field` holds. Raises InvalidRequest on a mixture of kinds, and on none."""
    given = [given] if isinstance(given, str) else given
    texts = [item for item in given if isinstance(item, str)]
    if texts and len(texts) == len(given):
        return texts
    ids = [item for item in given if isinstance(item, int)]
    if ids and len(ids) == len(given):
        return [ids]
    lists = [item for item in given if isinstance(item, list)]
    if lists and len(lists) == len(given):
        return lists
    if not given:
        raise InvalidRequest(f"the {field} is empty", field)
    raise InvalidRequest(f"{field} must be a string, a list of strings, a list of token ids, or a list of such lists", field)


async def encode(engine: TextEngine, wanted: Sequence[Asked], asked: GenerationRequest, params: SamplingParams) -> list[Prompt]:
    """See `TextEngine.encode`. Raises what `check` raises."""
    prompts = await engine.encode(wanted, params)
    await follow(engine, asked, params)
    return prompts


async def follow(
    engine: TextEngine, asked: GenerationRequest, params: SamplingParams, reading: Reading | None = None
) -> SamplingParams:
    """`TextEngine.follow`, with what is wrong about a grammar under the name of the field that it came in."""
    try:
        return await engine.follow(params, reading)
    except InvalidRequest as error:
        field = asked.grammar()[1] or ("tools" if isinstance(asked, ChatRequest) else "")
        if error.param != "structured_outputs" or not field:
            raise
        raise InvalidRequest(f"{field}: {error}", field, error.code) from error


def check_priority(engine: TextEngine, priority: int | None) -> None:
    """Raises InvalidRequest where clients have no say in it, or on what is none."""
    if priority and engine.config.scheduling_policy != "priority":
        text = "priority is for engines that were started with --scheduling-policy priority"
        raise InvalidRequest(text, "priority", "unsupported_parameter")
    if priority and not -(2**31) <= priority < 2**31:
        raise InvalidRequest(f"priority must be between {-(2**31)} and {2**31 - 1}", "priority")


def cache_salt(request: HttpRequest, asked: str | None) -> str:
    """Of a request's prefixes. The key's own has a fixed length, so that no other key's with some text behind it is the same."""
    return getattr(request.state, "cache_salt", "") + (asked or "")


async def submit(
    request: HttpRequest,
    prompts: Sequence[Prompt],
    asked: GenerationRequest,
    params: SamplingParams,
    reading: Reading | None = None,
) -> list[TextGeneration]:
    """Starts `n` outputs of each prompt, in order: all of them, or none and InvalidRequest or what the router raises."""
    engine: TextEngine = request.app.state.engine
    if not prompts:
        raise InvalidRequest("there is no prompt", "prompt")
    check_priority(engine, params.priority)
    salt = cache_salt(request, asked.cache_salt)
    requests = engine.prepare(prompts, params, reading)
    if len(prompts) * params.n > MAX_OUTPUTS:
        raise InvalidRequest(f"{len(prompts)} prompts with n = {params.n} make more than {MAX_OUTPUTS} outputs", "n")
    if params.prompt_logprobs is not None:
        if asked.stream and asked.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs come with whole answers, not with streams", "prompt_logprobs")
        _check_scores(requests, params.n, stream=bool(asked.stream))
    started: list[TextGeneration] = []
    try:
        for prepared in requests:
            for index in range(params.n):
                started.append(engine.start(prepared, index=index, stream=bool(asked.stream), cache_salt=salt))
                if len(started) % _AT_A_TIME == 0:
                    await asyncio.sleep(0)
    except BaseException:
        cancel(started)
        raise
    return started


def _check_scores(requests: Sequence[TextRequest], n: int, *, stream: bool) -> None:
    """Raises InvalidRequest on log-probabilities of prompts that would be more than an answer may hold."""
    entries = sum(len(request.prompt) * (1 + (request.params.prompt_logprobs or 0)) for request in requests) * n
    most = MAX_STREAMED_SCORES if stream else MAX_SCORES
    if entries > most:
        text = (
            f"log-probabilities of prompts: {entries} in one {'stream' if stream else 'answer'}, at most {most} are possible: "
            "send fewer prompts in one request, or ask for fewer candidates"
        )
        raise InvalidRequest(text, "prompt_logprobs")


def notes(generations: Sequence[TextGeneration]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer that say what was done otherwise than asked."""
    granted = [generation.max_tokens_clipped for generation in generations if generation.max_tokens_clipped is not None]
    return [(b"x-max-tokens-clipped", b"%d" % min(granted))] if granted else []


def cancel(generations: Sequence[TextGeneration]) -> None:
    """Aborts those that still run."""
    for generation in generations:
        generation.cancel()


async def collect(generations: Sequence[TextGeneration]) -> list[Output]:
    """The whole outputs, in order. Raises ApiError when one failed."""
    return [await _collect(generation) for generation in generations]


async def _collect(generation: TextGeneration) -> Output:
    pieces: list[str] = []
    output = Output("", [], [], "abort", None)
    async for delta in generation:
        fail_on_error(delta)
        pieces.append(delta.text)
        if delta.events is not None:
            output.events = (output.events or []) + delta.events
        output.token_ids += delta.token_ids
        output.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason
    output.text = "".join(pieces)
    return output


def size(outputs: Sequence[Output], generations: Sequence[TextGeneration]) -> int:
    """Of a whole answer, as `off_loop` counts it: about ten characters' time for each log-probability."""
    entries = sum(len(one.top) + 1 for output in outputs for one in output.logprobs)
    entries += sum(scores.ranks.size for generation in generations if (scores := generation.prompt_logprobs) is not None)
    return 10 * entries


def fail_on_error(delta: TextDelta) -> None:
    """Raises ApiError when the engine gave the request up."""
    if delta.unsatisfiable:
        raise ApiError(400, delta.message, code="unsatisfiable")
    if delta.finish_reason == "error":
        raise ApiError(500, delta.message or "the engine failed on this request", code="internal_error")


def usage(generations: Sequence[TextGeneration], n: int) -> Usage:
    """Tokens so far. `generations` holds `n` outputs of each prompt."""
    prompt = sum(generation.num_prompt_tokens for generation in generations[::n])
    completion = sum(generation.num_output_tokens for generation in generations)
    cached = sum(generation.num_cached_tokens for generation in generations[::n])
    return Usage(prompt, completion, prompt + completion, {"cached_tokens": cached})
