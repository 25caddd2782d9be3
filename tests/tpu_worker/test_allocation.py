"""An allocation that fails says what to ask less of."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protocol.errors import CapacityError
from tpu_worker.allocation import out_of_memory

WAY_OUT = "lower --kv-cache-memory, --max-model-len, --max-num-seqs"


def test_jax_has_no_memory() -> None:
    message = rf"out of memory while counting: RESOURCE_EXHAUSTED: .*70368744177664 bytes.*: {WAY_OUT}"
    with pytest.raises(CapacityError, match=message), out_of_memory("counting"):
        jax.block_until_ready(jax.jit(lambda: jnp.zeros(2**44, jnp.int32))())


def test_numpy_or_the_system_has_no_memory() -> None:
    with (
        pytest.raises(CapacityError, match=rf"out of memory while counting: Unable to allocate .*: {WAY_OUT}"),
        out_of_memory("counting"),
    ):
        np.zeros(2**50, np.int32)
    with pytest.raises(CapacityError, match=rf"out of memory while counting: MemoryError: {WAY_OUT}"), out_of_memory("counting"):
        raise MemoryError


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("INVALID_ARGUMENT: shapes"), CapacityError("no")):
        with pytest.raises(type(error)) as caught, out_of_memory("counting"):
            raise error
        assert caught.value is error
    with pytest.raises(FileNotFoundError), out_of_memory("counting"):
        Path("/nowhere/at/all").read_bytes()
