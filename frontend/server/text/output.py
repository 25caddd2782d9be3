"""The text of one output as its tokens come: behind its prompt, up to its stop strings."""

from typing import NamedTuple

from frontend.server.text.detokenizer import Before, Detokenizer
from frontend.server.text.stops import StopPatterns, StopStrings
from frontend.server.text.token_bytes import TokenBytes
from protocol.codec import Int32Array


class TokenText(NamedTuple):
    """What one token brought to the text that is shown."""

    offset: int  # characters of text before it
    data: bytes  # empty for hidden tokens; of all tokens together: the text in UTF-8, with the bytes that show as U+FFFD


class _Held(NamedTuple):
    token: TokenText
    end: int  # characters of text up to and with it
    leaves_open: bool  # its last bytes begin a character


class OutputText:
    """Turns tokens into text that may be shown, and keeps account of which token brought which bytes of it."""

    def __init__(
        self,
        token_bytes: TokenBytes,
        prompt: Int32Array | Before,
        stops: StopPatterns | None,
        *,
        min_tokens: int = 0,
        tracks: bool = False,
    ) -> None:
        """`prompt`: int32, shape [tokens], or what matters of it. No stop string ends in the first `min_tokens` tokens. `tracks`:
        keeps the account."""
        self._detokenizer = Detokenizer(token_bytes, prompt)
        self._stops = None if stops is None else StopStrings(stops)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._length = 0  # characters of text, those held back included
        self._shown = 0  # characters of text that were returned
        self._tracks = tracks
        self._held: list[_Held] = []  # the text of the first begins with a whole character
        self._released: list[TokenText] = []

    def feed(self, token_ids: list[int], *, final: bool = False) -> str:
        """Text of several tokens, where there are no stop strings and no account. `final`: none follow."""
        return self._detokenizer.feed(token_ids, final=final)

    def feed_one(self, token_id: int, *, hidden: bool = False) -> tuple[str, str | None]:
        """Text that may be shown with the next token, and the stop string that ends it. `hidden`: the token brings no text."""
        self._num_tokens += 1
        data = b"" if hidden else self._detokenizer.take(token_id)
        token = TokenText(self._length, data)
        shown, stop = self._match(self._detokenizer.decode(data))
        if self._tracks:
            self._held.append(_Held(token, self._length, self._detokenizer.leaves_open))
            self._release(whole=self._stops is None)
            if stop is not None:
                self._cut()
        return shown, stop

    def end(self) -> tuple[str, str | None]:
        """The rest of the text, once no token follows."""
        shown, stop = self._match(self._detokenizer.feed((), final=True))
        if stop is not None:
            self._cut()
        elif self._stops is not None:
            shown += self._stops.flush()
        self._release(whole=True)
        return shown, stop

    def released(self) -> list[TokenText]:
        """Of the tokens fed one by one, in order, those whose text was shown, or will not be, since the last call."""
        released, self._released = self._released, []
        return released

    def _match(self, text: str) -> tuple[str, str | None]:
        self._length += len(text)
        stop = None
        if self._stops is not None:
            counts = not self._min_tokens or self._num_tokens > self._min_tokens
            text, stop = self._stops.feed(text, counts=counts)
        self._shown += len(text)
        return text, stop

    def _release(self, *, whole: bool) -> None:
        """Gives out what no stop string can take back any more: up to the last whole character shown."""
        count = len(self._held)
        while count and not whole and (self._held[count - 1].leaves_open or self._held[count - 1].end > self._shown):
            count -= 1
        self._released += [held.token for held in self._held[:count]]
        del self._held[:count]

    def _cut(self) -> None:
        """Takes back what a stop string took from the text."""
        if not self._held:
            return
        data = b"".join([held.token.data for held in self._held])
        room = _bytes_of(data, self._shown - self._held[0].token.offset)
        for held in self._held:
            offset, data = held.token
            self._released.append(TokenText(min(offset, self._shown), data[:room]))
            room = max(0, room - len(data))
        self._held.clear()


def _bytes_of(data: bytes, characters: int) -> int:
    """How many bytes the first characters of a text take; those that are none show as U+FFFD."""
    text = data.decode(errors="replace")[:characters]
    size = len(text.encode())
    if data.startswith(text.encode()):
        return size
    return next((end for end in range(len(data), 0, -1) if data[:end].decode(errors="replace") == text), 0)
