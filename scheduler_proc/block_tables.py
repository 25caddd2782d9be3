"""The block tables of one worker's slots: which KV block holds which positions of which group of layers."""

from collections.abc import Iterable

import numpy as np

from protocol.cache_groups import CacheGroups
from protocol.codec import Int32Array, pack_int32
from scheduler_proc.blocks import BlockPool
from scheduler_proc.breaches import must
from scheduler_proc.prefix_cache import in_group
from scheduler_proc.prefix_hit import Hit


class BlockTables:
    """What each slot holds, and what the worker has not been told of it.

    Of a group with a window, a slot holds the blocks from the first that the next token to be planned sees up to enough for its
    next chunk. What lies behind the window is given back while the request runs. Steps in flight may still read such a block, and
    so may the step ahead of its next holder's: the device runs steps in order, and whoever gets the block writes it in a step that
    is planned later. No step reads it that is planned later for the one who gave it back. A full block keeps its name in the prefix
    cache until it is handed on.
    """

    def __init__(self, pool: BlockPool, groups: CacheGroups, num_slots: int, max_model_len: int) -> None:
        self.groups = groups
        self._pool = pool
        self._num_groups = len(groups.windows)
        self._windowed = groups.windowed
        width = -(-max_model_len // groups.block_size)
        self._blocks = np.zeros((self._num_groups, num_slots, width), np.int32)  # 0 where nothing is held: no step reads there
        self._begin = np.zeros((self._num_groups, num_slots), np.int32)  # index of the first block that is held
        self._end = np.zeros((self._num_groups, num_slots), np.int32)  # index behind the last one
        self._appended: list[tuple[Int32Array, int, Int32Array]] = []  # slots, group and blocks that the worker does not know yet

    @property
    def num_groups(self) -> int:
        """How many tables each slot has."""
        return self._num_groups

    @property
    def gives_back(self) -> bool:
        """Whether slots give blocks back before their requests end."""
        return bool(self._windowed)

    def covered(self, slots: Int32Array) -> Int32Array:
        """Positions [N] up to which these slots have blocks in every group."""
        ends = self._end[0, slots] if self._num_groups == 1 else self._end[:, slots].min(axis=0)
        covered: Int32Array = ends * self.groups.block_size
        return covered

    def room(self, slot: int, position: int) -> int:
        """Positions from this one on for which a slot has blocks in every group."""
        return int(self._end[:, slot].min()) * self.groups.block_size - position

    def held(self, slot: int) -> list[int]:
        """All blocks of a slot."""
        return [block for group in range(self._num_groups) for block in self._held(group, slot)]

    def table(self, slot: int) -> tuple[bytes, bytes]:
        """What a worker is told of a slot that it has not heard of: the tables of all groups, and how long each is."""
        ends = self._end[:, slot]
        tables = [self._blocks[group, slot, :end] for group, end in enumerate(ends.tolist())]
        return pack_int32(np.concatenate(tables)), b"" if self._num_groups == 1 else pack_int32(ends)

    def take(self, slot: int, hit: Hit, length: int) -> None:
        """A request of `length` known tokens takes a slot: it shares the hit, and gets blocks for what it computes first.

        Raises MemoryError when fewer are free.
        """
        for blocks in hit.blocks:
            self._pool.share(blocks)
        for group, shared in enumerate(hit.blocks):
            begin, end = self.groups.span(group, hit.num_blocks * self.groups.block_size, length)
            own = self._pool.allocate(end - begin - len(shared))
            self._blocks[group, slot, begin:end] = shared + own
            self._begin[group, slot], self._end[group, slot] = begin, end

    def adopt(self, slot: int, computed: int, hit: Hit, length: int) -> None:
        """A slot whose worker has not heard of it is to begin behind a hit that is longer than the `computed` blocks that it began
        with. Its own blocks move behind the hit; those that are left over are given back."""
        for group, found in enumerate(hit.blocks):
            row, (begin, end) = self._blocks[group, slot], self.groups.span(group, hit.num_blocks * self.groups.block_size, length)
            old_begin, old_end = int(self._begin[group, slot]), int(self._end[group, slot])
            kept, own = row[max(begin, old_begin) : computed].tolist(), row[computed:old_end].tolist()
            count = end - hit.num_blocks
            self._pool.share(found)
            self._pool.release(row[old_begin : min(begin, computed)].tolist() + own[count:])
            row[old_begin : max(old_end, end)] = 0
            row[begin:end] = kept + found + own[:count]
            self._begin[group, slot], self._end[group, slot] = begin, end

    def free_behind(self, slots: Int32Array, positions: Int32Array) -> None:
        """Gives back the blocks of these slots that no token from `positions` [N] on sees. All before these must be planned."""
        for group, _ in self._windowed:
            begins = self.groups.first_seen(group, positions)
            for row in np.flatnonzero(begins > self._begin[group, slots]).tolist():
                slot, begin = int(slots[row]), int(begins[row])
                behind = self._blocks[group, slot, self._begin[group, slot] : begin]
                self._pool.release(behind.tolist())
                behind[:] = 0
                self._begin[group, slot] = begin

    def append(self, slots: Int32Array) -> None:
        """Gives each of these slots, all different, one more block of each group. So many must be free."""
        for group in range(self._num_groups):
            self._append(group, slots)

    def extend(self, slot: int, position: int, length: int) -> None:
        """Gives a slot whose next chunk begins at `position` what it needs for any chunk up to `length`, as far as blocks are free.

        If they do not suffice, no group is left behind the others.
        """
        ends = np.array([self.groups.span(group, position, length)[1] for group in range(self._num_groups)])
        one = np.array([slot], np.int32)
        while (lacking := np.flatnonzero(self._end[:, slot] < ends)).size and self._pool.num_free:
            self._append(int(lacking[self._end[lacking, slot].argmin()]), one)

    def release(self, slot: int) -> None:
        """Gives back all that a slot holds."""
        for group in range(self._num_groups):
            self._pool.release(self._held(group, slot))
        self._blocks[:, slot, : self._end[:, slot].max()] = 0
        self._begin[:, slot] = self._end[:, slot] = 0
        if self._appended:
            self._appended = [
                (slots[slots != slot], group, blocks[slots != slot]) for slots, group, blocks in self._appended
            ]  # the worker need not hear of them

    def commit(self, slot: int, index: int, name: bytes) -> None:
        """Names the block at this index of each group, unless it was given back."""
        for group in range(self._num_groups):
            if index >= self._begin[group, slot]:
                self._pool.cache.commit(in_group(name, group), int(self._blocks[group, slot, index]))

    def distrust(self, names: Iterable[bytes]) -> None:
        """The contents of blocks of these names must not be shared any further."""
        for name in names:
            for group in range(self._num_groups):
                block = self._pool.cache.find(in_group(name, group))
                if block is not None:
                    self._pool.distrust(block)

    def take_appended(self) -> tuple[bytes, bytes, bytes]:
        """What the worker must be told, once: slots, blocks and groups (empty: all are of the first) of what was appended."""
        appended, self._appended = self._appended, []
        if not appended:
            return b"", b"", b""
        slots = np.concatenate([slots for slots, _, _ in appended])
        blocks = np.concatenate([blocks for _, _, blocks in appended])
        groups = np.concatenate([np.full(len(slots), group, np.int32) for slots, group, _ in appended])
        return pack_int32(slots), pack_int32(blocks), pack_int32(groups) if groups.any() else b""

    def validate(self, slots: Int32Array, scheduled: Int32Array) -> None:
        """Raises Breach unless these slots, all that are taken, hold what they must. `scheduled` [N]: positions planned."""
        self._pool.validate(self.held(slot) for slot in slots.tolist())
        must((scheduled <= self.covered(slots)).all(), "positions", "a position without a block is scheduled")
        for slot, position in zip(slots.tolist(), scheduled.tolist(), strict=True):
            for group, window in enumerate(self.groups.windows):
                begin, end = int(self._begin[group, slot]), int(self._end[group, slot])
                must(begin <= self.groups.first_seen(group, position), "windows", "a block is given back that a token still sees")
                must(not self._blocks[group, slot, :begin].any(), "windows", "a block that was given back is still in the table")
                most = (window + self.groups.chunk - 3) // self.groups.block_size + 2
                must(not window or end - begin <= most, "windows", "a slot holds more than window and chunk need")
                for block in self._blocks[group, slot, position // self.groups.block_size : end].tolist():
                    must(self._pool.is_private(block), "windows", "a block that is going to be written is shared, or has a name")

    def _held(self, group: int, slot: int) -> list[int]:
        return self._blocks[group, slot, self._begin[group, slot] : self._end[group, slot]].tolist()  # type: ignore[no-any-return]

    def _append(self, group: int, slots: Int32Array) -> None:
        blocks = np.array(self._pool.allocate(len(slots)), np.int32)
        self._blocks[group, slots, self._end[group, slots]] = blocks
        self._end[group, slots] += 1
        self._appended.append((slots, group, blocks))
