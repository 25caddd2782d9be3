"""What it means to the operator when memory gives out."""

import contextlib
import errno
from collections.abc import Iterator

from protocol.errors import CapacityError

_XLA_CODE = (
    "RESOURCE_EXHAUSTED"  # in the text of JAX's error, a RuntimeError; JAX is not imported, since a simulated device has none
)


@contextlib.contextmanager
def out_of_memory(doing: str) -> Iterator[None]:
    """Memory that gives out while `doing` something, the system's or a device's, is a CapacityError that says what to do."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        if isinstance(error, RuntimeError) and _XLA_CODE not in str(error):
            raise
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise CapacityError(
            f"out of memory while {doing}: {cause}: lower --kv-cache-memory, --max-model-len, --max-num-seqs or "
            "--max-num-batched-tokens, or take a smaller model"
        ) from error
