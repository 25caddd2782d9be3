"""Reads a `tokenizer.model`, the file of SentencePiece: a message of Protocol Buffers, of which a few fields matter here.

Field numbers from `sentencepiece_model.proto` of SentencePiece.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, processors

from frontend.server.text.sentencepiece import NORMAL, UNKNOWN, Piece, build
from protocol.errors import ModelError
from protocol.foreign_files import ENOUGH, recognise

_LARGEST_FILE = 1 << 27  # bytes
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UNIGRAM, _BPE = 1, 2
_TYPES: dict[object, str] = {1: "unigram", 3: "word", 4: "char"}


class _Unsupported(Exception):
    """A whole file, of a kind that is not read."""


@dataclass(frozen=True, slots=True)
class SentencePieceFile:
    """What such a file says."""

    pieces: list[Piece]
    space_prefix: bool
    single_spaces: bool  # runs of spaces become one, and those at the ends go


def read_sentencepiece(path: Path) -> SentencePieceFile:
    """Raises ModelError naming the file and what is wrong with it."""
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    if kind := recognise(data[:ENOUGH]):
        raise ModelError(f"{path}: not a SentencePiece model: it is {kind}")
    if len(data) > _LARGEST_FILE:
        raise ModelError(f"{path}: more than {_LARGEST_FILE} bytes, no SentencePiece model is so long")
    try:
        return _parse(data)
    except _Unsupported as error:
        raise ModelError(f"{path}: {error}: put a tokenizer.json beside it, with `save_pretrained` of a fast tokenizer") from error
    except (ValueError, IndexError, struct.error) as error:
        raise ModelError(
            f"{path}: not a readable SentencePiece model: {error}; download it again, or put a tokenizer.json beside it"
        ) from error


def build_from_file(path: Path, settings: Mapping[str, object]) -> Tokenizer:
    """The tokenizer of a directory that has this file and no other. `settings`: its tokenizer_config.json, for which tokens go
    around a text and which were added to those of the file. Raises ModelError as `read_sentencepiece`.
    """
    found = read_sentencepiece(path)
    ids = {piece.text: index for index, piece in reversed(list(enumerate(found.pieces)))}
    unknown = next((index for index, piece in enumerate(found.pieces) if piece.kind == UNKNOWN), None)
    tokenizer = build(
        found.pieces,
        unknown,
        space_prefix=found.space_prefix,
        single_spaces=found.single_spaces,
    )
    _add(tokenizer, settings.get("added_tokens_decoder"), path)
    before, after = (
        [(name, ids[name])] if settings.get(f"add_{role}_token", usual) and (name := _name(settings, role, text)) in ids else []
        for role, text, usual in (("bos", "<s>", True), ("eos", "</s>", False))
    )
    if before or after:
        single = [*(f"{name}:0" for name, _ in before), "$A:0", *(f"{name}:0" for name, _ in after)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, "$B:1"], special_tokens=[*before, *after]
        )
    return tokenizer


def _name(settings: Mapping[str, object], role: str, usual: str) -> str:
    value = settings.get(f"{role}_token", usual)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _add(tokenizer: Tokenizer, added: object, path: Path) -> None:
    """Tokens behind those of the file, by id. Raises ModelError where an id is not the next one."""
    entries = added if isinstance(added, dict) else {}
    for number, entry in sorted(entries.items(), key=lambda item: int(item[0])):
        if not isinstance(entry, dict) or not isinstance(name := entry.get("content"), str):
            raise ModelError(f"{path.parent / 'tokenizer_config.json'}: added_tokens_decoder: {number} has no content")
        token = AddedToken(name, normalized=False, special=bool(entry.get("special")))
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if (got := tokenizer.token_to_id(name)) != int(number):
            raise ModelError(
                f"{path.parent / 'tokenizer_config.json'}: added_tokens_decoder gives {name!r} the id {number}, but it is {got} by "
                f"{path.name}: write a tokenizer.json with `save_pretrained` of a fast tokenizer"
            )


def _parse(data: bytes) -> SentencePieceFile:
    pieces: list[Piece] = []
    # The defaults of the format:
    model_type: int | float | bytes = _UNIGRAM
    prefix, single_spaces, rule = True, True, ""
    for number, value in _fields(data):
        if number not in (_PIECES, _TRAINER, _NORMALIZER):
            continue
        if not isinstance(value, bytes):
            raise ValueError(f"field {number} is no message")
        parts = dict(_fields(value))
        if number == _PIECES:
            text, score, kind = parts.get(1, b""), parts.get(2, 0.0), parts.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, float) or not isinstance(kind, int):
                raise ValueError(f"piece {len(pieces)} has fields of other kinds")
            pieces.append(Piece(text.decode(), score, kind))
        elif number == _TRAINER:
            model_type = parts.get(3, _UNIGRAM)
        else:
            name = parts.get(1, b"")
            if parts.get(2):  # a table of characters, which the rule "identity" has not
                rule = repr(name.decode()) if isinstance(name, bytes) else "?"
            prefix, single_spaces = bool(parts.get(3, 1)), bool(parts.get(4, 1))
    if not pieces:
        raise ValueError("it holds no pieces")
    if model_type != _BPE:
        raise _Unsupported(f"its model_type is {_TYPES.get(model_type, model_type)}, only BPE is read")
    if rule:
        raise _Unsupported(f"it normalises texts by the rule {rule}, only 'identity' is read")
    return SentencePieceFile(pieces, prefix, single_spaces)


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Numbers and values of a message's fields. Raises ValueError or IndexError on what is none."""
    position, end = 0, len(data)
    while position < end:
        key, position = _varint(data, position)
        kind = key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value
        elif kind in (_FIXED32, _FIXED64):
            layout = "<f" if kind == _FIXED32 else "<d"
            yield key >> 3, float(struct.unpack_from(layout, data, position)[0])
            position += struct.calcsize(layout)
        elif kind == _BYTES:
            size, position = _varint(data, position)
            if position + size > end:
                raise ValueError("it ends within a field")
            yield key >> 3, data[position : position + size]
            position += size
        else:
            raise ValueError(f"a field has the wire type {kind}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
