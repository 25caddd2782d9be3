"""The KV blocks of one worker: who holds them, and which may be taken."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from scheduler_proc.breaches import must
from scheduler_proc.prefix_cache import PrefixCache


class BlockPool:
    """Reference-counted blocks. A released block that the prefix cache names stays readable until it is evicted, least recently
    released first.

    A block may be handed on while steps in flight still write to it: the device runs steps in order, so whoever gets the block
    writes each position later, and reads no position that it did not write itself.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.cache = PrefixCache()
        self._holders = array("i", bytes(4 * num_blocks))  # by block
        self._blank = array("i", range(num_blocks - 1, -1, -1))  # free and unnamed; taken from the end
        self._idle: OrderedDict[int, None] = OrderedDict()  # free but named; evicted from the front
        self.num_freed = 0  # how often a block lost its last holder, ever

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out."""
        return len(self._blank) + len(self._idle)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks. Raises MemoryError, taking none, when fewer are free."""
        if count > self.num_free:
            raise MemoryError(f"{count} KV blocks wanted, {self.num_free} free")
        blocks = []
        for _ in range(count):
            if self._blank:
                block = self._blank.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self.cache.forget(block)
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a holder to each of these named blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drops one holder of each. The tail of a prefix becomes evictable before its head."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self.num_freed += 1
                if block in self.cache:
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    def distrust(self, block: int) -> None:
        """The contents of this named block must not be shared any further."""
        self.cache.forget(block)
        if self._holders[block] == 0:
            del self._idle[block]
            self._blank.append(block)

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these have no holder: sharing them lowers `num_free` by as many."""
        return sum(1 for block in blocks if self._holders[block] == 0)

    def is_private(self, block: int) -> bool:
        """Whether one slot alone holds this block, and nobody can come to share it."""
        return self._holders[block] == 1 and block not in self.cache

    def validate_idle(self) -> None:
        """Raises Breach unless every block is free, as far as one vector operation can tell."""
        must(self.num_free == self.num_blocks, "idle", "blocks are missing while nothing runs")
        must(not np.frombuffer(self._holders, np.int32).any(), "idle", "blocks are held while nothing runs")
        must(len(self._idle) == len(self.cache), "idle", "a block that is not free, or blank, has a name")

    def validate(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises Breach unless `tables`, the blocks of each running request, account for every block exactly."""
        held = np.bincount(np.array(list(chain.from_iterable(tables)), np.int32), minlength=self.num_blocks)
        must((np.array(self._holders) == held).all(), "blocks", "holders disagree with the tables")
        blank, idle = np.array(self._blank, np.int32), np.fromiter(self._idle, np.int32, len(self._idle))
        free = np.bincount(np.concatenate([blank, idle]), minlength=self.num_blocks)
        must((free == (held == 0)).all(), "blocks", "a free block is held, or one is lost, or free twice")
        named = np.zeros(self.num_blocks, bool)
        named[np.fromiter(self.cache, np.int32, len(self.cache))] = True
        must(named[idle].all() and not named[blank].any(), "blocks", "free blocks lie where their names do not have them")
        self.cache.validate()
