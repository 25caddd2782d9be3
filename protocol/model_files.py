"""What the launcher and the children must all know of a model, and what makes its files unfit for any of them.

Said here once: the launcher asks before it starts anything, the worker again when it opens the files.
"""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from protocol.config import LoadFormat, ModelFormat
from protocol.errors import ConfigError, ModelError
from protocol.foreign_files import ENOUGH, recognise
from protocol.gguf_header import GgufHeader, read_gguf_header
from protocol.model_families import OutsideFamily, families_from_outside, find_family
from protocol.model_sizes import ModelSizes, sizes_from_config, sizes_from_gguf
from protocol.quantization_config import read_quantization
from protocol.safetensors_header import read_tensors
from protocol.sharding import LayerSizes

# The names under which files call the architectures that the worker has a family for; `protocol.model_families` has others'.
HF_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "MixtralForCausalLM",
    "Qwen3MoeForCausalLM",
    "GptOssForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Phi3ForCausalLM",
    "SmolLM3ForCausalLM",
    "Olmo2ForCausalLM",
    "GraniteForCausalLM",
    "MinistralForCausalLM",
    "Ministral3ForCausalLM",
    "Mistral3ForConditionalGeneration",
)
GGUF_ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "gpt-oss",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "olmo2",
    "granite",
    "mistral3",
)

# Fields of a config.json that say how long a context may be: of nearly all models, and of those whose configs are of their own.
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_EXPERTS = ("num_experts", "num_local_experts", "expert_count")
_AGAIN = ": download the model again, or convert it again"
_LARGEST_CONFIG = 1 << 24  # bytes
_LARGEST_SIZE = 1 << 31  # positions and token ids are int32
_GGUF_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_HF_LAYER = re.compile(r"(?:(?:language_model\.)?model\.(?:language_model\.)?)?layers\.(\d{1,9})\.")  # of text, or of a bare model


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Of one model."""

    architecture: str  # as the file names it
    vocab_size: int
    context_length: int  # tokens that the model was made for
    context_field: str  # where that is said, for errors
    layers: LayerSizes | None  # where the files give one number for all layers
    sizes: ModelSizes


def check_length(wanted: int | None, context_length: int, context_field: str) -> int:
    """Tokens of prompt and output together: `wanted`, or all that the model was made for. Raises ConfigError on more than these."""
    if wanted is not None and wanted > context_length:
        raise ConfigError(
            f"--max-model-len {wanted} is more than the {context_length} tokens that the model was made for ({context_field})"
        )
    return wanted or context_length


def read_model_facts(path: str | Path, format: ModelFormat, load_format: LoadFormat = "auto") -> ModelFacts:
    """Raises ModelError, naming file, field and way out, when the files are missing, damaged or of a kind that is not supported."""
    return facts_from_gguf(path, read_gguf_header(path)) if format == "gguf" else facts_from_huggingface(Path(path), load_format)


def facts_from_gguf(path: str | Path, header: GgufHeader) -> ModelFacts:
    """As `read_model_facts`, from a header that was read."""
    architecture, outside = gguf_architecture(path, header)
    vocabulary = header.tensors.get("token_embd.weight")
    if vocabulary is None or len(vocabulary.shape) != 2:
        raise ModelError(f"{path}: tensor token_embd.weight of two dimensions is missing")
    layers, context = f"{architecture}.block_count", f"{architecture}.context_length"
    if outside is None:
        _check_layers(path, layers, _size(path, header.metadata, layers), _GGUF_LAYER, header.tensors)
    keys = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    return ModelFacts(
        architecture,
        vocabulary.shape[0],
        _size(path, header.metadata, context),
        f"{context} in {path}",
        _layer_sizes(header.metadata, *(f"{architecture}.{key}" for key in keys)),
        sizes_from_gguf(header.metadata, architecture, vocabulary.shape[0]),
    )


def gguf_architecture(
    path: str | Path, header: GgufHeader, ours: Sequence[str] = GGUF_ARCHITECTURES
) -> tuple[str, OutsideFamily | None]:
    """The architecture's name, and who serves it if it is none of `ours`.

    Raises ModelError when it is none of a whole model that is supported.
    """
    kind, name = header.metadata.get("general.type", "model"), header.metadata.get("general.architecture")
    if kind != "model":
        raise ModelError(f"{path}: general.type is {reprlib.repr(kind)}: a file that holds a whole model is wanted")
    if name is None:
        raise ModelError(f"{path}: general.architecture is missing{_AGAIN}")
    return _who_serves(path, "general.architecture", name, ours)


def facts_from_huggingface(directory: Path, load_format: LoadFormat = "auto") -> ModelFacts:
    """As `read_model_facts`: config.json, and, unless weights are random, the headers of all their files."""
    path = directory / "config.json"
    architecture, outside, fields = read_config(path)
    context = next((name for name in _CONTEXT if name in fields), _CONTEXT[0])
    vocab_size = _size(path, fields, "vocab_size")
    facts = ModelFacts(
        architecture,
        vocab_size,
        _size(path, fields, context),
        f"{context} in {path}",
        _layer_sizes(fields, "num_attention_heads", "num_key_value_heads", "intermediate_size"),
        sizes_from_config(fields, vocab_size),
    )
    tensors, layers = read_tensors(directory) if load_format != "dummy" else None, "num_hidden_layers"
    if outside is None:  # others may call their layers what they like: the worker asks their family
        count = _size(path, fields, layers)
        if tensors is not None:
            _check_layers(path, layers, count, _HF_LAYER, tensors)
    return facts


def read_config(path: Path, ours: Sequence[str] = HF_ARCHITECTURES) -> tuple[str, OutsideFamily | None, dict[str, Any]]:
    """The architecture of a config.json, who serves it if it is none of `ours`, and all fields.

    Raises ModelError when it is none that is supported.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_CONFIG + 1)
        if len(data) > _LARGEST_CONFIG:
            raise ModelError(f"{path}: more than {_LARGEST_CONFIG} bytes, no config.json is so long")
        fields = msgspec.json.decode(data, type=dict[str, Any])
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = recognise(data[:ENOUGH])
        raise ModelError(f"{path}: no JSON object to be read: {f'it is {kind}' if kind else error}") from error
    names = fields.get("architectures")
    if not isinstance(names, list) or not names:
        raise ModelError(
            f"{path}: architectures is {'missing' if names is None else reprlib.repr(names)}: a list of a name is wanted"
        )
    architecture, outside = _who_serves(path, "architecture", names[0], ours)
    if isinstance(text := fields.get("text_config"), dict):  # of a model that also sees: what is beside it says how it is joined
        fields = {**{key: value for key, value in fields.items() if key not in text}, **text}
    read_quantization(path, fields)  # for what it refuses
    return architecture, outside, fields


