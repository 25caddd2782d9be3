"""The bytes that each token stands for.

Text is then the UTF-8 decoding of the concatenated bytes, which can be done token by token in constant time. The decoders of the
`tokenizers` library see strings instead, and decode a window of tokens anew for each one.
"""

import json
import re
from collections.abc import Set
from typing import Any

from tokenizers import Tokenizer

from protocol.errors import ModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes(dict[int, bytes]):
    """Token id -> its bytes, filled as ids are met: a whole table would cost a start 0.1 s per 100,000 tokens.

    Ids in `hidden`, and ids that the model has but the tokenizer does not (padding of the embedding), are empty.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: Set[int] = frozenset()) -> None:
        """Raises ModelError when the tokenizer's decoder is not one of byte-level BPE or of SentencePiece."""
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden
        kinds, strips = _inspect(tokenizer)
        self._byte_level = "ByteLevel" in kinds
        self.strips_leading_space = strips  # the first token of a text loses one leading space

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._hidden or not 0 <= token_id < 2**32 else self._tokenizer.id_to_token(token_id)
        if token is None:
            data = b""
        elif self._byte_level:
            data = _from_byte_level(token)
        elif (match := _BYTE_TOKEN.fullmatch(token)) is not None:
            data = bytes([int(match[1], 16)])
        else:
            data = token.replace("\u2581", " ").encode()
        if token is not None:
            self[token_id] = data  # unknown ids are not kept: a client may name any number of them
        return data


def _inspect(tokenizer: Tokenizer) -> tuple[set[str], bool]:
    """Kinds of the decoder's steps, and whether it strips a leading space."""
    decoder = tokenizer.decoder
    spec: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
    steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = {step["type"] for step in steps}
    if unknown := kinds - {"ByteLevel", "ByteFallback", "Replace", "Fuse", "Strip", "Metaspace"}:
        raise ModelError(
            f"the tokenizer's decoder {', '.join(sorted(unknown))} is not supported; byte-level BPE and SentencePiece are"
        )
    strips = any(
        (step["type"] == "Strip" and step["start"] > 0)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )
    return kinds, strips


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _from_byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:  # an added token, written as plain text
        return token.encode()
