"""Text in, text out: the engine as HTTP and IPC see it.

Between the router, which moves token ids, and the interfaces: resolves sampling parameters against the model, turns tokens into
text as they come, finds stop strings, and shapes log-probabilities.
"""

import math
import secrets
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest
from frontend.server.router import Generation, Router, TokenDelta
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.detokenizer import Detokenizer
from frontend.server.text.stops import StopStrings
from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import unpack_float32, unpack_int32
from protocol.config import EngineConfig
from protocol.messages import EngineReady, FinishReason, TopLogprobs
from protocol.params import MAX_STOP_TOKEN_IDS, EngineParams, ParameterError, SamplingParams, check

StopReason: TypeAlias = int | str | None  # the stop token id or stop string that ended a text; None: end of sequence, or no stop

# JSON has no infinities: a candidate of probability zero is shown with this log-probability.
_LOWEST_LOGPROB = -9999.0


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """Log-probability of one output token, its rank among all (1 = most likely), and the most likely candidates."""

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]  # (token id, log-probability), falling
    text_offset: int  # characters of output text before this token


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """What one step of the engine, or several, added to an output. The one with a finish reason is the last."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob]  # one per token, where asked
    finish_reason: FinishReason | None = None
    stop_reason: StopReason = None
    message: str = ""  # why, when the reason is "error"


class TextGeneration:
    """One output being generated: an async iterator of TextDelta."""

    def __init__(
        self,
        generation: Generation,
        prompt_token_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
    ) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._generation = generation
        self._params = params
        self._eos_ids = tokenizer.special.eos_ids
        self._detokenizer: Detokenizer | None = None
        self._stops: StopStrings | None = None
        if params.detokenize:
            self._detokenizer = Detokenizer(tokenizer.bytes_without_special if params.skip_special_tokens else tokenizer.bytes)
            if params.stop:
                self._stops = StopStrings(params.stop, include_in_output=params.include_stop_str_in_output)
        self._text_length = 0  # characters of output text so far, held-back ones included
        self._finished = False

    @property
    def request_id(self) -> int:
        """The engine's own number of this request."""
        return self._generation.request_id

    def cancel(self) -> None:
        """Aborts the request; nothing follows. Idempotent, and without effect on one that has ended."""
        if not self._finished:
            self._finished = True
            self._generation.cancel()

    def __aiter__(self) -> "TextGeneration":
        return self

    async def __anext__(self) -> TextDelta:
        if self._finished:
            raise StopAsyncIteration
        delta = await self._generation.__anext__()
        self.num_cached_tokens = delta.num_cached_tokens
        if self._stops is None and not delta.logprobs:
            return self._whole(delta)
        return self._token_by_token(delta)

    def _whole(self, delta: TokenDelta) -> TextDelta:
        token_ids, reason = delta.token_ids, delta.finish_reason
        self.num_output_tokens += len(token_ids)
        if reason is None:
            return TextDelta("" if self._detokenizer is None else self._detokenizer.feed(token_ids), token_ids, [])
        self._finished = True
        text = ""
        if self._detokenizer is not None:
            shown = token_ids[:-1] if self._hides_last_token(delta) else token_ids
            text = self._detokenizer.feed(shown, final=True)
        return TextDelta(text, token_ids, [], reason, self._stop_reason(delta), delta.message)

    def _token_by_token(self, delta: TokenDelta) -> TextDelta:
        """The same with the text position of each token, and an end at the token that completes a stop string."""
        pieces: list[str] = []
        logprobs: list[TokenLogprob] = []
        hidden = len(delta.token_ids) - 1 if self._hides_last_token(delta) else -1
        for index, token_id in enumerate(delta.token_ids):
            self.num_output_tokens += 1
            if delta.logprobs:
                logprobs.append(_token_logprob(token_id, delta.logprobs[index], self._params.logprobs or 0, self._text_length))
            if self._detokenizer is None or index == hidden:
                continue
            shown, stop = self._match(self._detokenizer.feed((token_id,)))
            pieces.append(shown)
            if stop is not None:
                if delta.finish_reason is None:
                    self.cancel()
                else:
                    self._finished = True
                return TextDelta("".join(pieces), delta.token_ids[: index + 1], logprobs, "stop", stop)
        if delta.finish_reason is None:
            return TextDelta("".join(pieces), delta.token_ids, logprobs)
        self._finished = True
        reason, stop_reason = delta.finish_reason, self._stop_reason(delta)
        if self._detokenizer is not None:
            shown, stop = self._match(self._detokenizer.feed((), final=True))
            pieces.append(shown)
            if stop is not None:
                reason, stop_reason = "stop", stop
            elif self._stops is not None:
                pieces.append(self._stops.flush())
        return TextDelta("".join(pieces), delta.token_ids, logprobs, reason, stop_reason, delta.message)

    def _match(self, text: str) -> tuple[str, str | None]:
        self._text_length += len(text)
        if self._stops is None or self.num_output_tokens <= self._params.min_tokens:
            return text, None  # a stop string does not begin before min_tokens
        return self._stops.feed(text)

    def _hides_last_token(self, delta: TokenDelta) -> bool:
        """The token that ended the output is counted and listed, but is no part of the text."""
        return delta.finish_reason == "stop" and delta.stop_token_id >= 0 and not self._params.include_stop_str_in_output

    def _stop_reason(self, delta: TokenDelta) -> StopReason:
        if delta.finish_reason != "stop" or delta.stop_token_id < 0:
            return None
        by_end = delta.stop_token_id in self._eos_ids and delta.stop_token_id not in self._params.stop_token_ids
        return None if by_end else delta.stop_token_id


