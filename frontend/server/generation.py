"""Text in, text out: the engine as HTTP and IPC see it.

Between the router, which moves token ids, and the interfaces: turns tokens into text as they come, finds stop strings, and gives
log-probabilities their place in it.
"""

import math
import random
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest
from frontend.server.access import shown
from frontend.server.grammars import INVALID_GRAMMAR, Grammars
from frontend.server.prompt_scores import PromptLogprobs
from frontend.server.prompts import Asked, Prompt, Prompts, off_loop
from frontend.server.router import Router
from frontend.server.spans import Spans
from frontend.server.text.detokenizer import decode
from frontend.server.text.dialect import Dialect, Reading
from frontend.server.text.output import OutputText, TokenText
from frontend.server.text.rendering.renderer import Renderer
from frontend.server.text.tokenizer import Tokenizer
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import Event
from frontend.server.text.tools.schemas import arguments_grammar
from frontend.server.text_request import TextRequest, check_known, prepare
from frontend.server.token_stream import Generation, TokenDelta
from frontend.server.visit import current
from frontend.wire import Tool
from protocol.codec import Int32Array, unpack_float32, unpack_int32
from protocol.config import EngineConfig
from protocol.messages import EngineReady, FinishReason, TopLogprobs
from protocol.params import MAX_GRAMMAR_CHARACTERS, SamplingParams

StopReason: TypeAlias = int | str | None  # the stop token id or stop string that ended a text; None: end of sequence, or no stop

# JSON has no infinities: a candidate of probability zero is shown with this log-probability.
LOWEST_LOGPROB = -9999.0


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """Log-probability of one output token, its rank among all (1 = most likely), and the most likely candidates."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]  # (token id, log-probability), falling
    text_offset: int  # characters of output text before this token
    data: bytes = b""  # what the token brought to the text, see TokenText


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """What one step of the engine, or several, added to an output. The one with a finish reason is the last.

    With log-probabilities and stop strings both, a token comes with its text: held back while that may become a stop string.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_reason: StopReason = None
    message: str = ""  # why, when the reason is "error"
    events: list[Event] | None = None  # what the text is made of, where it is not all content
    unsatisfiable: bool = False  # with the reason "error": the request asks for what cannot be had, and the engine is well


