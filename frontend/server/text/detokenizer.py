"""Token ids to text as they come: never part of a character, never a character twice."""

import codecs
from collections.abc import Sequence

from frontend.server.text.token_bytes import TokenBytes
from protocol.codec import Int32Array

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one growing sequence of tokens. What it returned, concatenated, is the text of all tokens.

    Bytes that begin a character wait for the token that completes it; bytes that no continuation could make a character become
    U+FFFD, one for each maximal part (Unicode 16, section 3.9), as in Python, Rust and the web.
    """

    __slots__ = ("_at_start", "_begins", "_bytes", "_carried", "_decode", "_decoder")

    def __init__(self, token_bytes: TokenBytes, prompt: Int32Array | None = None) -> None:
        """`prompt`: int32, shape [tokens], goes before. Its own text is not returned, but for a character that it leaves open:
        the text of prompt and completion, less the text of the prompt, is the text of the completion. Takes constant time,
        hidden tokens at the prompt's ends aside.
        """
        self._bytes = token_bytes
        self._decoder = _UTF8("replace")
        self._decode = self._decoder.decode
        self._at_start = token_bytes.begins_otherwise and not (prompt is not None and _has_text(token_bytes, prompt))
        self._carried = b"" if prompt is None else _open_character(token_bytes, prompt)
        self._begins = self._at_start or bool(self._carried)  # the next visible token is not like the others

    def feed(self, token_ids: Sequence[int], *, final: bool = False) -> str:
        """Text that these tokens complete. `final`: none follow, so an unfinished character becomes U+FFFD."""
        table = self._bytes
        if self._begins:
            data = b"".join(map(self.take, token_ids))
            if final:
                data, self._carried = self._carried + data, b""
        else:
            data = table[token_ids[0]] if len(token_ids) == 1 else b"".join([table[token_id] for token_id in token_ids])
        return self._decode(data, final)

    @property
    def leaves_open(self) -> bool:
        """Whether the bytes so far end within a character."""
        return self._decoder.getstate()[0] != b""

    def take(self, token_id: int) -> bytes:
        """What the next token brings to the text, for `decode`."""
        data = self._bytes[token_id]
        if self._begins and data:
            if self._at_start:
                data = self._bytes.first(token_id)
            data = self._carried + data
            self._at_start, self._begins, self._carried = False, False, b""
        return data

    def decode(self, data: bytes) -> str:
        """Text that the bytes of `take` complete."""
        return self._decode(data)


def decode(token_bytes: TokenBytes, token_ids: Sequence[int], *, final: bool = True) -> str:
    """Text of a whole sequence of tokens. `final=False`: without a character that its end leaves open."""
    return Detokenizer(token_bytes).feed(token_ids, final=final)


def _has_text(token_bytes: TokenBytes, prompt: Int32Array) -> bool:
    return any(token_bytes[int(token_id)] for token_id in prompt)


def _open_character(token_bytes: TokenBytes, prompt: Int32Array) -> bytes:
    """The bytes at the end of the prompt that begin a character and do not complete it: three at most.

    UTF-8 synchronises itself: where a character begins, it does so whatever goes before.
    """
    tail = b""
    for token_id in prompt[::-1]:
        tail = token_bytes[int(token_id)] + tail
        if len(tail) >= 3 or any(byte & 0xC0 != 0x80 for byte in tail):
            break
    decoder = _UTF8("replace")
    decoder.decode(tail[-3:])
    return decoder.getstate()[0]
