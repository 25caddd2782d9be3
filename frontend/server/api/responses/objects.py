"""What POST /v1/responses answers, and the events of its streams."""

from typing import Any, Literal, TypeAlias

import msgspec

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class Logprob(msgspec.Struct, kw_only=True):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Logprob, kw_only=True):
    """A token of the text, and what else was likely there."""

    top_logprobs: list[Logprob]


class OutputText(msgspec.Struct, kw_only=True, tag="output_text"):
    """The text of a message."""

    text: str = ""
    annotations: list[str] = []
    logprobs: list[dict[str, Any]] = []


class ReasoningText(msgspec.Struct, kw_only=True, tag="reasoning_text"):
    """What the model thought."""

    text: str = ""


class Message(msgspec.Struct, kw_only=True, tag="message"):
    """What the assistant says."""

    id: str
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class FunctionCall(msgspec.Struct, kw_only=True, tag="function_call"):
    """A call of a function. `arguments`: JSON."""

    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class ReasoningItem(msgspec.Struct, kw_only=True, tag="reasoning"):
    """What the model thought before it answered."""

    id: str
    status: Status = "in_progress"
    summary: list[str] = []
    content: list[ReasoningText] = []


Item: TypeAlias = Message | FunctionCall | ReasoningItem


class Usage(msgspec.Struct, kw_only=True):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Failure(msgspec.Struct, kw_only=True):
    """Why there is no answer."""

    code: Literal["server_error"] = "server_error"
    message: str


class Incomplete(msgspec.Struct, kw_only=True):
    """Why the answer ends where it ends."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(msgspec.Struct, kw_only=True):
    """The answer, with what was asked for."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: Literal[False] = False
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: None = None
    model: str
    output: list[Item] = []
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    reasoning: dict[str, Any] = {}
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float = 1.0
    text: dict[str, Any] = {}
    tool_choice: Any = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["disabled"] = "disabled"
    usage: Usage | None = None
    user: None = None
    metadata: dict[str, str] = {}


class ResponseEvent(msgspec.Struct, kw_only=True):
    """One event of a stream; which fields it has is up to its type."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None
    output_index: int | None = None
    content_index: int | None = None
    item_id: str | None = None
    item: Item | None = None
    part: OutputText | ReasoningText | None = None
    delta: str | None = None
    text: str | None = None
    arguments: str | None = None
    name: str | None = None
    logprobs: list[dict[str, Any]] | None = None
