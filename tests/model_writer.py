"""Writes small model files as they should be, and as they should not: every part of a header can be said otherwise."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYERS = 2
CONTEXT = 256
VOCABULARY = [*"abcdefgh", "ab", "<|end|>"]

# One head of width 8: enough to be a model, too little to say anything.
METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 8,
    "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": VOCABULARY,
    "tokenizer.ggml.token_type": [1] * 9 + [3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 9,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}


@dataclass(frozen=True)
class Tensor:
    """An entry of a GGUF file's list. Shape in row-major order; offset None: behind the tensor before; the data are ones."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int = 0
    num_bytes: int | None = None  # None: as float32 takes
    offset: int | None = None


TENSORS = (
    Tensor("token_embd.weight", (len(VOCABULARY), 8)),
    Tensor("output_norm.weight", (8,)),
    *(Tensor(f"blk.{layer}.attn_q.weight", (8, 8)) for layer in range(LAYERS)),
)


def gguf_text(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: object) -> bytes:
    """Type and value. Bytes are taken as they are: type and value of one's own."""
    match value:
        case bytes():
            return value
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<IQ", 10, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + gguf_text(value)
        case list() if all(isinstance(item, int) for item in value):
            return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
        case list():
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_text, value))
    raise TypeError(value)


def gguf_bytes(
    metadata: Mapping[str, object] | Sequence[tuple[str | bytes, object]] = METADATA,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_fields: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file."""
    fields = list(metadata.items()) if isinstance(metadata, Mapping) else list(metadata)
    head = magic + struct.pack(
        "<IQQ", version, len(tensors) if num_tensors is None else num_tensors, len(fields) if num_fields is None else num_fields
    )
    for key, value in fields:
        head += gguf_text(key) + gguf_value(value)
    data = b""
    for tensor in tensors:
        offset = len(data) if tensor.offset is None else tensor.offset
        head += gguf_text(tensor.name) + struct.pack("<I", len(tensor.shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(tensor.shape)) + struct.pack("<IQ", tensor.ggml_type, offset)
        size = 4
        for length in tensor.shape:
            size *= length
        data += b"\1" * (min(size, 1 << 16) if tensor.num_bytes is None else tensor.num_bytes)
        data += b"\0" * (-len(data) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def write_gguf(path: Path, **changes: object) -> Path:
    """The small model with other metadata; None leaves a key out."""
    metadata = {key: value for key, value in {**METADATA, **changes}.items() if value is not None}
    path.write_bytes(gguf_bytes(metadata))
    return path


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"  # what a clone without Git LFS has for a file
CONFIG: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": len(VOCABULARY),
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 1,
    "max_position_embeddings": CONTEXT,
}
NAMES = ("model.embed_tokens.weight", *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(LAYERS)))
TOKENIZER = {"model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(VOCABULARY)}, "merges": ["a b"]}}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SERVED_TOKENIZER = {**TOKENIZER, "decoder": _BYTE_LEVEL}  # with what an engine needs that is to serve it


def safetensors_bytes(names: Sequence[str] = NAMES) -> bytes:
    """A file of one float32 per tensor."""
    entries: dict[str, Any] = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * index, 4 * index + 4]} for index, name in enumerate(names)
    }
    head = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    return struct.pack("<Q", len(head)) + head + b"\1" * (4 * len(names))


def write_huggingface(directory: Path, shards: int = 1, **changes: object) -> Path:
    """A directory as `save_pretrained` leaves it, with other fields in its config.json; None leaves one out."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    if shards == 1:
        (directory / "model.safetensors").write_bytes(safetensors_bytes())
        return directory
    files = {f"model-{shard + 1:05}-of-{shards:05}.safetensors": NAMES[shard::shards] for shard in range(shards)}
    for file, names in files.items():
        (directory / file).write_bytes(safetensors_bytes(names))
    weight_map = {name: file for file, names in files.items() for name in names}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
