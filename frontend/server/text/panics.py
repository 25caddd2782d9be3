"""A panic of a library written in Rust is no Exception, so whoever handles exceptions would not see it."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def panics_are_errors() -> Iterator[None]:
    """Raises RuntimeError in place of a panic."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's, which cannot be imported
            raise
        raise RuntimeError(f"the tokenizer's library failed: {error}") from error
