"""Token ids to text as they come: never part of a character, never a character twice."""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from frontend.server.text.token_bytes import TokenBytes
from protocol.codec import Int32Array

_UTF8 = codecs.getincrementaldecoder("utf-8")
_OPEN = 3  # bytes at most that begin a character and do not complete it


class Before(NamedTuple):
    """What of a prompt matters to the text behind it: the same for all outputs of a request."""

    has_text: bool
    open: bytes  # at its end, of a character that it does not complete


class Detokenizer:
    """The text of one growing sequence of tokens. What it returned, concatenated, is the text of all tokens.

    Bytes that begin a character wait for the token that completes it; bytes that no continuation could make a character become
    U+FFFD, one for each maximal part (Unicode 16, section 3.9), as in Python, Rust and the web.
    """

    __slots__ = ("_at_start", "_begins", "_bytes", "_carried", "_decode", "_decoder")

    def __init__(self, token_bytes: TokenBytes, prompt: Int32Array | Before | None = None) -> None:
        """`prompt`: int32, shape [tokens], or `before` of it, goes before. Its own text is not returned, but for a character that
        it leaves open: the text of prompt and completion, less the text of the prompt, is the text of the completion.
        """
        if isinstance(prompt, np.ndarray):
            prompt = before(token_bytes, prompt)
        self._bytes = token_bytes
        self._decoder = _UTF8("replace")
        self._decode = self._decoder.decode
        self._at_start = token_bytes.begins_otherwise and (prompt is None or not prompt.has_text)
        self._carried = b"" if prompt is None else prompt.open
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


def before(token_bytes: TokenBytes, prompt: Int32Array) -> Before:
    """Looks at a few of the prompt's last tokens; where these are hidden ones, at each token once, however often it is there.

    UTF-8 synchronises itself: where a character begins, it does so whatever goes before.
    """
    tail, is_enough = _tail(token_bytes, prompt[: -_OPEN - 1 : -1].tolist())
    if not is_enough and len(prompt) > _OPEN:
        shown = [token_id for token_id in np.unique(prompt).tolist() if token_bytes[token_id]]
        tail, _ = _tail(token_bytes, prompt[np.flatnonzero(np.isin(prompt, shown))[: -_OPEN - 1 : -1]].tolist())
    decoder = _UTF8("replace")
    decoder.decode(tail[-_OPEN:])
    return Before(tail != b"", decoder.getstate()[0])


def _tail(token_bytes: TokenBytes, last_first: list[int]) -> tuple[bytes, bool]:
    """The last bytes of tokens, and whether a character begins in them, or they are as many as matter."""
    tail = b""
    for token_id in last_first:
        tail = token_bytes[token_id] + tail
        if len(tail) >= _OPEN or any(byte & 0xC0 != 0x80 for byte in tail):
            return tail, True
    return tail, False
