"""The shapes of answers, for the description of the interface. What is written is checked against them in tests."""

from typing import Literal

import msgspec

from protocol.messages import FinishReason


class Error(msgspec.Struct, kw_only=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """Every answer whose status is not 2xx, and the last event of a stream that fails."""

    error: Error


class Usage(msgspec.Struct, kw_only=True):
    """Tokens read and written. A prompt counts once, however many outputs it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


class Embedding(msgspec.Struct, kw_only=True):
    """That of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str  # numbers, or base64 of them as little-endian float32


class EmbeddingList(msgspec.Struct, kw_only=True):
    """In the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Parallel lists, one entry per token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One output of a completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(msgspec.Struct, kw_only=True):
    """The texts. In a stream each event has the same shape, with one choice that holds what was added; the last has none."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Candidate(msgspec.Struct, kw_only=True):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenCandidates(Candidate, kw_only=True):
    """A token of the text, and what else was likely there."""

    top_logprobs: list[Candidate]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    """One entry per token."""

    content: list[TokenCandidates] | None


class CalledFunction(msgspec.Struct, kw_only=True):
    """Which function, and its arguments as JSON. In a stream both may be parts."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct, kw_only=True):
    """A call that the assistant asks for. `index` in streams only, where `id`, `type` and name come with the first part."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None
    index: int | None = None


class AssistantMessage(msgspec.Struct, kw_only=True):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, by vLLM's newer name
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None  # where the request had `functions`


class ChatChoice(msgspec.Struct, kw_only=True):
    """One answer of a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The assistant's message, `n` times."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """What an event adds to one answer."""

    index: int
    delta: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class ChatChunk(msgspec.Struct, kw_only=True):
    """One event of a streamed chat. The one that holds the usage has no choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ModelCard(msgspec.Struct, kw_only=True):
    """A name that the model is served under."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(msgspec.Struct, kw_only=True):
    """All names."""

    object: Literal["list"]
    data: list[ModelCard]


class Tokens(msgspec.Struct, kw_only=True):
    """A prompt as the model reads it."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(msgspec.Struct, kw_only=True):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """As in a Hugging Face `tokenizer_config.json`, where `additionalProperties` are the model's other special tokens."""

    tokenizer_class: str
    model_max_length: int
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    bos_token_id: int | None
    eos_token_id: list[int]
    add_bos_token: bool
    add_eos_token: bool
    additional_special_tokens: list[str]
    added_tokens_decoder: dict[str, dict[str, str | bool]]
    chat_template: str | None


class Health(msgspec.Struct, kw_only=True):
    """How the engine is; why it does not serve, where the status is 503."""

    status: str
    workers: int
    workers_wanted: int


class Version(msgspec.Struct, kw_only=True):
    """Of the engine."""

    version: str
