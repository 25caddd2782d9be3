"""What a failed allocation means to the operator."""

import contextlib
from collections.abc import Iterator

from protocol.errors import CapacityError

_XLA_CODE = "RESOURCE_EXHAUSTED"  # begins the text of JAX's error, which has no type of its own; JAX is not imported here


@contextlib.contextmanager
def memory_suffices() -> Iterator[None]:
    """Raises CapacityError where NumPy, or JAX on any device, gets no memory within."""
    try:
        yield
    except MemoryError as error:
        raise _capacity_error(error) from error
    except RuntimeError as error:
        if _XLA_CODE not in str(error):
            raise
        raise _capacity_error(error) from error


def _capacity_error(error: Exception) -> CapacityError:
    first_line = str(error).partition("\n")[0] or "no reason given"
    return CapacityError(
        f"weights, KV cache and batch do not fit into the memory ({first_line}): lower --kv-cache-memory, --max-num-seqs or "
        "--max-model-len"
    )