def _token_logprob(token_id: int, found: TopLogprobs, wanted: int, text_offset: int) -> TokenLogprob:
    ids = unpack_int32(found.token_ids_i32)[:wanted].tolist()
    values = [_finite(value) for value in unpack_float32(found.logprobs_f32)[:wanted].tolist()]
    return TokenLogprob(token_id, _finite(found.logprob), found.rank, list(zip(ids, values, strict=True)), text_offset)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB


class TextEngine:
    """The engine as its interfaces use it. `router` is started: the model's limits are known."""

    def __init__(self, config: EngineConfig, router: Router, tokenizer: Tokenizer, chat_template: ChatTemplate) -> None:
        self.config = config
        self.router = router
        self.tokenizer = tokenizer
        self.chat_template = chat_template

    @property
    def capacity(self) -> EngineReady:
        """Live workers and the model's limits."""
        return self.router.capacity

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; thread-safe. Raises InvalidRequest on text that cannot be encoded or cannot fit."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens, limit=self.capacity.max_model_len)

    def resolve(self, prompt_token_ids: Sequence[int], params: SamplingParams, index: int = 0) -> EngineParams:
        """Checks a request against the model and fills every default. `index`: which of the `n` outputs, each with its own seed.

        Raises InvalidRequest naming the field that is wrong.
        """
        capacity = self.capacity
        try:
            check(params, capacity.vocab_size)
        except ParameterError as error:
            raise InvalidRequest(str(error), error.param) from error
        length, room = len(prompt_token_ids), capacity.max_model_len - len(prompt_token_ids)
        if length == 0:
            raise InvalidRequest("the prompt is empty", "prompt")
        if room < 1:
            limit = capacity.max_model_len
            message = f"this model's maximum context length is {limit} tokens; the prompt has {length}, and one more must fit"
            raise InvalidRequest(message, "prompt", CONTEXT_LENGTH_EXCEEDED)
        if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= capacity.vocab_size:
            raise InvalidRequest(f"the prompt holds token ids outside the vocabulary of {capacity.vocab_size}", "prompt")
        if params.max_tokens is not None and params.max_tokens > room:
            message = (
                f"max_tokens is {params.max_tokens}, but this model's maximum context length is {capacity.max_model_len} tokens "
                f"and the prompt of {length} leaves room for {room}"
            )
            raise InvalidRequest(message, "max_tokens", CONTEXT_LENGTH_EXCEEDED)
        if params.min_tokens > room:
            raise InvalidRequest(f"min_tokens is {params.min_tokens}, but there is room for {room}", "min_tokens")
        if params.stop and not params.detokenize:
            raise InvalidRequest("stop strings need detokenize", "stop")
        stop_ids = dict.fromkeys(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= dict.fromkeys(self.tokenizer.special.eos_ids)
        if len(stop_ids) > MAX_STOP_TOKEN_IDS:
            message = f"stop_token_ids and the model's end tokens together are more than {MAX_STOP_TOKEN_IDS}"
            raise InvalidRequest(message, "stop_token_ids")
        return EngineParams(
            max_tokens=room if params.max_tokens is None else params.max_tokens,
            min_tokens=params.min_tokens,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            min_p=params.min_p,
            seed=_seed(params.seed, index),
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logprobs=-1 if params.logprobs is None else params.logprobs,
            stop_token_ids=tuple(stop_ids),
        )

    def generate(
        self,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        stream: bool = True,
        index: int = 0,
        cache_salt: str = "",
    ) -> TextGeneration:
        """Submits one output; the caller asks once per `index < params.n`. Raises InvalidRequest, and what the router raises.

        `stream=False`: the caller wants the whole text only; it then comes as one delta where stop strings allow.
        """
        engine_params = self.resolve(prompt_token_ids, params, index)
        by_token = stream or bool(params.stop) or params.logprobs is not None
        token_ids = np.array(prompt_token_ids, dtype=np.int32)
        generation = self.router.submit(token_ids, engine_params, priority=params.priority, stream=by_token, cache_salt=cache_salt)
        return TextGeneration(generation, prompt_token_ids, params, self.tokenizer)


def _seed(seed: int | None, index: int) -> int:
    if seed is None:
        return secrets.randbits(63)
    return (seed + index) % 2**63  # never negative, and an int64 also for the last of `n` at the limit
