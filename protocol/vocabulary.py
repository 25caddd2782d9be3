"""The tokenizer as the grammar process needs it: written by the frontend, which builds it, into the engine's private directory.

A file and no message: whoever starts anew, at any time, finds it there.
"""

import os
from pathlib import Path

import msgspec

from protocol.codec import Decoder, encode

_NAME = "vocabulary"


class Vocabulary(msgspec.Struct, frozen=True, array_like=True):
    """A tokenizer in the format of a Hugging Face `tokenizer.json`, and what that does not say of its tokens."""

    tokenizer_json: str
    eos_ids: tuple[int, ...]  # each ends an output
    control_ids: tuple[int, ...]  # tokens that no text contains, whatever they are called


_DECODER: Decoder[Vocabulary] = Decoder(Vocabulary)


def write_vocabulary(run_dir: str, vocabulary: Vocabulary) -> None:
    """Whole or not at all: a reader never sees a part. Raises OSError."""
    path = Path(run_dir, _NAME)
    draft = path.with_name(f"{_NAME}.{os.getpid()}")
    draft.write_bytes(encode(vocabulary))
    draft.replace(path)


def read_vocabulary(run_dir: str) -> Vocabulary:
    """Raises OSError when nobody wrote it, ProtocolError when it is another version's."""
    return _DECODER.decode(Path(run_dir, _NAME).read_bytes())