class TextGeneration:
    """One output being generated: an async iterator of TextDelta."""

    def __init__(self, generation: Generation, request: TextRequest) -> None:
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._generation = generation
        self._request = request
        params = request.params
        self._wants_logprobs = params.logprobs is not None
        self._one_by_one = self._wants_logprobs or request.stops is not None
        self._text: OutputText | None = None
        if params.detokenize:
            minimum, tracks = params.min_tokens, self._wants_logprobs
            self._text = OutputText(request.token_bytes, request.before, request.stops, min_tokens=minimum, tracks=tracks)
        self._reader = None if request.reading is None or self._text is None else request.reading.reader()
        # Where log-probabilities are asked: tokens whose text is not out yet.
        self._held: deque[tuple[int, TopLogprobs | None]] = deque()
        self._finished = False

    @property
    def seed(self) -> int | None:
        """Of the request: where it had none, the one that was drawn for it."""
        return self._request.params.seed

    @property
    def request_id(self) -> int:
        """The engine's own number of this request."""
        return self._generation.request_id

    @property
    def max_tokens_clipped(self) -> int | None:
        """How many tokens the context has room for, where more were asked for."""
        return self._request.max_tokens_clipped

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self._request.prompt)

    @property
    def prompt_logprobs(self) -> PromptLogprobs | None:
        """Log-probabilities of the prompt's tokens, where asked: complete with the first delta."""
        return self._request.scores

    @property
    def prompt_token_ids(self) -> list[int]:
        """The prompt, for those who show it."""
        token_ids: list[int] = self._request.prompt.tolist()
        return token_ids

    @property
    def calling(self) -> Calling | None:
        """What the output may call."""
        return None if self._request.reading is None else self._request.reading.calling

    @property
    def num_calls(self) -> int:
        """How many calls of tools the output has so far."""
        return 0 if self._reader is None else self._reader.num_calls

    def cancel(self, reason: FinishReason = "abort") -> None:
        """Aborts the request; nothing follows. Idempotent, and without effect on one that has ended. `reason`: why, in measures."""
        if not self._finished:
            self._finished = True
            self._generation.cancel(reason)

    def __aiter__(self) -> "TextGeneration":
        return self

    async def __anext__(self) -> TextDelta:
        if self._finished:
            raise StopAsyncIteration
        if self._request.scores is not None:
            await self._request.scores.wait()  # those of the prompt go before; another output may have them computed
        delta = await self._generation.__anext__()
        self.num_cached_tokens = delta.num_cached_tokens
        if self._request.params.max_tokens == 0:
            return await self._nothing(delta)
        text_delta = self._token_by_token(delta) if self._one_by_one else self._whole(delta)
        if delta.unsatisfiable:
            text_delta = msgspec.structs.replace(text_delta, unsatisfiable=True)
        if self._reader is None:
            return text_delta
        events = self._reader.feed(text_delta.text, final=text_delta.finish_reason is not None)
        return msgspec.structs.replace(text_delta, events=events)

    async def _nothing(self, delta: TokenDelta) -> TextDelta:
        """What a request brings that wants no tokens: the engine has made one, so that there is an end."""
        while delta.finish_reason is None:
            delta = await self._generation.__anext__()
        self._finished = True
        return TextDelta("", [], [], "error" if delta.finish_reason == "error" else "length", None, delta.message)

    def _whole(self, delta: TokenDelta) -> TextDelta:
        token_ids, reason = delta.token_ids, delta.finish_reason
        self.num_output_tokens += len(token_ids)
        if reason is None:
            return TextDelta("" if self._text is None else self._text.feed(token_ids), token_ids, [])
        self._finished = True
        text = ""
        if self._text is not None:
            shown = token_ids[:-1] if self._hides_last_token(delta) else token_ids
            text = self._text.feed(shown, final=True)
        return TextDelta(text, token_ids, [], reason, self._stop_reason(delta), delta.message)

    def _token_by_token(self, delta: TokenDelta) -> TextDelta:
        """The same with the text position of each token, and an end at the token that completes a stop string."""
        pieces: list[str] = []
        stop: str | None = None
        hidden = len(delta.token_ids) - 1 if self._hides_last_token(delta) else -1
        count = 0
        for index, token_id in enumerate(delta.token_ids):
            count += 1
            if self._wants_logprobs:
                self._held.append((token_id, delta.logprobs[index] if delta.logprobs else None))
            if self._text is not None:
                shown, stop = self._text.feed_one(token_id, hidden=index == hidden)
                pieces.append(shown)
                if stop is not None:
                    break
        self.num_output_tokens += count
        token_ids, reason, stop_reason = delta.token_ids[:count], delta.finish_reason, self._stop_reason(delta)
        if stop is None and reason is not None and self._text is not None:
            shown, stop = self._text.end()
            pieces.append(shown)
        if reason is not None:
            self._finished = True
        elif stop is not None:
            self.cancel("stop")
        if stop is not None:
            reason, stop_reason = "stop", stop
        logprobs: list[TokenLogprob] = []
        if self._wants_logprobs:
            token_ids = self._release(logprobs)
        return TextDelta("".join(pieces), token_ids, logprobs, reason, stop_reason, delta.message)

    def _release(self, logprobs: list[TokenLogprob]) -> list[int]:
        """The tokens whose text is out, and their log-probabilities."""
        texts = [TokenText(0, b"")] * len(self._held) if self._text is None else self._text.released()
        token_ids = []
        for text in texts:
            token_id, found = self._held.popleft()
            token_ids.append(token_id)
            if found is not None:
                logprobs.append(_token_logprob(token_id, found, self._request.params.logprobs or 0, text))
        return token_ids

    def _hides_last_token(self, delta: TokenDelta) -> bool:
        """The token that ended the output is counted and listed, but is no part of the text."""
        return delta.finish_reason == "stop" and delta.stop_token_id >= 0 and not self._request.params.include_stop_str_in_output

    def _stop_reason(self, delta: TokenDelta) -> StopReason:
        if delta.finish_reason != "stop" or delta.stop_token_id < 0:
            return None
        by_end = delta.stop_token_id in self._request.eos_ids and delta.stop_token_id not in self._request.params.stop_token_ids
        return None if by_end else delta.stop_token_id


