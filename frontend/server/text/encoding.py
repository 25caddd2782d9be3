"""Texts to token ids, without holding up the other threads of the process."""

from tokenizers import Tokenizer

from frontend.server.text.panics import panics_are_errors

_SHORT = 4_000  # characters: a few milliseconds


def token_ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Token ids of a text. Raises TypeError or UnicodeEncodeError on one with lone surrogates.

    The library keeps Python's lock while it encodes one text, seconds for a megabyte, but not while it encodes a batch.
    """
    with panics_are_errors():
        if len(text) < _SHORT:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding.ids
