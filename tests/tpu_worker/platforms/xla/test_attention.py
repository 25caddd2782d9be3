"""The portable attention against the obvious one."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from protocol.codec import Float32Array, Int32Array
from tests.margins import ROUNDOFF, TYPICAL, Margins
from tpu_worker.models.rope import rotary_table
from tpu_worker.platforms import reference
from tpu_worker.platforms.cache_types import DTYPES, CacheType, quantise, round_to
from tpu_worker.platforms.metadata import AttentionMetadata, AttentionSpec
from tpu_worker.platforms.xla import attention

BLOCKS, BLOCK_SIZE, MAX_BLOCKS = 61, 8, 20


def rounded(values: Float32Array, kept: CacheType) -> Float32Array:
    """What a cache of this type makes of heads [..., D]."""
    if kept == "int8":
        numbers, scales = quantise(jnp.asarray(values))
        return np.asarray(numbers * scales.astype(jnp.float32)[..., None])
    return np.asarray(round_to(jnp.asarray(values), kept)).astype(np.float32)


def held(values: Float32Array, kept: CacheType) -> attention.Cache:
    """A cache that holds these; of integers, anything where they are NaN, with scales of NaN."""
    if kept == "int8":
        numbers, scales = quantise(jnp.asarray(values))
        garbage = np.random.default_rng(1).integers(-128, 128, values.shape, np.int8)
        bits = jax.lax.bitcast_convert_type(scales, jnp.uint16)
        return attention.ScaledCache(jnp.where(np.isnan(values), garbage, numbers), bits)
    return jnp.asarray(np.asarray(round_to(jnp.asarray(values), kept)).view(HELD[kept]))


HELD = {"float32": np.float32, "bfloat16": np.uint16, "fp8_e4m3": np.uint8, "fp8_e5m2": np.uint8}
CASES = [(None, None, "bfloat16"), (5, None, "bfloat16"), (None, 3.0, "bfloat16"), (40, 8.0, "bfloat16")]
CASES += [(40, 8.0, "int8"), (5, None, "fp8_e4m3"), (None, None, "fp8_e5m2"), (None, 3.0, "float32")]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 2, 16), pytest.param(9, 3, 64, marks=pytest.mark.every_processor), (2, 2, 96)]
)
@pytest.mark.parametrize(("window", "cap", "kept"), CASES)
def test_agrees_with_the_reference(
    margins: Margins, heads: int, kv_heads: int, dim: int, window: int | None, cap: float | None, kept: CacheType
) -> None:
    """A decode row, a whole prompt, a later chunk, a padding row; padding tokens, unwritten cache and what lies behind windows
    are NaN."""
    rng = np.random.default_rng(0)
    starts, counts = np.array([131, 0, 13, 0], np.int32), np.array([1, 19, 12, 0], np.int32)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    used, tokens = int(offsets[-1]), int(offsets[-1]) + 5
    order = rng.permutation(BLOCKS)
    shuffled, unwritten = order[: 3 * MAX_BLOCKS].reshape(3, MAX_BLOCKS), order[3 * MAX_BLOCKS]
    tables: Int32Array = np.concatenate([shuffled, np.zeros((1, MAX_BLOCKS), int)]).astype(np.int32)
    cache = np.full((2, BLOCKS, BLOCK_SIZE, kv_heads, dim), np.nan, np.float32)
    for row in range(4):
        for position in range(starts[row]):
            where = tables[row, position // BLOCK_SIZE], position % BLOCK_SIZE
            cache[:, where[0], where[1]] = rng.normal(size=(2, kv_heads, dim)).astype(np.float32)
    q = rng.normal(size=(tokens, heads, dim)).astype(np.float32)
    k, v = rng.normal(size=(2, tokens, kv_heads, dim)).astype(np.float32)
    q[used:], k[used:], v[used:] = np.nan, np.nan, np.nan

    expected, cache_after = reference.attend(
        q,
        rounded(k, kept),
        rounded(v, kept),
        rounded(cache, kept),
        tables,
        starts,
        counts,
        scale=0.3,
        sliding_window=window,
        soft_cap=cap,
    )
    for row in range(3):  # what no token from here on sees belongs to others
        tables[row, : max(0, starts[row] + 1 - (window or 1000)) // BLOCK_SIZE] = unwritten
    meta = AttentionMetadata(*map(jnp.asarray, (tables, starts, counts, offsets)))
    spec = AttentionSpec(dim, 0.3, window, cap)

    @jax.jit
    def attend(qkv: jax.Array, cache: attention.Cache) -> tuple[jax.Array, attention.Cache]:
        return attention.attend(qkv, cache, attention.prepare(meta, tokens, BLOCK_SIZE), None, spec, kept=kept)

    flat, written = attend(np.concatenate([q, k, v], axis=1).reshape(tokens, -1), held(cache, kept))
    out = np.asarray(flat).reshape(q.shape)
    # Scores are sums of products that come to 0.3 √dim; weights, and so the output, are wrong by as much as scores are.
    typical = TYPICAL * ROUNDOFF * (0.3 * dim**0.5 * (dim / 2) ** 0.5 + 2)
    margins.check_rounding("XLA's attention", out[:used], expected[:used], typical)
    assert not out[used:].any()
    if isinstance(written, attention.ScaledCache):
        scales = np.asarray(written.scales).view(ml_dtypes.bfloat16).astype(np.float32)
        with np.errstate(invalid="ignore"):  # some of the NaN signal
            found = np.asarray(written.numbers).astype(np.float32) * scales[..., None]
    else:
        found = np.asarray(written).view(DTYPES[kept]).astype(np.float32)
    np.testing.assert_array_equal(found, cache_after)


def test_rotates_by_position() -> None:
    """One token at position 3 of a rotation by a quarter turn per position: three quarters, written out."""
    table = jnp.asarray(rotary_table(8, np.array([np.pi / 2], np.float32)))
    cache: attention.Cache = jnp.zeros((2, 2, 4, 1, 2), jnp.uint16)
    meta = AttentionMetadata(jnp.array([[1, 0]]), jnp.array([3]), jnp.array([1]), jnp.array([0, 1]))
    qkv = jnp.array([[1.0, 0.0, 1.0, 2.0, 5.0, 6.0]])  # q, k, v
    out, cache = attention.attend(qkv, cache, attention.prepare(meta, 1, 4), table, AttentionSpec(2, 1.0))
    assert isinstance(cache, jax.Array)
    stored = jax.lax.bitcast_convert_type(cache, jnp.bfloat16)[:, 1, 3, 0].astype(jnp.float32)
    np.testing.assert_allclose(np.asarray(stored), [[2.0, -1.0], [5.0, 6.0]], atol=1e-2)  # (a, b) turned by 270° is (b, -a)
    assert out.shape == (1, 2)
