"""From the frames of a Python client to messages. A message of a wrong type is refused alone, by the name of its field."""

import re

import msgspec

from frontend.wire import (
    CLIENT_MESSAGES,
    WHOLE_CONNECTION,
    Ask,
    Cancel,
    ClientMessage,
    Detokenize,
    Hello,
    Refused,
    Submit,
    Tokenize,
)
from protocol.codec import Decoder
from protocol.errors import ProtocolError
from protocol.messages import Message

_LARGEST_TAKEN_APART = 1 << 20  # bytes: as much as clients put into one frame, and what a hostile one makes of it is still little

_MOST_MESSAGES = 1 << 17  # in a frame: no client's has so many, at ten bytes or more each
_MOST_REFUSED = 16  # in a frame: each takes far longer than the bytes that ask for it

_PARTS: Decoder[list[msgspec.Raw]] = Decoder(list[msgspec.Raw])
_MESSAGE: Decoder[ClientMessage] = Decoder(ClientMessage)
_FIELDS = {kind.__struct_config__.tag: kind.__struct_fields__ for kind in (Hello, Submit, Cancel, Ask, Tokenize, Detokenize)}
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
    if (count := _count(frame)) > _MOST_MESSAGES:
        raise ProtocolError(f"a frame of {count} messages: at most {_MOST_MESSAGES} are taken")
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
    found = _REQUEST.match(head)
    request_id = int.from_bytes(found[1] or found[2] or found[3] or found[4] or found[5], "big") if found else WHOLE_CONNECTION
    text = f"the request has more than {limit} bytes, which no prompt that fits this model's context needs"
    return Refused(request_id, "invalid" if found else "malformed", text, "prompt" if found else None)


def _count(frame: bytes) -> int:
    """Of messages, as msgpack's header of an array says; 0 where it has few."""
    if frame[:1] not in (b"\xdc", b"\xdd"):
        return 0
    return int.from_bytes(frame[1 : 3 if frame[0] == 0xDC else 5], "big")


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
