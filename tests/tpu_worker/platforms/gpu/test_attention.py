"""The GPU's attention in Pallas' interpreter, against the reference."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from protocol.codec import Float32Array
from tests.margins import TYPICAL, Margins
from tests.tpu_worker.platforms.tpu.test_attention import DECODE, MIXED, ROUNDOFF, Problem, Shape, Step, bits, draw
from tpu_worker.platforms import reference
from tpu_worker.platforms.gpu.attention import Attend, prepare
from tpu_worker.platforms.metadata import AttentionMetadata


def pack_cache(cache: Float32Array) -> jax.Array:
    """[2, NB, page, KH, D] as the platform keeps it."""
    return jnp.asarray(cache.astype(ml_dtypes.bfloat16).transpose(1, 3, 0, 2, 4))


@functools.cache
def program(shape: Shape, tokens: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def attend(qkv: jax.Array, cache: jax.Array, meta: AttentionMetadata, sinks: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        return Attend(interpret=True)(qkv, cache, prepare(meta, tokens, shape.page), None, shape.spec, sinks)

    return jax.jit(attend)


def run(shape: Shape, problem: Problem) -> tuple[Float32Array, jax.Array]:
    """(output [T, H, D], cache)."""
    tokens = len(problem.q)
    offsets = np.concatenate([[0], np.cumsum(problem.counts)]).astype(np.int32)
    meta = AttentionMetadata(*map(jnp.asarray, (problem.tables, problem.starts, problem.counts, offsets)))
    qkv = np.concatenate([problem.q, problem.k, problem.v], axis=1).reshape(tokens, -1)
    out, cache = program(shape, tokens)(qkv, pack_cache(problem.cache), meta, problem.sinks)
    return np.asarray(out).reshape(problem.q.shape), cache


def check(margins: Margins, shape: Shape, step: Step, seed: int = 0, longest: int | None = None) -> None:
    problem = draw(shape, step, seed, longest)
    expected, cache = reference.attend(
        problem.q,
        problem.k,
        problem.v,
        problem.cache,
        problem.tables,
        problem.starts,
        problem.counts,
        scale=1.0,
        sliding_window=shape.window,
        soft_cap=shape.cap,
        sinks=problem.sinks,
    )
    out, written = run(shape, problem)
    # Weights are rounded before values of size 1 are weighted, and so is what comes of it.
    if problem.used:
        margins.check_rounding("GPU attention", out[: problem.used], expected[: problem.used], TYPICAL * ROUNDOFF * 2**0.5)
    assert not out[problem.used :].any()
    np.testing.assert_array_equal(bits(written), bits(pack_cache(cache)))  # nothing else has changed, NaN neither


@pytest.mark.parametrize(
    ("shape", "step"),
    [(Shape(8, 2, 64, 16, window=37, cap=5.0, sinks=True), MIXED), (Shape(7, 1, 128, 64), DECODE)],
    ids=["mixed", "decode"],
)
def test_agrees_with_the_reference(margins: Margins, shape: Shape, step: Step) -> None:
    check(margins, shape, step)
