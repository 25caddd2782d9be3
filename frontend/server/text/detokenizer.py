"""Token ids to text as they come: never part of a character, never a character twice."""

import codecs
from collections.abc import Sequence

from frontend.server.text.token_bytes import TokenBytes

_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one growing sequence of tokens. What it returned, concatenated, is the text of all tokens.

    Bytes that begin a character wait for the token that completes it; bytes that no continuation could make a character become
    U+FFFD, one for each maximal part (Unicode 16, section 3.9), as in Python, Rust and the web.
    """

    __slots__ = ("_at_start", "_bytes", "_decoder")

    def __init__(self, token_bytes: TokenBytes) -> None:
        self._bytes = token_bytes
        self._decoder = _UTF8("replace")
        self._at_start = token_bytes.strips_leading_space

    def feed(self, token_ids: Sequence[int], *, final: bool = False) -> str:
        """Text that these tokens complete. `final`: none follow, so an unfinished character becomes U+FFFD."""
        table = self._bytes
        data = table[token_ids[0]] if len(token_ids) == 1 else b"".join([table[token_id] for token_id in token_ids])
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data, final)


def decode(token_bytes: TokenBytes, token_ids: Sequence[int]) -> str:
    """Text of a whole sequence of tokens."""
    return Detokenizer(token_bytes).feed(token_ids, final=True)
