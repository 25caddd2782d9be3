"""How a request wants its tokens chosen: as users say it, and as the engine needs it."""

from typing import Literal

import msgspec

MAX_LOGPROBS = 20  # what OpenAI allows; the device program that finds the top candidates is compiled for this many
MAX_STOP_TOKEN_IDS = 16  # held per slot on the device, where min_tokens masks them
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 4096  # of all stop strings of a request: each is an automaton
MAX_TIMEOUT = 1e6  # seconds
MAX_LOGIT_BIAS = 512  # tokens of a request; held per slot on the device, like the next two
MAX_BAD_WORDS = 64  # strings of a request, each as up to two sequences of tokens: with and without a space before it
MAX_BAD_WORD_TOKENS = 16  # of one sequence
MAX_BAD_WORD_CHARACTERS = 4096  # of all of them
BANNED = -100.0  # the logit_bias that rules a token out; what is added to the others is at most as far from zero
MAX_CHOICES = 128  # `n`: each choice is a request of its own, so it is bounded before anything is allocated
SEED_LIMIT = 2**63
MAX_GRAMMAR_CHARACTERS = 1 << 18  # of a schema, expression or grammar; ten thousand values of an enumeration need half of that
# Below this a temperature means greedy, as in vLLM: logits divided by less leave the range of float32, and another token than the
# most likely one would be drawn only where the two are as good as equal.
MIN_TEMPERATURE = 1e-5
# Logits are divided and multiplied by a repetition penalty, so it goes as far down as it goes up.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0


Pooling = Literal["last", "mean"]  # of the states behind the last norm: the last token's, or the mean over all tokens


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What an output must be. The engine follows it token by token: what it does not allow is never sampled."""

    kind: Literal["json_object", "json_schema", "regex", "choice", "lark", "gbnf", "structural_tag"]
    text: str = ""  # the schema, structural tag or list of choices as JSON; the expression; the grammar
    min_tokens: int = 0  # before which no end of sequence is sampled where the output may go on


class SamplingParams(
    msgspec.Struct, frozen=True, omit_defaults=True, repr_omit_defaults=True, forbid_unknown_fields=True, kw_only=True
):
    """Sampling parameters with vLLM's names and meanings.

    `max_tokens=None` generates to the end of the answer or of the context. A `temperature` below 1e-5 is greedy. `top_k=0`
    and `-1` switch top-k off. `logprobs=k` returns the log-probability of each chosen token and of the k most likely ones,
    `prompt_logprobs=k` those of each token of the prompt but the first; with it, `max_tokens` may be 0.
    `truncate_prompt_tokens=k` leaves of the prompt its last k tokens, -1 as many as the context has room for.

    `timeout` seconds after its acceptance a request is ended with an error, wherever it stands.

    `logit_bias` adds to the logits of tokens, -100 rules one out. `allowed_token_ids` rules out all others. `bad_words`, as
    the tokenizer writes them: the last token of one is ruled out where the output ends with those before it.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    detokenize: bool = True
    priority: int = 0
    structured: Grammar | None = None
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] = []
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    timeout: float | None = None


