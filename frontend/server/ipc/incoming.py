"""From the frames of a Python client to messages. A message of a wrong type is refused alone, by the name of its field."""

import re

import msgspec

from frontend.server.ipc.structure import is_too_much, length
from frontend.wire import (
    CLIENT_MESSAGES,
    MOST_MESSAGES,
    WHOLE_CONNECTION,
    Ask,
    Cancel,
    ClientMessage,
    Detokenize,
    Embed,
    Hello,
    Refused,
    Submit,
    Tokenize,
)
from protocol.codec import Decoder
from protocol.errors import ProtocolError
from protocol.messages import Message

_LARGEST_TAKEN_APART = 1 << 20  # bytes: as much as clients put into one frame, and what a hostile one makes of it is still little

_SMALL = 256 << 10  # bytes: whatever a smaller frame holds is made in some ten milliseconds
_MOST_PARTS = 100_000  # turns, parts, calls and tools of a message: a tenth of a second's work, and more than any context holds
_MOST_REFUSED = 16  # in a frame: each takes far longer than the bytes that ask for it

_PARTS: Decoder[list[msgspec.Raw]] = Decoder(list[msgspec.Raw])
_MESSAGE: Decoder[ClientMessage] = Decoder(ClientMessage)
_FIELDS = {kind.__struct_config__.tag: kind.__struct_fields__ for kind in (Hello, Submit, Cancel, Ask, Tokenize, Detokenize, Embed)}
_PLACE = re.compile(r" - at `\$\[(\d+)\](.*)`$")  # how msgspec names it: the index in the message, and the way from there
# msgpack: an array of messages, the first one an array that begins with a short text and a number (of one of five widths).
_REQUEST = re.compile(
    rb"(?:[\x90-\x9f]|\xdc..|\xdd....)[\x91-\x9f][\xa0-\xbf][a-z]+"
    rb"(?:([\x01-\x7f])|\xcc(.)|\xcd(..)|\xce(....)|\xcf(.{8}))",
    re.DOTALL,
)


class _Head(Message, frozen=True):
    """What every message of a request begins with, whatever follows."""

    tag: str
    request_id: int


_HEAD: Decoder[_Head] = Decoder(_Head)


def read_frame(frame: bytes) -> list[ClientMessage | Refused]:
    """The messages of a frame; in place of those that are none, what the client is to be told.

    Raises ProtocolError when the frame is no list of messages, or hardly one of them.
    """
    if (count := length(frame)) > MOST_MESSAGES:
        raise ProtocolError(f"a frame of {count} messages: at most {MOST_MESSAGES} are taken")
    if len(frame) > _SMALL and is_too_much(frame, _MOST_PARTS):
        return [
            _refused(frame, f"more than {_MOST_PARTS} turns, parts, calls and tools, or schemas of tools above 256 KiB together")
        ]
    try:
        return [*CLIENT_MESSAGES.decode(frame)]
    except ProtocolError as error:
        if len(frame) > _LARGEST_TAKEN_APART:
            raise
        reason = error
    messages: list[ClientMessage | Refused] = []
    num_refused = 0
    for part in _PARTS.decode(frame):
        message = _read(bytes(part))
        num_refused += isinstance(message, Refused)
        if num_refused > _MOST_REFUSED:
            raise reason
        messages.append(message)
    return messages


def too_large(head: bytes, limit: int) -> Refused:
    """What is said of a frame of which only the beginning was kept: clients put a message of that size into one of its own."""
    return _refused(head, f"the request has more than {limit} bytes, which no prompt that fits this model's context needs")


def _refused(frame: bytes, text: str) -> Refused:
    """In place of the first message of a frame: clients put a large one into one of its own."""
    found = _REQUEST.match(frame)
    request_id = int.from_bytes(found[1] or found[2] or found[3] or found[4] or found[5], "big") if found else WHOLE_CONNECTION
    return Refused(request_id, "invalid" if found else "malformed", text, "prompt" if found else None)


def _read(part: bytes) -> ClientMessage | Refused:
    try:
        return _MESSAGE.decode(part)
    except ProtocolError as error:
        try:
            head = _HEAD.decode(part)
        except ProtocolError:
            return Refused(WHOLE_CONNECTION, "malformed", str(error))
        reason = str(error.__cause__)
        param = _param(head.tag, reason)
        text = f"{param}: {_PLACE.sub('', reason)}" if param else reason
        return Refused(head.request_id, "invalid", text, param)


def _param(tag: str, reason: str) -> str | None:
    place = _PLACE.search(reason)
    fields = _FIELDS.get(tag, ())
    if place is None or not 0 < int(place[1]) <= len(fields):
        return None
    name = fields[int(place[1]) - 1]
    return (place[2].lstrip(".") or name) if name == "params" else name