def _who_serves(path: str | Path, field: str, name: object, ours: Sequence[str]) -> tuple[str, OutsideFamily | None]:
    """The architecture, and who serves it if it is none of `ours`. Raises ModelError when nobody does, or more than one."""
    others = families_from_outside()
    outside = find_family(name, ours, others) if isinstance(name, str) else None
    if not isinstance(name, str) or (outside is None and name not in ours):
        known = ", ".join([*ours, *sorted({family.architecture for family in others})])
        raise ModelError(f"{path}: {field} {reprlib.repr(name)} is not supported, only {known}")
    return name, outside


def method_of(path: Path) -> str | None:
    """By which the weights are quantised that belong to a config.json; None: they are not. Raises ModelError, as `read_config`."""
    quantization = read_quantization(path, read_config(path)[2])
    return None if quantization is None else quantization.method


def _size(path: str | Path, fields: Mapping[str, Any], key: str) -> int:
    value = fields.get(key)
    if value is None:
        raise ModelError(f"{path}: {key} is missing{_AGAIN}")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST_SIZE:
        raise ModelError(f"{path}: {key} is {reprlib.repr(value)}, a whole number from 1 to {_LARGEST_SIZE - 1} is wanted")
    return value


def _layer_sizes(fields: Mapping[str, Any], heads: str, kv_heads: str, mlp: str) -> LayerSizes | None:
    """None where a size is not said or differs between the layers, or where there are experts: the family's reader knows more."""
    if any(str(key).rpartition(".")[2] in _EXPERTS and count for key, count in fields.items()):
        return None
    sizes = [fields.get(heads), fields.get(kv_heads) or fields.get(heads), fields.get(mlp)]
    numbers = [size for size in sizes if isinstance(size, int) and not isinstance(size, bool) and size > 0]
    return LayerSizes(*numbers) if len(numbers) == len(sizes) else None


def _check_layers(path: str | Path, field: str, wanted: int, pattern: re.Pattern[str], names: Iterable[str]) -> None:
    """The file holds the layers that it says it has: no more, no fewer."""
    held = {int(match[1]) for name in names if (match := pattern.match(name))}
    if len(held) != wanted or max(held, default=-1) != wanted - 1:
        highest = f", up to number {max(held)}" if held else ""
        raise ModelError(f"{path}: {field} is {wanted}, but the weights hold tensors of {len(held)} layers{highest}")
