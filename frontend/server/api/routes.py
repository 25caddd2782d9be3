"""Every route: what answers it, and what its description says. The application and the description are both made of this table."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from frontend.server.api import schemas, service, shapes, tokens
from frontend.server.api.anthropic.objects import AnthropicErrorAnswer, MessageAnswer, MessageEvent, TokenCount
from frontend.server.api.anthropic.request import CountRequest, MessagesRequest
from frontend.server.api.anthropic.route import count_tokens, messages
from frontend.server.api.chat import chat_completions
from frontend.server.api.completions import completions
from frontend.server.api.embeddings import EmbeddingRequest, embeddings
from frontend.server.api.metrics import MetricsRoute
from frontend.server.api.responses.objects import ResponseEvent, ResponseObject
from frontend.server.api.responses.request import ResponsesRequest
from frontend.server.api.responses.route import responses, stored_response
from frontend.server.generation import TextEngine

Handler = Callable[[Request], Awaitable[ASGIApp]]

_BODY = (400, 404, 408, 413, 415)  # errors of routes that read a body
_ENGINE = (429, 500, 503)  # and of those that ask the engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: Literal["GET", "POST", "DELETE"] = "GET"
    path: str
    handler: Handler
    group: str
    summary: str
    answer: type[msgspec.Struct] | str | None  # its type; or, where it is not JSON, its media type; None: errors only
    body: type[msgspec.Struct] | None = None
    events: type[msgspec.Struct] | Any = None  # the type of each event, where `stream` asks for them
    error: type[msgspec.Struct] = shapes.ErrorAnswer
    errors: Sequence[int] = ()  # besides 401, which all have that need a key
    is_open: bool = False  # needs no key


def operations(engine: TextEngine) -> list[Operation]:
    """All of them, in the order in which the description shows them."""
    return [
        Operation(
            method="POST",
            path="/v1/chat/completions",
            handler=chat_completions,
            group="Generation",
            summary="The assistant's next message in a conversation.",
            body=schemas.ChatRequest,
            answer=shapes.ChatCompletion,
            events=shapes.ChatChunk,
            errors=(*_BODY, *_ENGINE),
        ),
        Operation(
            method="POST",
            path="/v1/completions",
            handler=completions,
            group="Generation",
            summary="Texts that go on from prompts.",
            body=schemas.CompletionRequest,
            answer=shapes.Completion,
            events=shapes.Completion,
            errors=(*_BODY, *_ENGINE),
        ),
        Operation(
            method="POST",
            path="/v1/embeddings",
            handler=embeddings,
            group="Embeddings",
            summary="A list of numbers for each text, near each other for texts that mean the same.",
            body=EmbeddingRequest,
            answer=shapes.EmbeddingList,
            errors=(*_BODY, *_ENGINE),
        ),
        Operation(
            method="POST",
            path="/v1/responses",
            handler=responses,
            group="Generation",
            summary="The assistant's answer to a conversation, in OpenAI's newer form. Nothing is stored.",
            body=ResponsesRequest,
            answer=ResponseObject,
            events=ResponseEvent,
            errors=(*_BODY, *_ENGINE),
        ),
        Operation(
            method="POST",
            path="/v1/messages",
            handler=messages,
            group="Generation",
            summary="The assistant's next message, as Anthropic's clients ask for it.",
            body=MessagesRequest,
            answer=MessageAnswer,
            events=MessageEvent,
            error=AnthropicErrorAnswer,
            errors=(*_BODY, *_ENGINE),
        ),
        Operation(
            method="POST",
            path="/v1/messages/count_tokens",
            handler=count_tokens,
            group="Generation",
            summary="How many tokens such a conversation has.",
            body=CountRequest,
            answer=TokenCount,
            error=AnthropicErrorAnswer,
            errors=_BODY,
        ),
        *(
            Operation(
                method=method,
                path="/v1/responses/{name}",
                handler=stored_response,
                group="Generation",
                summary="A response that was stored: there is none.",
                answer=None,
                errors=(404,),
            )
            for method in ("GET", "DELETE")
        ),
        Operation(
            path="/v1/models",
            handler=service.models,
            group="Model",
            summary="The names that the model is served under.",
            answer=shapes.ModelList,
        ),
        Operation(
            path="/v1/models/{name:path}",
            handler=service.model,
            group="Model",
            summary="One of these names.",
            answer=shapes.ModelCard,
            errors=(404,),
        ),
        Operation(
            method="POST",
            path="/tokenize",
            handler=tokens.tokenize,
            group="Tokenizer",
            summary="A text, or a conversation, as the model reads it.",
            body=schemas.TokenizeRequest,
            answer=shapes.Tokens,
            errors=_BODY,
        ),
        Operation(
            method="POST",
            path="/detokenize",
            handler=tokens.detokenize,
            group="Tokenizer",
            summary="The text of tokens.",
            body=schemas.DetokenizeRequest,
            answer=shapes.Text,
            errors=_BODY,
        ),
        Operation(
            path="/tokenizer_info",
            handler=tokens.show_tokenizer,
            group="Tokenizer",
            summary="What programs need that tokenize by themselves: special tokens and the chat template.",
            answer=shapes.TokenizerInfo,
        ),
        *(
            Operation(
                path=path,
                handler=handler,
                group="Engine",
                summary=summary,
                answer=shapes.Health,
                errors=(503,),
                is_open=True,
            )
            for path, handler, summary in (
                ("/health", service.health, "Whether the engine lives: requests are taken, and a worker is alive."),
                ("/ready", service.ready, "Whether a request would be taken now: 503 too while as many are under way as may be."),
                ("/ping", service.health, "The same as /health."),
            )
        ),
        Operation(
            path="/version",
            handler=service.show_version,
            group="Engine",
            summary="The engine's version.",
            answer=shapes.Version,
            is_open=True,
        ),
        Operation(
            path="/metrics",
            handler=MetricsRoute(engine).show,
            group="Engine",
            summary="What the engine counts, for Prometheus: as text, or in OpenMetrics' format where the client accepts that.",
            answer="text/plain",
            is_open=True,
        ),
    ]
