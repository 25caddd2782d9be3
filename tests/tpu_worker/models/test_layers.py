"""Sums whose bits do not depend on the company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tpu_worker.models.layers import rms_norm, sum_last

ROWS = (1, 3, 4, 8, 16, 64, 256)


@pytest.mark.parametrize("width", [64, 128, 576])
def test_a_row_is_added_up_alike_in_any_company(width: int) -> None:
    x = np.random.default_rng(0).standard_normal((max(ROWS), width), np.float32)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(width, np.float32))
    add = jax.jit(lambda x: (sum_last(x * x), rms_norm(x, weight, 1e-5)))
    sums, normed = map(np.asarray, add(x))
    np.testing.assert_allclose(sums, (x.astype(np.float64) ** 2).sum(-1), rtol=1e-5)
    for rows in ROWS:
        for found, expected in zip(add(x[-rows:]), (sums, normed), strict=True):
            np.testing.assert_array_equal(found, expected[-rows:])


def test_what_is_not_finite_shows() -> None:
    x = np.array([[1.0, np.nan, 2.0], [np.inf, 1.0, 2.0], [np.inf, -np.inf, 0.0], [1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(jax.jit(sum_last)(x), [np.nan, np.inf, np.nan, 6.0])
