"""A model directory of given sizes, for engines on the simulated device: it needs a tokenizer, and weights of nobody."""

from pathlib import Path

import msgspec

from frontend.stand_in_tokenizer import NUM_BYTES, stand_in_tokenizer
from protocol.errors import ConfigError
from protocol.model_sizes import ModelSizes

FLAGS = ("--load-format", "dummy")


def write_stand_in(directory: Path, sizes: ModelSizes, context_length: int) -> Path:
    """The directory, with a config.json of these sizes, and a tokenizer that makes a word of each token, so that text costs what it
    would. Raises ConfigError for a vocabulary that is smaller than the bytes."""
    if sizes.vocab_size <= NUM_BYTES or not sizes.num_layers:
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
    (directory / "config.json").write_bytes(msgspec.json.encode(config))
    (directory / "tokenizer.json").write_bytes(stand_in_tokenizer(sizes.vocab_size))
    return directory
