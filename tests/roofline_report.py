"""A report of an engine by arithmetic alone: each program takes as long as memory and matrix units need at least.

`python -m tests.roofline_report v6e >v6e.json` writes that of Llama 3.2 1B.
"""

import sys
from dataclasses import dataclass

import msgspec

from protocol.aot_report import AotReport, ProgramReport, StepTime
from protocol.model_sizes import ModelSizes
from tpu_worker.buckets import Bucket, make_buckets
from tpu_worker.simulated_times import required_programs

LLAMA_1B = ModelSizes(16, 2048, 32, 8, 64, 8192, 0, 128256)


@dataclass(frozen=True)
class Chip:
    name: str
    bandwidth: float  # bytes per microsecond
    peak: float  # bfloat16 operations per microsecond
    memory: int  # bytes


CHIPS = {
    "v5e": Chip("TPU v5 lite", 819e3, 197e6, 16 << 30),
    "v6e": Chip("TPU v6 lite", 1640e3, 918e6, 32 << 30),
    "v7x": Chip("TPU7x", 3690e3, 1153e6, 96 << 30),  # a core
}


def roofline_report(
    chip: str = "v6e",
    sizes: ModelSizes = LLAMA_1B,
    *,
    max_num_seqs: int = 256,
    max_num_batched_tokens: int = 512,
    max_model_len: int = 8192,
    block_size: int = 64,
) -> AotReport:
    """Weights and cache in bfloat16, embeddings tied."""
    here, buckets = CHIPS[chip], make_buckets(max_num_seqs, max_num_batched_tokens)
    q_width, kv_width = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    layer = sizes.hidden_size * (2 * q_width + 2 * kv_width + 3 * sizes.intermediate_size)
    head = sizes.hidden_size * sizes.vocab_size
    weights = 2 * (sizes.num_layers * layer + head)
    bytes_per_token = 2 * 2 * kv_width * sizes.num_layers

    def step(bucket: Bucket) -> StepTime:
        operations = 2 * (bucket.tokens * sizes.num_layers * layer + bucket.rows * head)
        return StepTime(
            fixed=max(weights / here.bandwidth, operations / here.peak),
            per_context_token=bytes_per_token / here.bandwidth,
            per_pair=4 * q_width * sizes.num_layers / here.peak,
        )

    def time_of(name: str) -> StepTime:
        kind, _, size = name.partition(" ")
        if kind in ("step", "scorer"):
            return step(Bucket(*map(int, size.split("x"))))
        if kind in ("sampler", "pick", "mask"):  # a pass over the float32 logits of a row
            return StepTime(fixed=1.0, per_row=4 * sizes.vocab_size / here.bandwidth)
        return StepTime(fixed=1.0)

    def program(name: str) -> ProgramReport:
        tokens, _, rows = name.partition(" ")[2].rpartition("x")
        return ProgramReport(name=name, tokens=int(tokens or 0), rows=int(rows or 0) if tokens else 0, time=time_of(name))

    bytes_per_block = bytes_per_token * block_size
    return AotReport(
        versions={"twodeep": "0.1.0"},
        model="llama-3.2-1b" if sizes == LLAMA_1B else "small",
        model_digest=sizes.digest,
        topology=f"{chip}:1x1",
        chip=here.name,
        tensor_parallel_size=1,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        block_size=block_size,
        dtype="bfloat16",
        quantization="none",
        hbm=here.memory,
        weights=weights,
        bytes_per_block=bytes_per_block,
        cache_of_row=500 * bytes_per_token,
        num_blocks=min((here.memory - weights) // bytes_per_block, max_num_seqs * -(-max_model_len // block_size)),
        context=500,
        programs=tuple(program(name) for name in required_programs(buckets)),
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(roofline_report(sys.argv[1]))))
