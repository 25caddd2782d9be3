"""From the prompt of a Python client to token ids."""

import asyncio

from frontend.errors import InvalidRequest
from frontend.server.api.chat import flatten
from frontend.server.api.schemas import ChatMessage
from frontend.server.generation import TextEngine
from frontend.wire import Conversation, Prompt, TextPrompt, TokenPrompt
from protocol.codec import unpack_int32
from protocol.errors import ProtocolError

# Characters that take a worker thread: fewer are about a millisecond of tokenization, which the event loop can spare.
_OFF_LOOP = 10_000


async def prompt_token_ids(engine: TextEngine, prompt: Prompt) -> list[int]:
    """Token ids of the prompt. Raises InvalidRequest when it is none."""
    match prompt:
        case TokenPrompt(token_ids_i32):
            try:
                token_ids: list[int] = unpack_int32(token_ids_i32).tolist()
            except ProtocolError as error:
                raise InvalidRequest(str(error), "prompt") from error
            return token_ids
        case TextPrompt(text, add_special_tokens):
            if len(text) < _OFF_LOOP:
                return engine.encode(text, add_special_tokens)
            return await asyncio.to_thread(engine.encode, text, add_special_tokens)
        case Conversation(turns):
            if sum(len(turn.content) for turn in turns) < _OFF_LOOP:
                return _render(engine, prompt)
            return await asyncio.to_thread(_render, engine, prompt)


def _render(engine: TextEngine, conversation: Conversation) -> list[int]:
    messages = flatten([ChatMessage(turn.role, turn.content, turn.name) for turn in conversation.turns])
    text = engine.chat_template.render(
        messages,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
    )
    return engine.encode(text, False)  # templates write their own special tokens
