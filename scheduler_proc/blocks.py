"""The KV blocks of one worker: who holds them, and which may be taken."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

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
        self._holders = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # free and unnamed; taken from the end
        self._idle: OrderedDict[int, None] = OrderedDict()  # free but named; evicted from the front

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
                if block in self.cache:
                    self._idle[block] = None
                else:
                    self._blank.append(block)

    def distrust(self, blocks: Iterable[int]) -> None:
        """The contents of these held blocks must not be shared any further."""
        for block in blocks:
            self.cache.forget(block)

    def idle_among(self, blocks: Iterable[int]) -> int:
        """How many of these have no holder: sharing them lowers `num_free` by as many."""
        return sum(1 for block in blocks if self._holders[block] == 0)

    def validate(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless `tables`, the blocks of each running request, account for every block exactly."""
        held = Counter(block for table in tables for block in table)
        assert all(self._holders[block] == held[block] for block in range(self.num_blocks)), "holders disagree with the tables"
        free = self._blank + list(self._idle)
        assert len(free) == len(set(free)), "a block is free twice"
        assert sorted(free) == [b for b in range(self.num_blocks) if not held[b]], "a free block is held, or one is lost"
        assert all((block in self.cache) for block in self._idle) and not any(block in self.cache for block in self._blank)
        self.cache.validate()
