"""A model directory of given sizes, for engines on the simulated device: it needs a tokenizer, and weights of nobody."""

from collections.abc import Iterator
from itertools import count, islice, product
from pathlib import Path
from string import ascii_lowercase

import msgspec

from protocol.errors import ConfigError
from protocol.model_sizes import ModelSizes

FLAGS = ("--load-format", "dummy")
_NUM_BYTES = 256
_SPACE, _END = "Ġ", "<|end|>"  # of GPT-2's alphabet for bytes the space


def write_stand_in(directory: Path, sizes: ModelSizes, context_length: int) -> Path:
    """The directory, with a config.json of these sizes, and a tokenizer that makes a word of each token, so that text costs what it
    would. Raises ConfigError for a vocabulary that is smaller than the bytes."""
    if sizes.vocab_size <= _NUM_BYTES or not sizes.num_layers:
        raise ConfigError(f"a model of {sizes.digest} cannot be stood in for: name a --model")
    experts = {"num_local_experts": sizes.num_experts} if sizes.num_experts else {}
    config = {
        "architectures": ["LlamaForCausalLM"],  # whose names of sizes are read; nothing is computed
        "vocab_size": sizes.vocab_size,
        "num_hidden_layers": sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.intermediate_size,
        "max_position_embeddings": context_length,
        "eos_token_id": sizes.vocab_size - 1,
        **experts,
    }
    words = islice(_words(), sizes.vocab_size - _NUM_BYTES - 1)
    vocabulary = {token: index for index, token in enumerate((*_byte_tokens(), *words, _END))}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": sizes.vocab_size - 1, "content": _END, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (directory / "config.json").write_bytes(msgspec.json.encode(config))
    (directory / "tokenizer.json").write_bytes(msgspec.json.encode(tokenizer))
    return directory


def _byte_tokens() -> Iterator[str]:
    """The alphabet in which byte-level tokenizers write bytes (GPT-2's): printable ones as themselves, the others above 255."""
    shown = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = count(_NUM_BYTES)
    return (chr(byte if byte in shown else next(others)) for byte in range(_NUM_BYTES))


def _words() -> Iterator[str]:
    """Different ones, of three letters and more, with a space before each."""
    return (_SPACE + "".join(letters) for length in count(3) for letters in product(ascii_lowercase, repeat=length))
