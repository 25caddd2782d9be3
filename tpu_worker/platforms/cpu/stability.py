"""Whether XLA's products on this machine have stable rows. It depends on the library that XLA hands them to, so it is tried out."""

from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from protocol.config import FloatType
from tpu_worker.platforms.xla.products import PlainWeight, linear

_MOST_FEATURES = 2048  # of a result: kernels treat further ones as they treat these


def measure_rows(weights: Collection[tuple[int, int]], num_rows: Collection[int], dtype: FloatType = "bfloat16") -> bool:
    """`platform.RowsAreStable`: multiplies random rows, many and few. Takes some tens of milliseconds for each pair of sizes."""
    sizes = {(min(out, _MOST_FEATURES), width) for out, width in weights}
    return all(_stable(*size, sorted(set(num_rows)), dtype) for size in sizes)


def _stable(out: int, width: int, num_rows: list[int], dtype: FloatType) -> bool:
    random = np.random.default_rng(0)
    values = random.standard_normal((out, width), np.float32).astype(dtype)
    weight = PlainWeight(jnp.asarray(values), gated=False)
    rows = random.standard_normal((num_rows[-1], width), np.float32)
    multiply = jax.jit(linear)
    whole = np.asarray(multiply(rows, weight))
    # The last rows, so that each has another place.
    return all(np.array_equal(multiply(rows[-count:], weight), whole[-count:]) for count in num_rows)
