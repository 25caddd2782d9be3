"""How many steps may be in flight on one pipe, and which answers are believed: integers, no sockets."""

import enum


class Verdict(enum.Enum):
    """What an arriving answer is, seen from the ledger."""

    EXPECTED = "expected"
    WRONG_EPOCH = "wrong_epoch"  # from an incarnation that was replaced
    DUPLICATE = "duplicate"  # answered before
    OUT_OF_ORDER = "out_of_order"  # a later step than the oldest in flight, or one never sent


class CreditLedger:
    """Counts the steps sent and answered on one link.

    A device runs its steps strictly in order, so exactly one answer is acceptable at any time: that of the oldest step in flight.
    """

    def __init__(self, depth: int, epoch: int) -> None:
        if depth < 1:
            raise ValueError(f"queue depth must be at least 1, not {depth}")
        self.depth = depth
        self.epoch = epoch
        self.next_step = 0
        self.oldest = 0  # the oldest step in flight; equals next_step when none is

    @property
    def in_flight(self) -> int:
        """Steps sent and not yet answered."""
        return self.next_step - self.oldest

    @property
    def available(self) -> int:
        """Steps that may be sent now."""
        return self.depth - self.in_flight

    def send(self) -> int:
        """Takes one credit and returns the id of the step that it pays for. Raises RuntimeError when none is left."""
        if self.available < 1:
            raise RuntimeError(f"step {self.next_step} would exceed the queue depth of {self.depth}")
        step_id = self.next_step
        self.next_step += 1
        return step_id

    def judge(self, epoch: int, step_id: int) -> Verdict:
        """What an answer with these ids is; changes nothing."""
        if epoch != self.epoch:
            return Verdict.WRONG_EPOCH
        if step_id < self.oldest:
            return Verdict.DUPLICATE
        if step_id > self.oldest or self.in_flight == 0:
            return Verdict.OUT_OF_ORDER
        return Verdict.EXPECTED

    def answer(self) -> None:
        """Returns the credit of the oldest step. Raises RuntimeError when nothing is in flight."""
        if self.in_flight == 0:
            raise RuntimeError("an answer came while no step was in flight")
        self.oldest += 1
