"""Bits on the device are those that NumPy sees, however many rows there are."""

import jax
import numpy as np
import pytest

from tpu_worker.token_bits import allowed_tokens


@pytest.mark.parametrize("rows", [1, 64, 65, 200])
@pytest.mark.parametrize("num_tokens", [1, 33, 3000])
def test_each_bit_is_its_tokens(rows: int, num_tokens: int) -> None:
    words = np.random.default_rng(rows).integers(0, 1 << 32, (rows, -(-num_tokens // 32)), np.uint32)
    expected = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")[:, :num_tokens].astype(bool)
    found = jax.jit(allowed_tokens, static_argnums=1)(words, num_tokens)
    np.testing.assert_array_equal(found, expected)
