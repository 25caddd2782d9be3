"""Heads in and out of a product's features, in tpu_worker/platforms/tpu/heads.py, in Pallas' interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpu_worker.platforms.metadata import AttentionSpec
from tpu_worker.platforms.tpu.heads import LOG2_E, Heads
from tpu_worker.platforms.tpu.layout import RowLayout

TOKENS, USED, ROWS = 75, 70, 11
ROUNDOFF = 2.0**-22  # of a sum of two products, in any order: values are below 8

# Heads, heads of keys, features, of which so many are rotated.
QUICK = [(9, 3, 64, 32), (2, 1, 256, 64), (4, 2, 96, None)]
OTHERS = [
    (8, 2, 64, 64),
    (4, 2, 16, 16),
    (6, 2, 32, 20),
    (5, 1, 80, 80),
    (4, 1, 256, 256),
    (16, 2, 128, 128),
    (40, 40, 128, 64),
    (24, 2, 64, None),
]


@pytest.mark.parametrize("shape", [*QUICK, *(pytest.param(shape, marks=pytest.mark.slow) for shape in OTHERS)], ids=str)
def test_heads_are_split_rotated_and_joined(shape: tuple[int, int, int, int | None]) -> None:
    """As `AttentionSpec.split_heads` does it; tokens behind the step are NaN, and nothing else becomes so."""
    num_heads, num_kv_heads, dim, rotary = shape
    random = np.random.default_rng(0)
    spec = AttentionSpec(dim, 0.5, rotary_dim=rotary)
    layout = RowLayout(dim, "float32")
    heads = Heads(num_heads, num_kv_heads, spec, layout, interpret=True)
    group = heads.group
    values = random.uniform(-2, 2, (TOKENS, (num_heads + 2 * num_kv_heads) * dim)).astype(np.float32)
    values[USED:] = np.nan
    qkv = jnp.asarray(values)
    positions = jnp.asarray(random.integers(0, 50, TOKENS), jnp.int32)
    rope = None if rotary is None else jnp.asarray(random.uniform(-1, 1, (50, max(128, rotary))), jnp.float32)

    q, k, v = spec.split_heads(qkv, positions, rope, num_kv_heads)
    queries = jnp.pad(q * spec.scale, ((0, 0), (0, 0), (0, layout.operand - dim)))
    queries = queries.reshape(TOKENS, num_kv_heads, group, layout.operand)
    half = ((0, 0), (0, 0), (0, layout.width // 2 - dim))
    rows = jnp.concatenate([jnp.pad(k, half), jnp.pad(v, half)], axis=-1)

    spread, turns = heads.spread(qkv), heads.turns(rope, positions)
    by_head, new_by_head = heads.split_columns(spread, turns, 96)
    np.testing.assert_allclose(by_head.transpose(2, 0, 1, 3)[:USED], queries[:USED] * LOG2_E, rtol=0, atol=12 * ROUNDOFF)
    np.testing.assert_allclose(new_by_head.swapaxes(0, 1)[:USED], rows[:USED], rtol=0, atol=8 * ROUNDOFF)

    first = None if turns is None else (turns[0][:ROWS], turns[1][:ROWS])
    by_row, new_by_row = heads.split_rows(spread[:ROWS], first)
    np.testing.assert_allclose(by_row[:, :, :group], queries[:ROWS], rtol=0, atol=8 * ROUNDOFF)
    assert not np.asarray(by_row[:, :, group:]).any()
    np.testing.assert_allclose(new_by_row[:, :, 0], rows[:ROWS], rtol=0, atol=8 * ROUNDOFF)

    out = random.uniform(-2, 2, (TOKENS, num_kv_heads, group, dim)).astype(np.float32)
    at = 64 if layout.is_shared else 0
    wide = np.full((96, num_kv_heads, group, layout.operand), np.nan, np.float32)
    wide[:TOKENS, ..., at : at + dim] = out
    np.testing.assert_array_equal(heads.join_columns(jnp.asarray(wide.transpose(1, 2, 0, 3)), TOKENS), out.reshape(TOKENS, -1))
    below: jax.Array = jnp.pad(jnp.asarray(wide[:ROWS]), ((0, 0), (0, 0), (0, heads.queries - group), (0, 0)))
    np.testing.assert_array_equal(heads.join_rows(below), out[:ROWS].reshape(ROWS, -1))
