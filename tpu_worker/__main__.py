"""Entry point of a worker process: `python -m tpu_worker FD`, started by the launcher."""

import sys
from pathlib import Path

import msgspec

from protocol.config import EngineConfig
from protocol.errors import ModelError
from protocol.gguf_header import read_gguf_header
from protocol.supervision import enter_child, leave, run_child
from tpu_worker.device import Device
from tpu_worker.loop import WorkerLoop


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "tpu_worker", die_with_launcher=True)
    return run_child(launcher, lambda: WorkerLoop(spec, launcher, _make_device(spec.config, spec.index)).run())


def _make_device(config: EngineConfig, index: int) -> Device:
    if config.device == "sim":
        from tpu_worker.simulator import SimulatedDevice

        vocab_size, context = _read_sizes(config)
        return SimulatedDevice(config, vocab_size=vocab_size, max_model_len=min(config.max_model_len or context, context))
    from tpu_worker.runner import (
        JaxDevice,  # brings JAX, which reads the affinity and environment set before this line
    )

    return JaxDevice(config, index)


def _read_sizes(config: EngineConfig) -> tuple[int, int]:
    """Vocabulary size and context length, without JAX: the simulated device needs no more of a model."""
    if config.model_format == "gguf":
        metadata = read_gguf_header(config.model_path).metadata
        vocab, context = metadata["tokenizer.ggml.tokens"], metadata[f"{metadata['general.architecture']}.context_length"]
        assert isinstance(vocab, list) and isinstance(context, int)
        return len(vocab), context
    path = Path(config.model_path) / "config.json"
    try:
        fields = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        vocab_size, context_length = fields["vocab_size"], fields["max_position_embeddings"]
        assert isinstance(vocab_size, int) and isinstance(context_length, int)
    except (OSError, KeyError, AssertionError, msgspec.DecodeError) as error:
        raise ModelError(f"{path}: no vocab_size and max_position_embeddings to be read: {error!r}") from error
    return vocab_size, context_length


if __name__ == "__main__":
    leave(main())