class SamplingDefaults(msgspec.Struct, frozen=True):
    """What the model's files, or the operator, set for requests that say nothing. HTTP clients get `max_tokens` at most."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None

    def given(self) -> dict[str, float | int]:
        """Those that are set, by name."""
        return {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) is not None}

    def params(self) -> SamplingParams:
        """The parameters of a request that says nothing."""
        return msgspec.structs.replace(SamplingParams(), **self.given())


class EngineParams(msgspec.Struct, frozen=True, array_like=True):
    """Sampling parameters after the frontend resolved every default: what scheduler and worker read.

    `stop_token_ids` holds the end-of-sequence ids too unless the request ignores them. `logprobs=-1` means none. `top_k=0`
    means off. `seed` is always set: a request without one is given one when it is accepted. `allowed_bits` is empty, or has a bit
    for each token of the vocabulary: bit b of its little-endian uint32 word w is token 32 w + b.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int = -1
    stop_token_ids: tuple[int, ...] = ()
    structured: Grammar | None = None
    logit_bias: dict[int, float] = {}
    allowed_bits: bytes = b""
    bad_words: tuple[tuple[int, ...], ...] = ()  # as tokens, none empty
    prompt_logprobs: int = -1  # as `logprobs`, for the tokens of the prompt
    pooling: Literal["", Pooling] = ""  # an embedding of the prompt is wanted, so pooled, and no output; max_tokens is 1 then

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken, after penalties."""
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether sampling reads the token history."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def has_rules(self) -> bool:
        """Whether some tokens are ruled out or favoured."""
        return bool(self.logit_bias or self.allowed_bits or self.bad_words)


class ParameterError(ValueError):
    """A sampling parameter is out of range; `param` is its name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def check(params: SamplingParams, vocab_size: int) -> None:
    """Raises ParameterError, naming the field, when a value is out of range."""
    _between("n", params.n, 1, MAX_CHOICES)
    if params.max_tokens is not None:
        _between("max_tokens", params.max_tokens, 1 if params.prompt_logprobs is None else 0, 2**31 - 1)
    _between("min_tokens", params.min_tokens, 0, params.max_tokens if params.max_tokens is not None else 2**31 - 1)
    _between("temperature", params.temperature, 0.0, 100.0)
    if not 0.0 < params.top_p <= 1.0:
        raise ParameterError("top_p", f"top_p must be in (0, 1], not {params.top_p}")
    _between("top_k", params.top_k, -1, 2**31 - 1)
    _between("min_p", params.min_p, 0.0, 1.0)
    if params.seed is not None:
        _between("seed", params.seed, -SEED_LIMIT, SEED_LIMIT - 1)
    _between("repetition_penalty", params.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
    _between("presence_penalty", params.presence_penalty, -2.0, 2.0)
    _between("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is not None:
            _between(name, count, 0, MAX_LOGPROBS)
    _check_texts("stop", params.stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise ParameterError(
            "stop_token_ids", f"stop_token_ids: at most {MAX_STOP_TOKEN_IDS} ids, not {len(params.stop_token_ids)}"
        )
    for token_id in params.stop_token_ids:
        _between("stop_token_ids", token_id, 0, vocab_size - 1)
    if params.timeout is not None and not 0.0 < params.timeout <= MAX_TIMEOUT:
        raise ParameterError("timeout", f"timeout must be above 0 and at most {MAX_TIMEOUT:g} seconds, not {params.timeout:g}")
    if params.truncate_prompt_tokens is not None:
        _between("truncate_prompt_tokens", params.truncate_prompt_tokens, -1, 2**31 - 1)
    if len(params.logit_bias) > MAX_LOGIT_BIAS:
        raise ParameterError("logit_bias", f"logit_bias: at most {MAX_LOGIT_BIAS} tokens, not {len(params.logit_bias)}")
    for token_id, bias in params.logit_bias.items():
        _between("logit_bias", token_id, 0, vocab_size - 1)
        _between("logit_bias", bias, BANNED, -BANNED)
    if params.allowed_token_ids is not None:
        if not params.allowed_token_ids:
            raise ParameterError("allowed_token_ids", "allowed_token_ids is empty: no token could be chosen")
        if len(params.allowed_token_ids) > vocab_size:
            text = f"allowed_token_ids: at most {vocab_size} ids, all of the vocabulary, not {len(params.allowed_token_ids)}"
            raise ParameterError("allowed_token_ids", text)
        for token_id in (min(params.allowed_token_ids), max(params.allowed_token_ids)):
            _between("allowed_token_ids", token_id, 0, vocab_size - 1)
    _check_texts("bad_words", params.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)
    if not all(map(str.strip, params.bad_words)):
        raise ParameterError("bad_words", "bad_words: a string of nothing but spaces is no word")
    _between("priority", params.priority, -(2**31), 2**31 - 1)
    if params.structured is not None and (size := len(params.structured.text)) > MAX_GRAMMAR_CHARACTERS:
        message = f"structured: at most {MAX_GRAMMAR_CHARACTERS} characters of a grammar, not {size}"
        raise ParameterError("structured_outputs", message)


def _check_texts(name: str, texts: list[str], most: int, characters: int) -> None:
    if len(texts) > most:
        raise ParameterError(name, f"{name}: at most {most} strings, not {len(texts)}")
    if (total := sum(map(len, texts))) > characters:
        raise ParameterError(name, f"{name}: at most {characters} characters in all, not {total}")
    if any(not 1 <= len(text) <= 1024 for text in texts):
        raise ParameterError(name, f"{name}: each string must have 1 to 1024 characters")


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        shown = "an integer beyond 64 bits" if isinstance(value, int) and value.bit_length() > 64 else value
        raise ParameterError(name, f"{name} must be between {low} and {high}, not {shown}")
