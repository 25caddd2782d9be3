"""An allocation that fails says what to ask less of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protocol.errors import CapacityError
from tpu_worker.allocation import memory_suffices

WAY_OUT = "lower --kv-cache-memory, --max-num-seqs or --max-model-len"


def test_jax_has_no_memory() -> None:
    with (
        pytest.raises(
            CapacityError, match=rf"do not fit into the memory \(RESOURCE_EXHAUSTED: .*70368744177664 bytes.*\): {WAY_OUT}"
        ),
        memory_suffices(),
    ):
        jax.jit(lambda: jnp.zeros(2**44, jnp.int32))()


def test_numpy_has_no_memory() -> None:
    message = rf"do not fit into the memory \(Unable to allocate .*\): {WAY_OUT}"
    with pytest.raises(CapacityError, match=message), memory_suffices():
        np.zeros(2**50, np.int32)


@pytest.mark.parametrize("error", [RuntimeError("INVALID_ARGUMENT: shapes"), CapacityError("no")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, memory_suffices():
        raise error
    assert caught.value is error
