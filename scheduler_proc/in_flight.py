"""What a step in flight will answer: enough to match each value to its request by (step, slot, tenancy), come what may."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat

from protocol.codec import BoolArray, Int32Array, Int64Array
from scheduler_proc.cohort import Cohort


@dataclass(slots=True)
class InFlightStep:
    """One step that was sent and not yet answered. R rows, as in SchedulerOutput."""

    step_id: int
    slots: Int32Array  # [R]
    tenancies: Int64Array  # [R], of the slots' holders when the step was planned
    ends: Int32Array  # [R], positions below this one have their keys and values when the step has run
    samples: BoolArray  # [R]
    num_decodes: int  # rows of one position each; prompt chunks follow
    chunks: list[int]  # positions of each prompt chunk
    scheduled_ns: int
    sent_ns: int = 0
    cohort: Cohort | None = None  # of all rows, when they are the decode set and no more
    releases: int = 0  # of the lane, when the step was planned: the same number later means that nobody left since

    @property
    def num_prefill_tokens(self) -> int:
        """Of all prompt chunks."""
        return sum(self.chunks)

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        """Slot, tenancy, first position and end of each row."""
        counts = chain(repeat(1, self.num_decodes), self.chunks)
        rows = zip(self.slots.tolist(), self.tenancies.tolist(), self.ends.tolist(), counts, strict=True)
        return ((slot, tenancy, end - count, end) for slot, tenancy, end, count in rows)

    @property
    def sampled_slots(self) -> Int32Array:
        """Slots of the rows that bring a token, in the order of the answer's tokens."""
        return self.slots if len(self.slots) == self.num_decodes else self.slots[self.samples]

    @property
    def sampled_tenancies(self) -> Int64Array:
        """Tenancies beside `sampled_slots`."""
        return self.tenancies if len(self.slots) == self.num_decodes else self.tenancies[self.samples]

    @property
    def num_tokens(self) -> int:
        """Rows that bring a token."""
        return len(self.sampled_slots)
