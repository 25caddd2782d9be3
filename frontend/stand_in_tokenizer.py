"""A tokenizer for models of which the sizes alone are known: each token is a word of its own, so that text costs what it would."""

from collections.abc import Iterator
from itertools import count, islice, product
from string import ascii_lowercase

import msgspec

NUM_BYTES = 256  # tokens that are a byte each
_SPACE, _END = "Ġ", "<|end|>"  # of GPT-2's alphabet for bytes the space


def stand_in_tokenizer(vocab_size: int) -> bytes:
    """A tokenizer.json: bytes, words, and a last token that no text shows. The vocabulary is larger than the bytes."""
    words = islice(_words(), vocab_size - NUM_BYTES - 1)
    vocabulary = {token: index for index, token in enumerate((*_byte_tokens(), *words, _END))}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": vocab_size - 1, "content": _END, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    return msgspec.json.encode(tokenizer)


def _byte_tokens() -> Iterator[str]:
    """The alphabet in which byte-level tokenizers write bytes (GPT-2's): printable ones as themselves, the others above 255."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = count(NUM_BYTES)
    return (chr(byte if byte in shown else next(others)) for byte in range(NUM_BYTES))


def _words() -> Iterator[str]:
    """Different ones, of three letters and more, with a space before each."""
    return (_SPACE + "".join(letters) for length in count(3) for letters in product(ascii_lowercase, repeat=length))
