"""The sizes of tiny engines: all tests use the same where they can, since programs of one size are compiled once for all."""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from protocol.config import EngineConfig

MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN, BLOCK_SIZE = 8, 128, 160, 16


def tiny_config(path: Path, **changes: Any) -> EngineConfig:
    """An engine of the model in this directory, on the CPU."""
    config = EngineConfig(
        model_path=str(path),
        model_format="huggingface",
        served_model_names=("tiny",),
        device="cpu",
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_SIZE,
    )
    return replace(config, **changes)
