"""Measures the CPU kernels on the shapes of SmolLM2-135M beside what the machine could do: `python -m scripts.bench_kernels`."""

import argparse
import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from protocol.clock import now
from protocol.ggml_types import GGML_BLOCKS
from tpu_worker.platforms.cpu import attention
from tpu_worker.platforms.cpu import products as matmul
from tpu_worker.platforms.cpu.memory import keep_freed_memory
from tpu_worker.platforms.cpu.native import build
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.stacking import take
from tpu_worker.weights.blocks import KINDS, BlockMatrix

LAYERS, WIDTH, FFN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 30, 576, 1536, 49152, 9, 3, 64


def best(run: Callable[[], object], seconds: float = 1.5) -> float:
    """The shortest of several runs, in seconds: other work on the machine only ever adds."""
    run()
    times: list[float] = []
    end = now() + seconds
    while len(times) < 3 or now() < end:
        start = now()
        run()
        times.append(now() - start)
    return min(times)


def measure_machine(threads: int) -> tuple[float, float]:
    """Read bandwidth in GB/s and f32 multiply-add rate in GFLOP/s of `threads` threads together."""
    probe = build.load(["probe"])["probe"]
    probe.twodeep_probe_fma.restype = ctypes.c_double
    data = np.ones(1 << 29, np.uint8)
    share = data.nbytes // threads // 256 * 256
    with ThreadPoolExecutor(threads) as pool:

        def read_share(index: int) -> None:
            probe.twodeep_probe_read(ctypes.c_void_p(data.ctypes.data + index * share), ctypes.c_size_t(share))

        def read() -> None:
            list(pool.map(read_share, range(threads)))

        def multiply_share(_: int) -> float:
            return float(probe.twodeep_probe_fma(ctypes.c_long(5_000_000)))

        def multiply() -> float:
            return sum(pool.map(multiply_share, range(threads)))

        return share * threads / best(read) / 1e9, multiply() / best(multiply) / 1e9


