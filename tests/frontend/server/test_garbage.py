"""Full collections are made while there are few objects."""

import gc
from collections.abc import Iterator

import pytest

from frontend.server.garbage import FullCollections

MANY = 300_000


class Knot:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collections() -> Iterator[FullCollections]:
    thresholds = gc.get_threshold()
    try:
        yield FullCollections(0.0)
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def full_collections() -> int:
    count: int = gc.get_stats()[2]["collections"]
    return count


def make_garbage() -> None:
    """Cycles that grow old before nobody needs them any more."""
    kept = []
    for _ in range(12):
        kept.append([Knot() for _ in range(2000)])
        gc.collect(1)


def test_python_makes_none_by_itself_and_they_are_made_when_few_objects_are_there(collections: FullCollections) -> None:
    assert not collections.tick(1.0), "none was due"
    before = full_collections()
    make_garbage()
    crowd = [[number] for number in range(MANY)]
    assert full_collections() == before
    assert not collections.tick(2.0)
    del crowd
    assert collections.tick(3.0)
    assert not [one for one in gc.get_objects(generation=2) if isinstance(one, Knot)]
    assert not collections.tick(4.0), "none was due"


def test_under_load_without_end_they_are_made_now_and_then(collections: FullCollections) -> None:
    make_garbage()
    crowd = [[number] for number in range(MANY)]
    assert not collections.tick(59.0)
    assert collections.tick(61.0)
    make_garbage()
    assert not collections.tick(62.0)
    assert len(crowd) == MANY
