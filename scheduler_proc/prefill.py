"""Slots whose known tokens are not all planned, and the KV blocks that those under way are about to compute."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from scheduler_proc.breaches import must


class PrefillQueue:
    """The slots of one lane in the order of their rank.

    A slot has started when its first chunk was planned; until then the worker has not heard of it, and where it starts is open.
    From then on it computes every block up to its end. Whoever would compute the same blocks may wait for it, and share them.
    """

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}  # slot -> length at which its prefill ends
        self._order: list[tuple[tuple[int, int, int], int]] = []  # (rank, slot), rising
        self._waiting: set[int] = set()  # not started
        self._coming: dict[bytes, int] = {}  # name of a block -> the started slot that will compute it
        self._names: dict[int, Sequence[bytes]] = {}  # started slot -> names of all the blocks that it computes

    def __contains__(self, slot: int) -> bool:
        return slot in self._ends

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[int]:
        """The slots, by rank."""
        return (slot for _, slot in self._order)

    def before(self, rank: tuple[int, int, int]) -> list[int]:
        """The slots that go before a request of this rank."""
        return [slot for _, slot in self._order[: bisect_left(self._order, (rank, -1))]]

    def end(self, slot: int) -> int:
        """The length at which this slot's prefill ends."""
        return self._ends[slot]

    def has_started(self, slot: int) -> bool:
        """Whether a chunk of it was planned; also of slots that are done and gone from here."""
        return slot not in self._waiting

    def started(self) -> list[int]:
        """The slots of which a chunk was planned, by rank."""
        return [slot for slot in self if slot not in self._waiting]

    def computing(self, name: bytes) -> int | None:
        """The slot under way that will compute the block of this name, or None."""
        return self._coming.get(name)

    def add(self, slot: int, rank: tuple[int, int, int], end: int) -> None:
        """A request took this slot."""
        self._ends[slot] = end
        self._waiting.add(slot)
        insort(self._order, (rank, slot))

    def start(self, slot: int, names: Sequence[bytes]) -> None:
        """The first chunk is being planned. `names`: of the blocks that this slot is going to compute, in their order."""
        self._waiting.discard(slot)
        self._names[slot] = names
        for name in names:
            self._coming.setdefault(name, slot)

    def computed(self, slot: int, name: bytes) -> None:
        """A step that computes the block of this name is planned: those behind it find the block in the prefix cache."""
        if self._coming.get(name) == slot:
            del self._coming[name]

    def remove(self, slot: int, rank: tuple[int, int, int]) -> None:
        """All of it is planned, or its request leaves."""
        del self._ends[slot]
        del self._order[bisect_left(self._order, (rank, slot))]
        self._waiting.discard(slot)
        for name in self._names.pop(slot, ()):
            self.computed(slot, name)

    def validate(self) -> None:
        """Raises Breach when the parts contradict each other."""
        must(sorted(self._ends) == sorted(self), "prefill", "a slot is prefilled out of order, or twice")
        must(self._order == sorted(self._order), "prefill", "slots are not in the order of their rank")
        must(self._ends.keys() == self._waiting | self._names.keys(), "prefill", "a slot has neither started nor not")
        must(not self._waiting & self._names.keys(), "prefill", "a slot has started and has not")
        must(all(name in self._names[slot] for name, slot in self._coming.items()), "prefill", "a block is waited for in vain")
