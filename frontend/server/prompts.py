"""From what clients send to token ids: the one path of texts, token ids and conversations, for HTTP and IPC alike."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import msgspec
import numpy as np

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest
from frontend.server.text.control_tokens import MESSAGES, TOOLS
from frontend.server.text.conversation import templated
from frontend.server.text.rendering.renderer import Renderer, render_job
from frontend.server.text.tokenizer import Tokenizer, check_characters, last_characters
from frontend.server.text.tools.formats import described
from frontend.wire import TEMPLATE_ARGUMENTS, ChatTurn, Conversation, TextPrompt, TokenPrompt
from protocol.codec import Int32Array, unpack_int32
from protocol.errors import ProtocolError

Asked: TypeAlias = TextPrompt | TokenPrompt | Conversation | list[int]

# Work that takes a worker thread: 10,000 characters are about a millisecond of tokenization, which the event loop can spare.
_OFF_LOOP = 10_000
_TAIL = 64  # characters
_PIECE = 100  # characters that take as long as a message or a part does by itself, in checks and template

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, not yet checked against the model: int32, shape [tokens]."""

    token_ids: Int32Array
    field: str = "prompt"  # what its sender calls it
    tail: str = ""  # the end of a conversation's text, which tells what its answer begins with


@dataclass(frozen=True, slots=True)
class _RenderedPrompt:
    """A conversation that the chat template has rendered."""

    text: str
    fence: str
    add_special_tokens: bool


class Prompts:
    """Encodes prompts for one model."""

    def __init__(self, tokenizer: Tokenizer, renderer: Renderer, *, rewrites_tools: bool = True) -> None:
        """`rewrites_tools`: see ChatTemplate."""
        self._tokenizer = tokenizer
        self._renderer = renderer
        self._rewrites_tools = rewrites_tools

    async def encode(self, asked: Sequence[Asked], limit: int, keep: int | None = None) -> list[Prompt]:
        """Token ids of each prompt, off the event loop where that takes long. `limit`: tokens of context. `keep`: how many of the
        last ones are left of a longer one.

        Raises InvalidRequest on what is no prompt, or cannot fit.
        """
        ready = [await self._rendered(one, limit) if isinstance(one, Conversation) else one for one in asked]
        return await off_loop(sum(map(_size, ready)), lambda: [self.encode_now(one, limit, keep) for one in ready])

    def encode_now(
        self, asked: TextPrompt | TokenPrompt | list[int] | _RenderedPrompt, limit: int, keep: int | None = None
    ) -> Prompt:
        """Token ids of one prompt; thread-safe. Raises as `encode`."""
        if keep is None:
            return self._encode(asked, limit)
        match asked:
            case TextPrompt(text):  # what lies so far ahead is no part of the last tokens
                asked = msgspec.structs.replace(asked, text=last_characters(text, keep))
            case list():
                asked = asked[-keep:]
        prompt = self._encode(asked, limit)
        return replace(prompt, token_ids=prompt.token_ids[-keep:])

    def _encode(self, asked: TextPrompt | TokenPrompt | list[int] | _RenderedPrompt, limit: int) -> Prompt:
        match asked:
            case TokenPrompt(token_ids_i32):
                try:
                    return Prompt(unpack_int32(token_ids_i32))
                except ProtocolError as error:
                    raise InvalidRequest(str(error), "prompt") from error
            case TextPrompt(text, add_special_tokens, str() as suffix):
                ids = self._tokenizer.encode_around(text, suffix, add_special_tokens=add_special_tokens, limit=limit)
                return Prompt(_packed(ids))
            case TextPrompt(text, add_special_tokens):
                return Prompt(_packed(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, limit=limit)))
            case _RenderedPrompt(text, fence, add_special_tokens):
                ids = self._tokenizer.encode_conversation(text, add_special_tokens=add_special_tokens, limit=limit, fence=fence)
                return Prompt(_packed(ids), "messages", text[-_TAIL:])
            case _:
                if len(asked) >= limit:
                    raise too_long(len(asked), limit)
                try:
                    return Prompt(_packed(asked))
                except OverflowError as error:
                    raise InvalidRequest("the prompt holds token ids outside the vocabulary", "prompt") from error

    def job_now(self, asked: Conversation) -> tuple[bytes, str]:
        """A conversation for the renderer, and the fence in it; thread-safe. Raises as `encode`."""
        conversation = {"messages": templated(asked.turns), "tools": described(asked.tools)}
        fenced, fence = self._tokenizer.control.fence(conversation, {"messages": MESSAGES, "tools": TOOLS})
        job = render_job(
            fenced["messages"],
            tools=fenced["tools"],
            rewrites_tools=self._rewrites_tools,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            arguments={name: value for name in TEMPLATE_ARGUMENTS if (value := getattr(asked, name)) is not None},
        )
        return job, fence

    async def _rendered(self, asked: Conversation, limit: int) -> _RenderedPrompt:
        check_number(len(asked.turns), limit)
        check_characters(sum(map(_content_size, asked.turns)), limit, "messages")
        job, fence = await off_loop(_size(asked), lambda: self.job_now(asked))
        # Templates write their own special tokens.
        return _RenderedPrompt(await self._renderer.render(job), fence, asked.add_special_tokens)


def too_long(length: int, limit: int, field: str = "prompt") -> InvalidRequest:
    """A prompt that leaves no room in the context."""
    message = f"This model's maximum context length is {limit} tokens; the prompt has {length}, and one more must fit"
    return InvalidRequest(message, field, CONTEXT_LENGTH_EXCEEDED)


def check_number(messages: int, limit: int) -> None:
    """Raises InvalidRequest on a conversation of more messages than the context has tokens."""
    if messages > limit:
        message = f"This model's maximum context length is {limit} tokens; the conversation has {messages} messages"
        raise InvalidRequest(message, "messages", CONTEXT_LENGTH_EXCEEDED)


async def off_loop(size: int, function: Callable[[], Value]) -> Value:
    """Runs work on `size` characters where it does not hold up the streams of others."""
    return function() if size < _OFF_LOOP else await asyncio.to_thread(function)


def _packed(token_ids: list[int]) -> Int32Array:
    return np.array(token_ids, np.int32)


def _size(asked: Asked | _RenderedPrompt) -> int:
    match asked:
        case TextPrompt(text, _, suffix):
            return len(text) + len(suffix or "")
        case _RenderedPrompt(text):
            return len(text)
        case Conversation(turns):
            size = _PIECE * (len(turns) + 10 * len(asked.tools))
            return size if size >= _OFF_LOOP else size + sum(map(_turn_size, turns))
        case list():
            return len(asked) // 2  # about 50 ns each
    return 0


def _content_size(turn: ChatTurn) -> int:
    return sum(map(len, turn.content)) if isinstance(turn.content, list) else len(turn.content or "")


def _turn_size(turn: ChatTurn) -> int:
    parts = turn.content if isinstance(turn.content, list) else [turn.content or ""]
    texts = [*parts, turn.name or "", turn.reasoning or "", *(call.arguments for call in turn.tool_calls)]
    return _PIECE * (1 + len(parts) + len(turn.tool_calls)) + sum(map(len, texts))
