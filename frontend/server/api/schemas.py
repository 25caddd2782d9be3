"""The bodies of requests.

Unknown fields are ignored, as clients send many; known ones that ask for what the engine cannot do are refused.
"""

import re
from collections.abc import Sequence
from typing import ClassVar, Protocol

import msgspec
from msgspec.structs import replace

from frontend import messages
from frontend.errors import InvalidRequest
from frontend.server.api import structured
from frontend.server.api.decoding import BodyDecoder
from frontend.server.api.errors import ApiError, from_decoding
from frontend.server.api.tools import (
    CallInMessage,
    FunctionDefinition,
    FunctionInMessage,
    FunctionName,
    ToolChoice,
    ToolDefinition,
    as_tool,
    calls_of,
)
from frontend.wire import ChatTurn, Conversation, Tool
from protocol.params import Grammar, SamplingDefaults, SamplingParams

_ABSENT = msgspec.Raw(b"")
_LONGEST_NEUTRAL = 1000  # bytes; what is longer is not decoded only to see whether it is empty

# Neutral values of fields that are not supported, besides null, false, "", [] and {}.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    "length_penalty": (1, 1.0),
}


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream reports besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that completions and chats share. null means the default everywhere."""

    model: str | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    timeout: float | None = None
    priority: int | None = None
    cache_salt: str | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # read by `frontend.server.api.structured`
    response_format: msgspec.Raw = _ABSENT
    structured_outputs: msgspec.Raw = _ABSENT
    guided_json: msgspec.Raw = _ABSENT
    guided_regex: msgspec.Raw = _ABSENT
    guided_choice: msgspec.Raw = _ABSENT
    guided_grammar: msgspec.Raw = _ABSENT

    use_beam_search: msgspec.Raw = _ABSENT
    length_penalty: msgspec.Raw = _ABSENT

    unsupported: ClassVar[tuple[str, ...]] = (
        "use_beam_search",
        "length_penalty",
    )

    @property
    def choices(self) -> int:
        """How many outputs each prompt gets."""
        return 1 if self.n is None else self.n

    @property
    def outputs(self) -> int:
        """How many outputs are generated for each prompt; the best ones are its choices."""
        return self.choices

    def sampling(self, defaults: SamplingDefaults, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters; what is null here takes its default there. Not yet checked for range."""
        if defaults.max_tokens is not None:
            max_tokens = defaults.max_tokens if max_tokens is None else min(max_tokens, defaults.max_tokens)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        grammar, _ = self.grammar()
        given = {**defaults.given(), **given, "max_tokens": max_tokens}
        return SamplingParams(logprobs=logprobs, stop=stop or [], structured=grammar, **given)

    def grammar(self) -> tuple[Grammar | None, str]:
        """What the output must be, and the field that says so. Raises InvalidRequest or ApiError naming the field that is wrong."""
        return structured.grammar_of({name: getattr(self, name) for name in structured.FIELDS})


_SAMPLING_FIELDS = tuple(
    name
    for name in GenerationRequest.__struct_fields__
    if name in SamplingParams.__struct_fields__ and name not in ("max_tokens", "stop")
)


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    prompt_embeds: msgspec.Raw = _ABSENT

    unsupported: ClassVar[tuple[str, ...]] = (*GenerationRequest.unsupported, "prompt_embeds")

    @property
    def outputs(self) -> int:
        """See GenerationRequest."""
        return self.choices if self.best_of is None else self.best_of


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message's content."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None  # vLLM's name of it
    reasoning_content: str | None = None  # DeepSeek's

    tool_calls: list[CallInMessage] | None = None
    function_call: FunctionInMessage | None = None  # before there were tools
    refusal: msgspec.Raw = _ABSENT
    audio: msgspec.Raw = _ABSENT
    images: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    prefix: msgspec.Raw = _ABSENT
    partial: msgspec.Raw = _ABSENT

    def turn(self, where: str) -> ChatTurn:
        """The message as the engine takes it. `where`: its path. Raises InvalidRequest naming what is not supported."""
        for name in messages.UNSUPPORTED:
            if (given := getattr(self, name)) is not _ABSENT and asks_for_something(name, given):
                raise messages.unsupported(name, where)
        content: str | list[str] | None
        if isinstance(self.content, list):
            content = [_text_of(part, f"{where}.content[{index}]") for index, part in enumerate(self.content)]
        else:
            content = self.content
        reasoning = self.reasoning_content if self.reasoning is None else self.reasoning
        turn = ChatTurn(self.role, content, self.name, reasoning, self.tool_call_id)
        if self.function_call is not None or self.role == "function":
            return as_tool(turn, self.function_call)
        return replace(turn, tool_calls=calls_of(self.tool_calls)) if self.tool_calls else turn


