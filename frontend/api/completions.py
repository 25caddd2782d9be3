"""POST /v1/completions."""

import secrets
import time
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from frontend.api import body, jobs
from frontend.api.errors import ApiError
from frontend.api.jobs import Output
from frontend.api.schemas import COMPLETION_DECODER, CompletionRequest, refuse_unsupported
from frontend.api.sse import EventStream, unless_gone
from frontend.errors import InvalidRequest
from frontend.generation import TextDelta, TextEngine, TextGeneration, TokenLogprob
from frontend.text.detokenizer import decode
from frontend.text.tokenizer import Tokenizer

_json = msgspec.json.encode


async def completions(request: Request) -> ASGIApp:
    """One or several texts that go on from the prompts."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, COMPLETION_DECODER)
    model = jobs.model_name(engine, asked.model)
    _check(asked)
    params = asked.sampling(max_tokens=asked.max_tokens, logprobs=asked.logprobs)
    prompts = await _prompts(engine, asked)
    generations = jobs.submit(engine, prompts, asked, params)
    answer = CompletionAnswer(engine.tokenizer, asked, model, prompts)
    if asked.stream:
        options = asked.stream_options
        last = partial(answer.usage_chunk, generations) if options is not None and options.include_usage else bytes
        return EventStream(generations, answer.chunk, last)
    try:
        outputs = await unless_gone(request.receive, jobs.collect(generations))
    finally:
        jobs.cancel(generations)
    return Response(answer.whole(generations, outputs), media_type="application/json")


def _check(asked: CompletionRequest) -> None:
    refuse_unsupported(asked)
    if asked.best_of is not None and asked.best_of != asked.choices:
        raise ApiError(400, "best_of is supported only where it equals n", param="best_of", code="unsupported_parameter")
    if asked.echo and asked.logprobs is not None:
        raise ApiError(400, "echo with logprobs of the prompt is not supported", param="echo", code="unsupported_parameter")


async def _prompts(engine: TextEngine, asked: CompletionRequest) -> list[list[int]]:
    """Token ids of each prompt. Raises InvalidRequest on a mixture of kinds."""
    given = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if len(given) > jobs.MAX_OUTPUTS and not isinstance(given[0], int):
        raise InvalidRequest(f"at most {jobs.MAX_OUTPUTS} prompts in one request, not {len(given)}", "prompt")
    texts = [item for item in given if isinstance(item, str)]
    if texts and len(texts) == len(given):
        adds = asked.add_special_tokens is not False
        size = sum(map(len, texts))
        return await jobs.off_loop(size, lambda: [engine.encode(text, adds) for text in texts])
    ids = [item for item in given if isinstance(item, int)]
    if ids and len(ids) == len(given):
        return [ids]
    lists = [item for item in given if isinstance(item, list)]
    if lists and len(lists) == len(given):
        return lists
    if not given:
        raise InvalidRequest("the prompt is empty", "prompt")
    raise InvalidRequest("prompt must be a string, a list of strings, a list of token ids, or a list of such lists", "prompt")


class CompletionAnswer:
    """Writes the JSON of one request's answer, whole or in chunks."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionRequest, model: str, prompts: list[list[int]]) -> None:
        self._tokenizer = tokenizer
        self._asked = asked
        self._choices = asked.choices
        self._logprobs = asked.logprobs
        self._continuous = asked.stream_options is not None and asked.stream_options.continuous_usage_stats is True
        # The wall clock: this is for people, and nothing is computed from it.
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._open = _json(self._head)[:-1] + b',"choices":[{"index":'
        self._echoes = [self._echo(asked.prompt, index, prompt) for index, prompt in enumerate(prompts)] if asked.echo else []
        self._begun: set[int] = set()

    def _echo(self, given: object, index: int, token_ids: list[int]) -> str:
        if isinstance(given, str):
            return given
        item = given[index] if isinstance(given, list) else None
        return item if isinstance(item, str) else decode(self._tokenizer.bytes, token_ids)

    def chunk(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """One event: what `delta` adds to choice `index`."""
        text = delta.text
        extra = b""
        if index not in self._begun:
            self._begun.add(index)
            if self._echoes:
                text = self._echoes[index // self._choices] + text
            if self._asked.return_token_ids:
                extra = b',"prompt_token_ids":' + _json(generation.prompt_token_ids)
        if self._asked.return_token_ids:
            extra += b',"token_ids":' + _json(delta.token_ids)
        logprobs = b"null" if self._logprobs is None else _json(self._legacy_logprobs(delta.logprobs))
        if delta.finish_reason is None:
            end = b',"finish_reason":null}]'
        else:
            end = b',"finish_reason":"%b","stop_reason":%b}]' % (delta.finish_reason.encode(), _json(delta.stop_reason))
        if self._continuous:
            end += b',"usage":' + _json(jobs.usage((generation,), 1))
        return b'%b%d,"text":%b,"logprobs":%b%b%b}' % (self._open, index, _json(text), logprobs, extra, end)

    def usage_chunk(self, generations: list[TextGeneration]) -> bytes:
        """The event without choices that ends a stream whose client asked for the usage."""
        return _json({**self._head, "choices": [], "usage": jobs.usage(generations, self._choices)})

    def whole(self, generations: list[TextGeneration], outputs: list[Output]) -> bytes:
        """The answer to a request that does not stream."""
        choices = [self._choice(index, generations[index], output) for index, output in enumerate(outputs)]
        return _json({**self._head, "choices": choices, "usage": jobs.usage(generations, self._choices)})

    def _choice(self, index: int, generation: TextGeneration, output: Output) -> dict[str, object]:
        echo = self._echoes[index // self._choices] if self._echoes else ""
        choice: dict[str, object] = {
            "index": index,
            "text": echo + output.text,
            "logprobs": None if self._logprobs is None else self._legacy_logprobs(output.logprobs),
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self._asked.return_token_ids:
            choice |= {"prompt_token_ids": generation.prompt_token_ids, "token_ids": output.token_ids}
        return choice

    def _legacy_logprobs(self, tokens: list[TokenLogprob]) -> dict[str, object]:
        """The format of OpenAI's completions: parallel lists. The chosen token is among its candidates always."""
        text_of = self._tokenizer.text_of
        return {
            "tokens": [text_of(token.token_id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {text_of(token_id): logprob for token_id, logprob in (*token.top, (token.token_id, token.logprob))}
                for token in tokens
            ],
            "text_offset": [token.text_offset for token in tokens],
        }
