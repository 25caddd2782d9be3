"""How many things a large frame is made of, before they are made: each costs far more than its bytes.

Messages are decoded with all that a client chooses the number of left as bytes. msgspec skips such bytes fast, and the head of a
msgpack array tells its length. The schemas of tools may hold anything, so their bytes count instead.
"""

from collections.abc import Iterable, Iterator

import msgspec

from protocol.codec import Decoder
from protocol.messages import Message

Raw = msgspec.Raw
_EMPTY = Raw(b"\x90")
_SCHEMA_BYTES = 1 << 18  # of all tools: as many lists, at worst; a schema that a grammar follows has no more characters


class _Tokens(Message, frozen=True, tag="tokens"):
    pass


class _Text(Message, frozen=True, tag="text"):
    pass


class _Turn(Message, frozen=True):
    role: Raw
    content: Raw
    name: Raw = _EMPTY
    reasoning: Raw = _EMPTY
    tool_call_id: Raw = _EMPTY
    tool_calls: Raw = _EMPTY


class _Tool(Message, frozen=True):
    name: Raw
    description: Raw = _EMPTY
    parameters: Raw = _EMPTY


class _Conversation(Message, frozen=True, tag="conversation"):
    turns: Raw
    add_generation_prompt: Raw = _EMPTY
    continue_final_message: Raw = _EMPTY
    add_special_tokens: Raw = _EMPTY
    enable_thinking: Raw = _EMPTY
    tools: Raw = _EMPTY


class _Submit(Message, frozen=True, tag="submit"):
    request_id: Raw
    prompt: _Tokens | _Text | _Conversation


class _Tokenize(Message, frozen=True, tag="tokenize"):
    request_id: Raw
    prompt: _Tokens | _Text | _Conversation


class _Hello(Message, frozen=True, tag="hello"):
    pass


class _Cancel(Message, frozen=True, tag="cancel"):
    pass


class _Ask(Message, frozen=True, tag="ask"):
    pass


class _Detokenize(Message, frozen=True, tag="detokenize"):
    pass


class _Embed(Message, frozen=True, tag="embed"):
    request_id: Raw
    prompts: Raw


_Shape = _Embed | _Submit | _Tokenize | _Hello | _Cancel | _Ask | _Detokenize
_SHAPES: Decoder[list[_Shape]] = Decoder(list[_Shape])
_TURNS: Decoder[list[_Turn]] = Decoder(list[_Turn])
_TOOLS: Decoder[list[_Tool]] = Decoder(list[_Tool])


def is_too_much(frame: bytes, most: int) -> bool:
    """Whether it has more than `most` turns, parts, calls, tools and prompts to embed, or its tools larger schemas than they may
    have.

    Raises ProtocolError when the frame is no list of messages.
    """
    messages = _SHAPES.decode(frame)
    count = sum(length(message.prompts) for message in messages if isinstance(message, _Embed))
    size = 0
    for asked in _conversations(messages):
        count += length(asked.turns) + length(asked.tools)
        if count > most:
            return True
        for turn in _TURNS.decode(memoryview(asked.turns)):
            count += length(turn.content) + length(turn.tool_calls)
        size += sum(len(memoryview(tool.parameters)) for tool in _TOOLS.decode(memoryview(asked.tools)))
        if count > most or size > _SCHEMA_BYTES:
            return True
    return count > most


def length(data: bytes | msgspec.Raw) -> int:
    """Of a msgpack array, as its head says; 0 of anything else."""
    with memoryview(data) as view:
        first = view[0] if len(view) else 0
        if 0x90 <= first <= 0x9F:
            return first - 0x90
        if first not in (0xDC, 0xDD):
            return 0
        return int.from_bytes(view[1 : 3 if first == 0xDC else 5], "big")


def _conversations(messages: Iterable[_Shape]) -> Iterator[_Conversation]:
    for message in messages:
        if isinstance(message, (_Submit, _Tokenize)) and isinstance(message.prompt, _Conversation):
            yield message.prompt