def _kept(params: SamplingParams, limit: int) -> int | None:
    """How many tokens `truncate_prompt_tokens` leaves of a prompt; `limit`: of the context."""
    asked = params.truncate_prompt_tokens
    if asked is None:
        return None
    if asked != -1 and not 1 <= asked < limit:
        text = f"truncate_prompt_tokens must be -1, or between 1 and {limit - 1}, so that the context has room for one more"
        raise InvalidRequest(text, "truncate_prompt_tokens")
    return asked if asked > 0 else max(1, limit - max(1, params.max_tokens or 1))


def _token_logprob(token_id: int, found: TopLogprobs, wanted: int, text: TokenText) -> TokenLogprob:
    ids = unpack_int32(found.token_ids_i32)[:wanted].tolist()
    values = [_finite(value) for value in unpack_float32(found.logprobs_f32)[:wanted].tolist()]
    return TokenLogprob(token_id, _finite(found.logprob), found.rank, list(zip(ids, values, strict=True)), text.offset, text.data)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


class TextEngine:
    """The engine as its interfaces use it. `router` is started: the model's limits are known."""

    def __init__(
        self,
        config: EngineConfig,
        router: Router,
        tokenizer: Tokenizer,
        renderer: Renderer,
        grammars: Grammars | None = None,
        spans: Spans | None = None,
    ) -> None:
        """`grammars`: None where no grammar process runs, so that no output can be made to follow one. `spans`: None where nobody
        wants them."""
        self.config = config
        self._grammars = grammars
        self.router = router
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.spans = spans
        parsers = {"tool_parser": config.tool_call_parser, "reasoning_parser": config.reasoning_parser}
        self.dialect = Dialect(tokenizer, takes_tools=renderer.takes_tools, **parsers)
        self.prompts = Prompts(tokenizer, renderer, rewrites_tools=self.dialect.rewrites_tools)
        # The operator's seed draws those of requests without one: in the order of their arrival, for each frontend its own.
        self._seeds = None if config.seed is None else random.Random(f"{config.seed}/{router.index}")

    @property
    def capacity(self) -> EngineReady:
        """Live workers and the model's limits."""
        return self.router.capacity

    async def encode(self, asked: Sequence[Asked], params: SamplingParams | None = None) -> list[Prompt]:
        """Token ids of each prompt. `params`: of the outputs, where there will be any: they may want less of it.

        Raises InvalidRequest on what is no prompt, or cannot fit.
        """
        if self.config.log_prompts and (visit := current()) is not None:
            visit.prompt = shown(asked)
        keep = None if params is None else _kept(params, self.capacity.max_model_len)
        return await self.prompts.encode(asked, self.capacity.max_model_len, keep)

    async def text_of(self, token_ids: Int32Array) -> str:
        """The text of token ids, special tokens included. Raises InvalidRequest on more than a context holds."""
        size, limit = self.capacity.vocab_size, self.capacity.max_model_len
        if len(token_ids) > limit:
            message = f"This model's maximum context length is {limit} tokens; tokens has {len(token_ids)}"
            raise InvalidRequest(message, "tokens", CONTEXT_LENGTH_EXCEEDED)
        if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < size:
            raise InvalidRequest(f"tokens holds ids outside the vocabulary of {size}", "tokens")
        return await off_loop(len(token_ids), lambda: decode(self.tokenizer.bytes, token_ids.tolist()))

    async def check(self, params: SamplingParams) -> None:
        """Returns when the grammar of the outputs can be followed, if they have one. Raises what `Grammars.check` raises."""
        if params.structured is not None:
            if self._grammars is None:
                raise InvalidRequest("structured output is not supported here", "structured_outputs", "unsupported_parameter")
            await self._grammars.check(params.structured)

    async def follow(self, params: SamplingParams, reading: Reading | None) -> SamplingParams:
        """The parameters of a chat's outputs with the grammar that they follow, checked: what was asked for, and valid calls.

        Where no grammar can follow the schema of a tool that is not strict, the names of its arguments are followed.
        Raises as `check`.
        """
        await self.check(params)
        if reading is None:
            return params
        answer, tools = params.structured, reading.tools
        size = sum(10 * len(msgspec.json.encode(tool.parameters)) for tool in tools)  # characters of text that take as long
        followed = await off_loop(size, lambda: reading.grammar_for(answer))
        if followed is not None and len(followed.text) > MAX_GRAMMAR_CHARACTERS:
            lenient = frozenset([tool.name for tool in tools if not tool.strict])
            followed = await off_loop(size, lambda: reading.grammar_for(answer, lenient))
            if followed is not None and len(followed.text) > MAX_GRAMMAR_CHARACTERS:
                raise InvalidRequest("their schemas together are too large for a grammar", "structured_outputs", INVALID_GRAMMAR)
        try:
            await self.check(msgspec.structs.replace(params, structured=followed))
        except InvalidRequest as error:
            if error.code != INVALID_GRAMMAR:
                raise
            loose = frozenset([tool.name for tool in tools if not await self._can_follow(tool)])
            if not loose:
                raise
            followed = await off_loop(size, lambda: reading.grammar_for(answer, loose))
            await self.check(msgspec.structs.replace(params, structured=followed))
        return msgspec.structs.replace(params, structured=followed)

    async def _can_follow(self, tool: Tool) -> bool:
        assert self._grammars is not None
        try:
            await self._grammars.check(arguments_grammar(tool))
        except InvalidRequest as error:
            if tool.strict:
                raise InvalidRequest(f"the schema of {tool.name}: {error}", error.param, error.code) from error
            return False
        return True

    def prepare(self, prompts: Sequence[Prompt], params: SamplingParams, reading: Reading | None = None) -> list[TextRequest]:
        """Checks a request for each prompt against the model, once for all of its outputs, and fills every default. `check` saw
        `params` before. `reading`: of chats.

        Raises InvalidRequest naming the field that is wrong.
        """
        if (visit := current()) is not None:
            visit.outputs_per_prompt, visit.params = params.n, params
        self.router.measures.outputs.observe(params.n)
        grammar = params.structured
        assert grammar is None or (self._grammars is not None and self._grammars.has_passed(grammar)), "check comes first"
        strict, capacity = self.config.strict_max_tokens, self.capacity
        return prepare(prompts, params, capacity, self.tokenizer, strict_max_tokens=strict, reading=reading, seeds=self._seeds)

    def start(
        self,
        request: TextRequest,
        *,
        index: int = 0,
        stream: bool = True,
        cache_salt: str = "",
        known: Int32Array | None = None,
    ) -> TextGeneration:
        """Submits one output; the caller asks once per `index < params.n`. Raises what the router raises.

        `stream=False`: the caller wants the whole text only; it then comes as one delta where stop strings allow.
        `known`: output tokens of a request that is resumed; they come first, as if just made, without log-probabilities.
        """
        if known is not None:
            check_known(known, request.engine_params(index), self.capacity.vocab_size)
        params = request.params
        generation = self.router.submit(
            request.prompt,
            request.engine_params(index),
            priority=params.priority,
            stream=stream or bool(params.stop) or params.logprobs is not None,
            cache_salt=cache_salt,
            scores=request.scores if index == 0 else None,
            known=known,
        )
        if params.timeout is not None:
            generation.expire_after(params.timeout)
        return TextGeneration(generation, request)
