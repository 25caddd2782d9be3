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
_SPACE = "\u2581"  # SentencePiece's letter for a space


class TokenBytes(dict[int, bytes]):
    """Token id -> its bytes, filled as ids are met: a whole table would cost a start 0.1 s per 100,000 tokens.

    Ids in `hidden`, and ids that the model has but the tokenizer does not (padding of the embedding), are empty.
    """

    def __init__(self, tokenizer: Tokenizer, hidden: Set[int] = frozenset()) -> None:
        """Raises ModelError when the tokenizer's decoder is not one of byte-level BPE or of SentencePiece."""
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._rules = _Rules(tokenizer)

    @property
    def begins_otherwise(self) -> bool:
        """Whether a token that begins a text may lose a space there: see `first`."""
        return self._rules.first_loses != ""

    def first(self, token_id: int) -> bytes:
        """The bytes of a token, not an empty one, that begins a text: SentencePiece puts a space before every text."""
        loses = self._rules.first_loses
        if loses == "strip":
            return self[token_id].removeprefix(b" ")
        if loses == "metaspace" and (token := self._tokenizer.id_to_token(token_id)) is not None:
            return self._rules.bytes_of(token.replace(_SPACE, ""))
        return self[token_id]

    def __missing__(self, token_id: int) -> bytes:
        token = None if token_id in self._hidden or not 0 <= token_id < 2**32 else self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""  # not kept: a client may name any number of unknown ids
        self[token_id] = data = self._rules.bytes_of(token)
        return data


class _Rules:
    """A decoder of the `tokenizers` library, as far as it can be run token by token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.decoder
        spec: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "none"}
        steps: list[dict[str, Any]] = spec["decoders"] if spec["type"] == "Sequence" else [spec]
        kinds = [step["type"] for step in steps]
        if unknown := set(kinds) - {"ByteLevel", "ByteFallback", "Replace", "Fuse", "Strip", "Metaspace"}:
            raise ModelError(
                f"the tokenizer's decoder {', '.join(sorted(unknown))} is not supported; byte-level BPE and SentencePiece are"
            )
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._spaces = any(step["type"] in ("Metaspace", "Replace") and _is_space(step) for step in steps)
        self.first_loses = ""
        for position, step in enumerate(steps):
            kind = step["type"]
            if kind in ("Metaspace", "Replace") and not _is_space(step):
                raise ModelError(f"the tokenizer's decoder has a {kind} of other letters than {_SPACE} for a space: {step}")
            if kind == "Metaspace" and step.get("prepend_scheme", "always") != "never":
                self.first_loses = "metaspace"
            if kind == "Strip":
                if (step["content"], step["stop"]) != (" ", 0) or step["start"] > 1 or "Fuse" not in kinds[:position]:
                    raise ModelError(f"the tokenizer's decoder strips otherwise than one space where a text begins: {step}")
                self.first_loses = self.first_loses or ("strip" if step["start"] else "")

    def bytes_of(self, token: str) -> bytes:
        """What a token stands for anywhere but where a text begins."""
        if self._byte_level:
            return _from_byte_level(token)
        if self._byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)) is not None:
            return bytes([int(match[1], 16)])
        return (token.replace(_SPACE, " ") if self._spaces else token).encode()


def _is_space(step: dict[str, Any]) -> bool:
    """Whether a step writes spaces for SentencePiece's letter."""
    if step["type"] == "Metaspace":
        return bool(step["replacement"] == _SPACE)
    return bool(step["pattern"] == {"String": _SPACE} and step["content"] == " ")


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
