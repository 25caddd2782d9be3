"""Heads of keys side by side, in tpu_worker/platforms/tpu/together.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpu_worker.platforms.tpu.together import choose_together


@pytest.mark.parametrize(
    ("num_kv_heads", "group", "together"),
    [(8, 4, 2), (3, 3, 1), (1, 8, 1), (8, 8, 2), (32, 1, 8), (40, 1, 8), (9, 2, 3), (4, 16, 2)],
)
@pytest.mark.parametrize("width", [128, 256])
def test_products_of_heads_together_are_those_of_each(num_kv_heads: int, group: int, together: int, width: int) -> None:
    """Whole numbers, so that sums are exact in any order. Rows as wide as a register hold key and value side by side."""
    tokens, positions, operand = 2, 5, 128
    random = np.random.default_rng(0)
    q, rows = (
        jnp.asarray(random.integers(-3, 4, shape), jnp.float32)
        for shape in ((tokens, num_kv_heads, group, operand), (num_kv_heads, positions, width))
    )
    how = choose_together(num_kv_heads, group)
    assert how.count == together and how.rows % 8 == 0
    keys, values = how.side_by_side(rows)
    scores = jnp.einsum("nhmd,hsd->nhms", how.widen(q), keys)
    out = how.narrow(jnp.einsum("nhms,hsd->nhmd", scores, values))
    key, value = (rows, rows) if width == operand else (rows[..., :operand], rows[..., operand:])
    expected = jnp.einsum("nhgs,hsd->nhgd", jnp.einsum("nhgd,hsd->nhgs", q, key), value)
    np.testing.assert_array_equal(out, expected)


def test_sinks_stand_beside_the_queries_of_their_heads() -> None:
    how = choose_together(8, 3)
    sinks = jnp.arange(24.0).reshape(8, 3)
    of_queries = how.widen(jnp.broadcast_to(sinks[None, ..., None], (1, 8, 3, 1)))[0].sum(-1)
    np.testing.assert_array_equal(how.sinks(sinks), of_queries)
    assert jax.numpy.count_nonzero(how.sinks(sinks)) == 23
