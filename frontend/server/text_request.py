"""A request, checked against the model once for all of its outputs, with every default filled."""

from collections.abc import Sequence
from random import Random, SystemRandom

from msgspec.structs import replace

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest
from frontend.server.prompt_scores import PromptLogprobs
from frontend.server.prompts import Prompt, too_long
from frontend.server.rules import resolve_rules
from frontend.server.text.detokenizer import before
from frontend.server.text.dialect import Reading
from frontend.server.text.stops import StopPatterns
from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import Int32Array
from protocol.messages import EngineReady
from protocol.params import MAX_STOP_TOKEN_IDS, EngineParams, Grammar, ParameterError, SamplingParams, check


class TextRequest:
    """A prompt, what is wanted of it, and what its outputs share."""

    __slots__ = (
        "_engine_params",
        "before",
        "eos_ids",
        "max_tokens_clipped",
        "params",
        "prompt",
        "reading",
        "scores",
        "stops",
        "token_bytes",
    )

    def __init__(
        self,
        prompt: Int32Array,
        params: SamplingParams,
        engine_params: EngineParams,
        tokenizer: Tokenizer,
        reading: Reading | None = None,
        stops: StopPatterns | None = None,
    ) -> None:
        """`prompt`: int32, shape [tokens]. `engine_params`: of the first output. `reading`: how outputs are read, beyond text.
        `stops`: of `params.stop`."""
        self.prompt = prompt
        self.params = params
        self.max_tokens_clipped: int | None = None  # what was granted, where the context has no room for what was asked
        self._engine_params = engine_params
        wanted = params.prompt_logprobs
        self.scores = None if wanted is None else PromptLogprobs(len(prompt), wanted)
        self.eos_ids = tokenizer.special.eos_ids
        self.reading = reading
        self.token_bytes = tokenizer.bytes_shown(skip_special_tokens=params.skip_special_tokens)
        if reading is not None and params.skip_special_tokens:
            self.token_bytes = reading.token_bytes
        self.before = before(self.token_bytes, prompt)
        self.stops = stops

    def engine_params(self, index: int) -> EngineParams:
        """The engine's parameters of output `index` of the `n`: each has a seed of its own, the first scores the prompt for all."""
        if index == 0:
            return self._engine_params
        return replace(self._engine_params, seed=_seed(self.params.seed, index), prompt_logprobs=-1)


_CHANCE = SystemRandom()  # it has no state


def check_known(token_ids: Int32Array, params: EngineParams, vocab_size: int) -> None:
    """Raises InvalidRequest where output tokens, said to have come before, cannot be those of a request with these parameters."""
    if len(token_ids) > params.max_tokens:
        raise InvalidRequest(f"{len(token_ids)} tokens are said to have come, of {params.max_tokens} at most", "resumed")
    if len(token_ids) and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
        raise InvalidRequest(f"the tokens that came hold ids outside the vocabulary of {vocab_size}", "resumed")


def prepare(
    prompts: Sequence[Prompt],
    params: SamplingParams,
    capacity: EngineReady,
    tokenizer: Tokenizer,
    *,
    strict_max_tokens: bool = False,
    reading: Reading | None = None,
    seeds: Random | None = None,
) -> list[TextRequest]:
    """One request for each prompt; what they share is checked and made once. `seeds`: of requests without one, None: any.

    A `max_tokens` beyond the context is clipped, since agents ask for 8192 whatever the model, unless `strict_max_tokens`.

    Raises InvalidRequest naming the field that is wrong.
    """
    common = _resolve(params, capacity, tokenizer)
    stops = StopPatterns(params.stop, include_in_output=params.include_stop_str_in_output) if params.stop else None
    requests = []
    for prompt in prompts:
        mine = params if params.seed is not None else replace(params, seed=(seeds or _CHANCE).getrandbits(63))
        room = _room(prompt, params, capacity, strict_max_tokens=strict_max_tokens)
        clips = params.max_tokens is not None and params.max_tokens > room
        # Where none is wanted, there is one all the same, which is not shown: so that there is an end.
        max_tokens = room if clips or params.max_tokens is None else max(1, params.max_tokens)
        resolved = replace(common, max_tokens=max_tokens, seed=_seed(mine.seed, 0))
        request = TextRequest(prompt.token_ids, mine, resolved, tokenizer, reading, stops)
        request.max_tokens_clipped = room if clips else None
        requests.append(request)
    return requests


def _resolve(params: SamplingParams, capacity: EngineReady, tokenizer: Tokenizer) -> EngineParams:
    """What is the same for every prompt; `max_tokens` and `seed` are still to be set."""
    try:
        check(params, capacity.vocab_size)
    except ParameterError as error:
        raise InvalidRequest(str(error), error.param) from error
    if params.stop and not params.detokenize:
        raise InvalidRequest("stop strings need detokenize", "stop")
    stop_ids = dict.fromkeys(params.stop_token_ids)
    if not params.ignore_eos:
        stop_ids |= dict.fromkeys(tokenizer.special.eos_ids)
    if len(stop_ids) > MAX_STOP_TOKEN_IDS:
        message = f"stop_token_ids and the model's end tokens together are more than {MAX_STOP_TOKEN_IDS}"
        raise InvalidRequest(message, "stop_token_ids")
    rules = resolve_rules(params, list(stop_ids), capacity.vocab_size, tokenizer)
    return EngineParams(
        max_tokens=1,
        min_tokens=0 if params.structured is not None else params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=max(params.top_k, 0),
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logprobs=-1 if params.logprobs is None else params.logprobs,
        stop_token_ids=tuple(stop_ids),
        structured=_followed(params),
        logit_bias=rules.logit_bias,
        allowed_bits=rules.allowed_bits,
        bad_words=rules.bad_words,
        prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
    )


def _room(prompt: Prompt, params: SamplingParams, capacity: EngineReady, *, strict_max_tokens: bool) -> int:
    """How many tokens the context has room for behind a prompt. Raises InvalidRequest where it does not fit, or is none."""
    token_ids, field = prompt.token_ids, prompt.field
    length, room = len(token_ids), capacity.max_model_len - len(token_ids)
    if length == 0:
        raise InvalidRequest("the prompt is empty", field)
    if room < 1:
        raise too_long(length, capacity.max_model_len, field)
    if token_ids.min() < 0 or token_ids.max() >= capacity.vocab_size:
        raise InvalidRequest(f"the prompt holds token ids outside the vocabulary of {capacity.vocab_size}", field)
    if strict_max_tokens and params.max_tokens is not None and params.max_tokens > room:
        message = (
            f"This model's maximum context length is {capacity.max_model_len} tokens; the prompt of {length} leaves room for {room}"
            f", less than max_tokens, {params.max_tokens}"
        )
        raise InvalidRequest(message, "max_tokens", CONTEXT_LENGTH_EXCEEDED)
    if params.min_tokens > room:
        raise InvalidRequest(f"min_tokens is {params.min_tokens}, but there is room for {room}", "min_tokens")
    return room


def _followed(params: SamplingParams) -> Grammar | None:
    """The grammar, with a minimum that gives way where nothing but the end is left: only whoever follows it knows where that is."""
    if params.structured is None:
        return None
    return Grammar(params.structured.kind, params.structured.text, params.min_tokens)


def _seed(seed: int | None, index: int) -> int:
    assert seed is not None
    return (seed + index) % 2**63  # never negative, and an int64 also for the last of `n` at the limit
