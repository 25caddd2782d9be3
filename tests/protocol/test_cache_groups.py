"""The arithmetic of windows, against positions counted one by one."""

import numpy as np
import pytest

from protocol.cache_groups import CacheGroups


@pytest.mark.parametrize("window", [0, 1, 2, 4, 5, 16, 17, 100])
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_no_block_is_behind_while_a_token_sees_it(window: int, block_size: int) -> None:
    groups = CacheGroups((0, window), block_size, chunk=1)
    positions = np.arange(300, dtype=np.int32)
    found = groups.first_seen(1, positions)
    for position in range(300):
        oldest = 0 if not window else max(0, position - window + 1)
        assert groups.first_seen(1, position) == found[position] == oldest // block_size
    assert not groups.first_seen(0, positions).any() and groups.first_seen(0, 299) == 0


@pytest.mark.parametrize("window", [0, 1, 3, 4, 5, 8, 21])
@pytest.mark.parametrize("chunk", [1, 2, 5, 16, 400])
@pytest.mark.parametrize("block_size", [1, 4])
def test_a_span_holds_every_chunk_and_no_block_too_many(window: int, chunk: int, block_size: int) -> None:
    groups, length, needed = CacheGroups((window,), block_size, chunk), 90, 0
    for start in range(length):
        begin, end = groups.span(0, start, length)
        seen = range(0 if not window else max(0, start - window + 1), min(start + chunk, length))
        blocks = {position // block_size for position in seen}
        assert begin == min(blocks) and max(blocks) < end <= -(-length // block_size)
        needed = max(needed, len(blocks))
    if window:
        assert groups.demand(length) == needed, "some chunk needs as many as are counted on"
    else:
        assert groups.demand(length) == -(-length // block_size)


def test_the_demand_of_several_groups_adds_up() -> None:
    both = CacheGroups((0, 9), 4, 16)
    assert both.demand(64) == CacheGroups((0,), 4, 16).demand(64) + CacheGroups((9,), 4, 16).demand(64) == 16 + 7
    assert CacheGroups((4096,), 16, 512).demand(131072) == 289
