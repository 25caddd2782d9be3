"""The search for the likeliest token, in one pass, against the one in several."""

import jax
import jax.numpy as jnp
import numpy as np

from tpu_worker import sampler
from tpu_worker.platforms.tpu import products


def test_greedy_is_the_samplers() -> None:
    logits = np.random.default_rng(0).normal(size=(10, 1000)).astype(np.float32)
    logits[1, [5, 900]] = 7.0  # equals: the first
    logits[2, 999] = logits[3, 0] = 9.0
    logits[4, 17], logits[5, 999], logits[6, 3] = np.nan, np.inf, -np.inf
    logits[7] = -np.inf
    logits[8, [0, 999]] = np.nan, np.inf
    found = np.asarray(jax.jit(products.greedy)(logits, jnp.int32(10)))
    np.testing.assert_array_equal(found, sampler.greedy(jnp.asarray(logits)))
    assert found[1] == 5 and found.tolist()[4:9] == [-1, -1, int(np.argmax(logits[6])), -1, -1]
