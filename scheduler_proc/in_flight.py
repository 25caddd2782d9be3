"""What a step in flight will answer: enough to match each value to its request by (step, slot, tenancy), come what may."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat

import numpy as np

from protocol.codec import BoolArray, Int32Array, Int64Array, unpack_int32, unpack_uint64
from protocol.grammar_messages import WantMasks
from scheduler_proc.cohort import Cohort


@dataclass(slots=True)
class InFlightStep:
    """One step that was sent and not yet answered. R rows, as in SchedulerOutput."""

    step_id: int
    slots: Int32Array  # [R]
    tenancies: Int64Array  # [R], of the slots' holders when the step was planned
    ends: Int32Array  # [R], positions below this one have their keys and values when the step has run
    samples: BoolArray  # [R]
    num_decodes: int  # rows of one position each; chunks follow
    chunks: list[int]  # positions of each chunk
    scheduled_ns: int
    sent_ns: int = 0
    cohort: Cohort | None = None  # of all rows, when they are the decode set and no more
    releases: int = 0  # of the lane, when the step was planned: the same number later means that nobody left since
    masked: Int32Array | None = None  # [M] indices among the rows that sample: those that wait for masks; None: none does
    wants: WantMasks | None = None  # what was asked of the grammar process
    waits_since_ns: int = 0  # when the worker first said that masks are missing; 0: it did not
    whole: "InFlightStep | None" = None  # the step as it was planned, where this is what is left of it

    def split(self) -> "tuple[InFlightStep, InFlightStep]":
        """What needs no mask, and is answered first, and the rest of the step."""
        assert self.masked is not None
        if self.cohort is not None:
            plain, constrained = self.cohort.split()
            return self._decodes(plain, self.answered_first, None), self._decodes(constrained, self.masked, self.masked)
        sampling = self.samples.nonzero()[0]
        first = np.zeros(len(self.slots), bool)
        first[np.delete(sampling, self.masked)] = True
        return self._part(first, None), self._part(~first, self.masked)

    def _decodes(self, cohort: Cohort, rows: Int32Array, masked: Int32Array | None) -> "InFlightStep":
        return replace(
            self,
            slots=cohort.slots,
            tenancies=cohort.tenancies,
            ends=self.ends[rows],
            samples=self.samples[rows],
            num_decodes=len(rows),
            cohort=cohort,
            masked=masked,
            whole=self,
        )

    def _part(self, rows: BoolArray, masked: Int32Array | None) -> "InFlightStep":
        num_decodes = int(np.count_nonzero(rows[: self.num_decodes]))
        return replace(
            self,
            slots=self.slots[rows],
            tenancies=self.tenancies[rows],
            ends=self.ends[rows],
            samples=self.samples[rows],
            num_decodes=num_decodes,
            chunks=[count for count, kept in zip(self.chunks, rows[self.num_decodes :].tolist(), strict=True) if kept],
            cohort=None,
            masked=masked,
            whole=self,
        )

    def overdue(self, missing: Int32Array, now_ns: int, timeout: float) -> list[int]:
        """The worker says that masks of these rows are missing: their requests, once that has been so for `timeout` seconds."""
        self.waits_since_ns = self.waits_since_ns or now_ns
        if now_ns - self.waits_since_ns < timeout * 1e9 or self.wants is None:
            return []
        rows, request_ids = unpack_int32(self.wants.rows_i32), unpack_uint64(self.wants.request_ids_u64)
        return request_ids[np.isin(rows, missing)].tolist()  # type: ignore[no-any-return]

    @property
    def answered_first(self) -> Int32Array:
        """Indices among the rows that sample: of those that need no mask, in a step of which some do."""
        assert self.masked is not None
        return np.delete(np.arange(self.num_tokens, dtype=np.int32), self.masked)

    @property
    def num_prefill_tokens(self) -> int:
        """Of all chunks."""
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
