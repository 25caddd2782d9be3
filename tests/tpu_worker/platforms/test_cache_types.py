"""How keys and values are rounded to what a cache keeps."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.codec import Float32Array
from tpu_worker.platforms.cache_types import CacheType, quantise, resolve, round_to

HEADS = arrays.arrays(
    np.float32, (3, 16), elements=st.floats(-(2.0**17), 2.0**17, width=32, allow_subnormal=False) | st.sampled_from([0.0, 1e-30])
)


@given(HEADS)
def test_integers_are_as_near_as_is_said(heads: Float32Array) -> None:
    numbers, scales = quantise(jnp.asarray(heads))
    assert numbers.dtype == jnp.int8 and scales.dtype == jnp.bfloat16
    found = np.asarray(numbers, np.float64) * np.asarray(scales).astype(np.float64)[:, None]
    largest = np.abs(heads).max(-1, keepdims=True).astype(np.float64)
    # Quotients and numbers are rounded to float32 besides; what is smaller than its normal numbers counts as nothing.
    bound = (1 + 2**-7) / 254 * largest * (1 + 2**-16) + 2.0**-125
    assert (np.abs(found - heads) <= bound).all()
    assert np.abs(np.asarray(numbers, np.int32)).max() <= 127


@pytest.mark.parametrize(
    ("kept", "share", "least", "largest"), [("fp8_e4m3", 2.0**-4, 2.0**-10, 448.0), ("fp8_e5m2", 2.0**-3, 2.0**-17, 57344.0)]
)
def test_small_floats_are_as_near_as_is_said(kept: CacheType, share: float, least: float, largest: float) -> None:
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], 4096)
    values = (signs * np.exp2(rng.uniform(-25, 17, 4096))).astype(np.float32)
    clipped = np.clip(values, -largest, largest)
    found = np.asarray(round_to(jnp.asarray(values), kept)).astype(np.float32)
    assert np.isfinite(found).all()  # the largest stands for what is larger
    assert (np.abs(found - clipped) <= np.maximum(share * np.abs(clipped), least)).all()
    assert np.abs(found).max() == largest


def test_nothing_and_what_is_no_number() -> None:
    numbers, scales = quantise(jnp.asarray([[0.0, -0.0], [np.nan, 1.0], [np.inf, 1.0], [127.0, -127.0]], jnp.float32))
    np.testing.assert_array_equal(np.asarray(numbers)[[0, 3]], [[0, 0], [127, -127]])
    assert np.asarray(scales).astype(np.float32)[[0, 3]].tolist() == [0.0, 1.0]
    assert not np.isfinite(np.asarray(scales).astype(np.float32)[1:3]).any()  # so that whoever reads it notices
    _, of_many = quantise(jnp.ones((64, 8, 64)).at[..., 5].set(jnp.nan))
    assert np.isnan(np.asarray(of_many).astype(np.float32)).all()
    kinds: tuple[CacheType, ...] = ("bfloat16", "fp8_e4m3", "fp8_e5m2")
    for kept in kinds:
        assert np.isnan(np.asarray(round_to(jnp.asarray([np.nan]), kept)).astype(np.float32)).all()
    assert np.asarray(round_to(jnp.asarray([1.5]), "bfloat16")).dtype == ml_dtypes.bfloat16


def test_what_is_asked_for() -> None:
    assert [resolve("auto", "float32"), resolve("auto", "bfloat16"), resolve("int8", "float32")] == ["float32", "bfloat16", "int8"]
