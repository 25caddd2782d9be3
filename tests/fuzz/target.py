"""What all fuzzers have: cases made from a seed, run one by one, and shrunk where they find a fault."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

HANG = 30.0  # seconds for an answer, on a machine that does other things too


class Target(Protocol):
    """One kind of input. A case is bytes, so that it can be kept in a file."""

    name: str
    per_case: int  # requests or frames in a case

    def make(self, draw: Random) -> bytes:
        """A case."""

    async def run(self, case: bytes) -> str:
        """Runs it. Returns what is wrong with the outcome; empty: nothing."""


def case_of(target: Target, seed: int, number: int) -> bytes:
    """Case `number` of a seed: the same on every machine."""
    return target.make(Random(f"{seed} {target.name} {number}"))


async def shrunk(case: bytes, fails: Callable[[bytes], Awaitable[bool]], tries: int = 200) -> bytes:
    """A smaller case that still fails: pieces are left out, large ones first (delta debugging, Zeller and Hildebrandt 2002)."""
    size = len(case) // 2
    while size and tries:
        start = 0
        while start < len(case) and tries:
            candidate = case[:start] + case[start + size :]
            tries -= 1
            if await fails(candidate):
                case = candidate
            else:
                start += size
        size //= 2
    return case