def random_weight(rng: np.random.Generator, kind: str, out: int, width: int) -> matmul.PackedWeight | matmul.MixedWeight:
    """A weight [out, width] of any kind: f32, bf16, int8, or one of GGUF's, with small scales and whatever quants."""
    gated = out == 2 * FFN
    if kind in KINDS:
        inputs, size = GGML_BLOCKS[KINDS[kind]]
        raw = rng.integers(0, 256, (out, width // inputs, size), np.uint8)
        for at in {"Q6_K": (208,)}.get(kind, (0, 2) if kind in ("Q4_1", "Q5_1", "Q4_K", "Q5_K") else (0,)):
            scales = rng.uniform(0.002, 0.01, raw.shape[:2]) / (32 if inputs == 256 else 1)
            raw[..., at : at + 2] = scales.astype(np.float16)[..., None].view(np.uint8)
        return matmul.pack(BlockMatrix(kind, raw.reshape(out, -1)), gated=gated)
    return matmul.pack(
        rng.standard_normal((out, width), np.float32) * 0.02,
        quantization="int8" if kind == "int8" else "auto",
        dtype="float32" if kind == "f32" else "bfloat16",
        gated=gated,
    )


# What the matrices of a model are in that llama.cpp writes as these. Where rows are no whole blocks of 256, it takes the next
# larger kind whose blocks are of 32; down is Q6_K in half of a Q4_K_M's layers.
FILES = {
    "Q4_1": {"": "Q4_1", "down": "Q4_1", "head": "Q8_0"},
    "Q4_K_M": {"": "Q5_0", "down": "Q4_K", "head": "Q8_0"},
}


def bench_matmul(kind: str, tokens: list[int], bandwidth: float, peak: float) -> None:
    """All matrix products of one step, head included."""
    rng = np.random.default_rng(0)
    kinds = FILES.get(kind, {"": kind})
    weights = []
    for layer in range(LAYERS):
        down = kinds.get("down", kinds[""])
        if kind == "Q4_K_M" and (layer < LAYERS // 8 or layer >= 7 * LAYERS // 8 or (layer - LAYERS // 8) % 3 == 2):
            down = "Q6_K"
        shapes = ((WIDTH + 2 * KV_HEADS * HEAD_DIM, WIDTH), (WIDTH, WIDTH), (2 * FFN, WIDTH))
        weights.append([*(random_weight(rng, kinds[""], *shape) for shape in shapes), random_weight(rng, down, WIDTH, FFN)])
    head = random_weight(rng, kinds.get("head", kinds[""]), VOCAB, WIDTH)
    norm = jnp.ones(WIDTH, jnp.float32)
    size = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves((weights, head)))
    flops = 2 * (LAYERS * (WIDTH * (2 * WIDTH + 2 * KV_HEADS * HEAD_DIM) + 3 * WIDTH * FFN) + VOCAB * WIDTH)

    @jax.jit
    def layers(x: jax.Array, weights: list[list[matmul.PackedWeight]]) -> jax.Array:
        for qkv, out, up, down in weights:
            y = matmul.linear(x, qkv, norm=norm, eps=1e-5)[:, :WIDTH]
            x = matmul.linear(y, out, residual=x)
            x = matmul.linear(matmul.linear(x, up, activation="silu", norm=norm, eps=1e-5), down, residual=x)
        return x

    project = jax.jit(lambda x, w: matmul.linear(x, w, norm=norm, eps=1e-5))
    print(f"{kind} products of the whole model ({size / 1e6:.0f} MB: {size / bandwidth / 1e6:.1f} ms to read)")
    for count in tokens:
        x = jnp.asarray(rng.standard_normal((count, WIDTH), np.float32))
        in_layers = best(partial(run, layers, x, weights))
        in_head = best(partial(run, project, x, head))
        spent = in_layers + in_head
        print(
            f"  T={count:4d}: layers {in_layers * 1e3:7.2f} ms, head {in_head * 1e3:7.2f} ms; "
            f"{size / spent / 1e9:5.1f} GB/s ({size / spent / 1e7 / bandwidth:3.0f}%), "
            f"{flops * count / spent / 1e9:6.1f} GFLOP/s ({flops * count / spent / 1e7 / peak:3.0f}%)"
        )


def run(function: Callable[..., object], *arguments: object) -> None:
    """Calls and waits for the result."""
    jax.block_until_ready(function(*arguments))


def bench_attention(bandwidth: float, peak: float, block_size: int = 16) -> None:
    """Attention of all layers: decode steps, then a prompt alone."""

    @partial(jax.jit, donate_argnums=0)
    def attend(caches: jax.Array, qkv: jax.Array, meta: AttentionMetadata, rope: jax.Array) -> jax.Array:
        for index in range(LAYERS):
            result, cache = attention.attend(qkv, take(caches, index), meta, rope, spec)
            caches = cache.stack
            qkv = qkv.at[0, 0].add(result[0, 0] * 0)
        return caches

    spec = AttentionSpec(HEAD_DIM, HEAD_DIM**-0.5)
    rope = jnp.ones((8192, HEAD_DIM), jnp.float32)
    print("attention of all layers")
    for rows, start, count in (
        (1, 250, 1),
        (4, 250, 1),
        (16, 250, 1),
        (64, 250, 1),
        (1, 4000, 1),
        (1, 0, 250),
        (1, 0, 512),
        (1, 0, 2048),
    ):
        width = -(-(start + count) // block_size)
        order = np.random.default_rng(0).permutation(rows * width).reshape(rows, width)
        meta = AttentionMetadata(
            jnp.asarray(order, jnp.int32),
            jnp.full(rows, start, jnp.int32),
            jnp.full(rows, count, jnp.int32),
            jnp.arange(rows + 1, dtype=jnp.int32) * count,
        )
        caches = jax.jit(partial(attention.make_caches, LAYERS, rows * width, block_size, KV_HEADS, HEAD_DIM))()
        qkv = jnp.ones((rows * count, (HEADS + 2 * KV_HEADS) * HEAD_DIM), jnp.float32)

        def step() -> None:
            nonlocal caches
            caches = jax.block_until_ready(attend(caches, qkv, meta, rope))  # noqa: B023

        spent = best(step)
        keys = rows * (start + count)
        size = LAYERS * keys * KV_HEADS * HEAD_DIM * 4
        flops = LAYERS * rows * count * (start + (count + 1) / 2) * HEADS * HEAD_DIM * 4
        print(
            f"  {rows:3d} rows of {count:4d} at {start:4d}: {spent * 1e3:7.2f} ms; "
            f"{size / spent / 1e9:5.1f} GB/s ({size / spent / 1e7 / bandwidth:3.0f}%), "
            f"{flops / spent / 1e9:6.1f} GFLOP/s ({flops / spent / 1e7 / peak:3.0f}%)"
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 512])
    parser.add_argument("--kinds", nargs="+", default=["bf16", "int8", *FILES], choices=["f32", "bf16", "int8", *FILES])
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    keep_freed_memory()  # as the engine does
    bandwidth, peak = measure_machine(threads)
    print(f"{threads} threads: memory {bandwidth:.1f} GB/s, f32 multiply-add {peak:.0f} GFLOP/s")
    for kind in arguments.kinds:
        bench_matmul(kind, arguments.tokens, bandwidth, peak)
    bench_attention(bandwidth, peak)


if __name__ == "__main__":
    main()
