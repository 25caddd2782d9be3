"""Work of a module's tests that is done in other processes, two at a time, ahead of the tests that look at it: most of it takes one
core, and there are two."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

_AT_A_TIME = 2


@contextmanager
def ahead(request: pytest.FixtureRequest, name: str, run: Callable[[Any], Any]) -> Iterator[Callable[[Any], Any]]:
    """Runs `run` for each value that the parameter `name` has in the tests of this module that were chosen, in their order. Yields
    what waits for a value's result, or raises what it raised. For a fixture of the module."""
    chosen = (item for item in request.session.items if item.path == request.path)
    parameters = (item.callspec.params for item in chosen if isinstance(item, pytest.Function) and hasattr(item, "callspec"))
    values = [parameter[name] for parameter in parameters if name in parameter]
    pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="ahead")
    try:
        futures = [pool.submit(run, value) for value in values]
        yield lambda value: futures[values.index(value)].result()
    finally:
        pool.shutdown(cancel_futures=True)