def _text_of(part: ContentPart, where: str) -> str:
    if part.type not in messages.TEXT_PARTS or part.text is None:
        raise messages.no_text(part.type, where)
    return part.text


class ChatArguments(msgspec.Struct, frozen=True):
    """The template variables that a client may set. Others are ignored: a template's own names are not a client's to change."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: str | None = None


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatArguments | None = None
    chat_template: msgspec.Raw = _ABSENT
    tools: list[ToolDefinition] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = None  # before there were tools
    function_call: str | FunctionName | None = None
    include_reasoning: bool | None = None
    reasoning_effort: str | None = None
    documents: msgspec.Raw = _ABSENT
    modalities: msgspec.Raw = _ABSENT
    audio: msgspec.Raw = _ABSENT
    echo: msgspec.Raw = _ABSENT

    unsupported: ClassVar[tuple[str, ...]] = (
        *GenerationRequest.unsupported,
        "chat_template",
        "documents",
        "modalities",
        "audio",
        "echo",
    )


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatArguments | None = None
    return_token_strs: bool | None = None
    chat_template: msgspec.Raw = _ABSENT
    tools: list[ToolDefinition] | None = None

    unsupported: ClassVar[tuple[str, ...]] = ("chat_template",)


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


COMPLETION_DECODER = BodyDecoder(CompletionRequest)
CHAT_DECODER = BodyDecoder(ChatRequest)
TOKENIZE_DECODER = BodyDecoder(TokenizeRequest)
DETOKENIZE_DECODER = BodyDecoder(DetokenizeRequest)


def conversation(asked: ChatRequest | TokenizeRequest, tools: Sequence[Tool] = ()) -> Conversation:
    """The conversation as the engine takes it. Raises InvalidRequest naming what in a message is not supported."""
    arguments = _arguments(asked)
    continues = asked.continue_final_message is True
    return Conversation(
        [message.turn(f"messages[{index}]") for index, message in enumerate(asked.messages or ())],
        add_generation_prompt=not continues if asked.add_generation_prompt is None else asked.add_generation_prompt,
        continue_final_message=continues,
        add_special_tokens=asked.add_special_tokens is True,
        enable_thinking=arguments.enable_thinking,
        tools=tuple(tools),
        thinking=arguments.thinking,
        reasoning_effort=arguments.reasoning_effort,
    )


def _arguments(asked: ChatRequest | TokenizeRequest) -> ChatArguments:
    """The template's variables. An effort of "none" is the switch that the model's template has."""
    arguments = asked.chat_template_kwargs or ChatArguments()
    effort = asked.reasoning_effort if isinstance(asked, ChatRequest) else None
    if effort is not None and arguments.reasoning_effort is None:
        arguments = replace(arguments, reasoning_effort=effort)
    if arguments.reasoning_effort is None:
        return arguments
    if _EFFORT.fullmatch(arguments.reasoning_effort) is None:
        raise InvalidRequest("reasoning_effort is a word such as low, medium or high", "reasoning_effort")
    if arguments.reasoning_effort != "none":
        return arguments
    off = [name for name in ("enable_thinking", "thinking") if getattr(arguments, name) is None]
    return replace(arguments, **dict.fromkeys(off, False))


_EFFORT = re.compile(r"[a-z]{1,16}")


class KnowsUnsupported(Protocol):
    """A body with fields that are only there to be refused."""

    unsupported: ClassVar[tuple[str, ...]]


def refuse_unsupported(request: KnowsUnsupported) -> None:
    """Raises ApiError naming the first field that asks for what the engine cannot do."""
    for name in request.unsupported:
        if asks_for_something(name, getattr(request, name)):
            raise ApiError(400, f"{name} is not supported", param=name, code="unsupported_parameter")


def asks_for_something(name: str, raw: msgspec.Raw) -> bool:
    """Whether a field holds more than a neutral value."""
    data = bytes(raw)
    if not data:
        return False
    if len(data) > _LONGEST_NEUTRAL:
        return True
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_decoding(error) from error
    if value is None or value is False or (isinstance(value, str | list | dict) and not value):
        return False
    return not any(type(value) is type(neutral) and value == neutral for neutral in _NEUTRAL.get(name, ()))
