"""How much of a prompt the prefix cache has, and in which blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.cache_groups import CacheGroups
from scheduler_proc.prefix_cache import PrefixCache, in_group


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix that need not be computed."""

    num_blocks: int  # it ends behind so many
    # Of each group, those that the tokens behind it see; not those that were held before.
    blocks: tuple[list[int], ...]


def longest_hit(cache: PrefixCache, names: Sequence[bytes], most: int, groups: CacheGroups, held: int = 0) -> Hit:
    """The longest prefix of the first `most` blocks of these names that can be shared; no longer than `held`, if nothing is to be
    had behind those first blocks, of which the caller has what it needs.

    Of a group with a window it needs only what the first token behind it sees: since a name stands for all tokens up to its
    block, whatever was there before has made these blocks what they are.
    """
    end, full = most, {}
    for group, window in enumerate(groups.windows):
        if not window:
            full[group] = _run(cache, names, group, held, end)
            end = held + len(full[group])
    while end > held and (missing := _last_gap(cache, names, groups, held, end)) is not None:
        end = missing  # whatever ends between this block and the end sees it too
    blocks: list[list[int]] = []
    for group in range(len(groups.windows)):
        if group in full:
            blocks.append(full[group][: end - held])
        else:
            blocks.append(_run(cache, names, group, max(held, groups.first_seen(group, end * groups.block_size)), end))
    return Hit(end, tuple(blocks))


def _run(cache: PrefixCache, names: Sequence[bytes], group: int, begin: int, end: int) -> list[int]:
    """The blocks from `begin` on, up to the first that is not there."""
    blocks: list[int] = []
    for index in range(begin, end):
        block = cache.find(in_group(names[index], group))
        if block is None:
            break
        blocks.append(block)
    return blocks


def _last_gap(cache: PrefixCache, names: Sequence[bytes], groups: CacheGroups, held: int, end: int) -> int | None:
    """A block that the token behind `end` sees in a group with a window, and that is not there. The first of its group: most of
    the ends that cannot be are then passed over at once."""
    for group, _ in groups.windowed:
        for index in range(max(held, groups.first_seen(group, end * groups.block_size)), end):
            if cache.find(in_group(names[index], group)) is None:
                return index
    return None
