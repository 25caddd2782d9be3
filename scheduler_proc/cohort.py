"""Slots that run together in a step, with those of their facts that stay as long as each slot keeps its holder.

They are gathered once, when the set changes, and not in every step: a steady step then costs a handful of vector operations.
"""

from dataclasses import dataclass

import numpy as np

from protocol.codec import BoolArray, Int32Array, Int64Array, UInt64Array


@dataclass(slots=True)
class Cohort:
    """Row r is slot slots[r]."""

    slots: Int32Array  # [R]
    tenancies: Int64Array  # [R], of the slots' holders
    request_ids: UInt64Array  # [R]
    target: Int32Array  # [R], lengths at which the requests end
    first_stop: Int32Array  # [R], one stop id of each, or -1
    more_stops: BoolArray | None  # [R], who has others; None: nobody
    streamed: BoolArray | None  # [R], who wants each token at once; None: everybody
    constrained: Int32Array | None  # rows whose tokens wait for masks; None: nobody's do
    quiet_steps: int = 0  # steps that can be planned before one of these needs a block or has its last token scheduled
    _parts: "tuple[Cohort, Cohort] | None" = None

    def split(self) -> "tuple[Cohort, Cohort]":
        """Those that need no mask, and those that wait for one. `constrained` must be some of the rows."""
        if self._parts is None:
            assert self.constrained is not None
            plain = np.delete(np.arange(len(self.slots), dtype=np.int32), self.constrained)
            self._parts = self._some(plain, constrained=False), self._some(self.constrained, constrained=True)
        return self._parts

    def _some(self, rows: Int32Array, *, constrained: bool) -> "Cohort":
        return Cohort(
            self.slots[rows],
            self.tenancies[rows],
            self.request_ids[rows],
            self.target[rows],
            self.first_stop[rows],
            None if self.more_stops is None else self.more_stops[rows],
            None if self.streamed is None else self.streamed[rows],
            np.arange(len(rows), dtype=np.int32) if constrained else None,
        )
