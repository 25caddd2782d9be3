"""How many KV blocks a sequence holds: what the worker sizes its cache by, and the scheduler hands out."""

from dataclasses import dataclass
from typing import overload

import numpy as np

from protocol.codec import Int32Array


@dataclass(frozen=True, slots=True)
class CacheGroups:
    """The layers of a model in groups. A sequence has a block table for each group, and all groups take their blocks out of one
    pool (as vLLM's hybrid KV cache manager has it). Block i of any table is for the positions from i · block_size on.

    A token of a layer with a window sees the last so many tokens, itself included. What no token still to be computed sees need not
    be held.
    """

    windows: tuple[int, ...]  # of each group, in tokens; 0: its tokens see all that is before them
    block_size: int  # tokens
    chunk: int  # tokens of one sequence that a step computes at most

    @property
    def windowed(self) -> tuple[tuple[int, int], ...]:
        """Number and window of each group that has one."""
        return tuple((group, window) for group, window in enumerate(self.windows) if window)

    @overload
    def first_seen(self, group: int, positions: int) -> int: ...

    @overload
    def first_seen(self, group: int, positions: Int32Array) -> Int32Array: ...

    def first_seen(self, group: int, positions: "int | Int32Array") -> "int | Int32Array":
        """Index of the first block that the tokens at these positions, [N] int32 or one, and any behind them see."""
        window = self.windows[group]
        if isinstance(positions, int):
            return max(0, positions + 1 - window) // self.block_size if window else 0
        seen: Int32Array = np.maximum(positions + 1 - window, 0) // self.block_size if window else np.zeros_like(positions)
        return seen

    def span(self, group: int, start: int, length: int) -> tuple[int, int]:
        """Where the blocks begin and end that a sequence of `length` known tokens holds of a group, when it is computed from
        position `start` on: all of them, or with a window enough for any chunk.

        A chunk at S reads and writes the positions S - window + 1 … S + chunk - 1. So many that follow one another, n, lie in
        (n - 2) // block_size + 2 blocks at most.
        """
        begin, end = self.first_seen(group, start), -(-length // self.block_size)
        if window := self.windows[group]:
            end = min(end, begin + (window + self.chunk - 3) // self.block_size + 2)
        return begin, end

    def demand(self, length: int) -> int:
        """The most blocks that a sequence of up to `length` tokens holds at once, over all groups."""
        spans = (self.span(group, 0, length) for group in range(len(self.windows)))
        return sum(end - begin for begin, end in spans)
