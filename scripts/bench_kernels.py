"""Measures the CPU kernels on the shapes of SmolLM2-135M beside what the machine could do: `python -m scripts.bench_kernels`."""

import argparse
import ctypes
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from tpu_worker.matmul import cpu as matmul
from tpu_worker.native import build

LAYERS, WIDTH, FFN, VOCAB, HEADS, KV_HEADS, HEAD_DIM = 30, 576, 1536, 49152, 9, 3, 64


def best(run: Callable[[], object], seconds: float = 1.5) -> float:
    """The shortest of several runs, in seconds: other work on the machine only ever adds."""
    run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_machine(threads: int) -> tuple[float, float]:
    """Read bandwidth in GB/s and f32 multiply-add rate in GFLOP/s of `threads` threads together."""
    probe = ctypes.CDLL(str(build.build(build.default_cache(), ["probe"])["probe"]))
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


def bench_matmul(kind: matmul.Kind, tokens: list[int], bandwidth: float, peak: float) -> None:
    """All matrix products of one step, head included."""
    rng = np.random.default_rng(0)
    weights = []
    for _ in range(LAYERS):
        shapes = ((WIDTH + 2 * KV_HEADS * HEAD_DIM, WIDTH), (WIDTH, WIDTH), (2 * FFN, WIDTH), (WIDTH, FFN))
        weights.append([matmul.pack(rng.standard_normal(s, np.float32) * 0.02, kind=kind, gated=s[0] == 2 * FFN) for s in shapes])
    head = matmul.pack(rng.standard_normal((VOCAB, WIDTH), np.float32) * 0.02, kind=kind)
    norm = jnp.ones(WIDTH, jnp.float32)
    leaves = jax.tree_util.tree_leaves((weights, head))
    size = sum(leaf.nbytes for leaf in leaves)
    flops = 2 * sum(leaf.size for leaf in leaves)

    @jax.jit
    def layers(x: jax.Array, weights: list[list[matmul.PackedWeight]]) -> jax.Array:
        for qkv, out, up, down in weights:
            y = matmul.linear(x, qkv, norm=norm, eps=1e-5)[:, :WIDTH]
            x = matmul.linear(y, out, residual=x)
            x = matmul.linear(matmul.linear(x, up, norm=norm, eps=1e-5), down, residual=x)
        return x

    project = jax.jit(lambda x, w: matmul.linear(x, w, norm=norm, eps=1e-5))
    print(f"{kind} products of the whole model ({size / 1e6:.0f} MB: {size / bandwidth / 1e6:.1f} ms to read)")
    for count in tokens:
        x = jnp.asarray(rng.standard_normal((count, WIDTH), np.float32))
        in_layers = best(lambda x=x: layers(x, weights).block_until_ready())
        in_head = best(lambda x=x: project(x, head).block_until_ready())
        spent = in_layers + in_head
        print(
            f"  T={count:4d}: layers {in_layers * 1e3:7.2f} ms, head {in_head * 1e3:7.2f} ms; "
            f"{size / spent / 1e9:5.1f} GB/s ({size / spent / 1e7 / bandwidth:3.0f}%), "
            f"{flops * count / spent / 1e9:6.1f} GFLOP/s ({flops * count / spent / 1e7 / peak:3.0f}%)"
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 16, 64, 256, 512])
    parser.add_argument("--kinds", nargs="+", default=["bf16", "int8"])
    arguments = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    bandwidth, peak = measure_machine(threads)
    print(f"{threads} threads: memory {bandwidth:.1f} GB/s, f32 multiply-add {peak:.0f} GFLOP/s")
    for kind in arguments.kinds:
        bench_matmul(kind, arguments.tokens, bandwidth, peak)


if __name__ == "__main__":
    main()
