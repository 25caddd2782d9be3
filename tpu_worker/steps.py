"""Takes steps to the device in their order: forward at once, sampling of constrained rows when their masks are here."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protocol.clock import now_ns
from protocol.codec import Int32Array, UInt32Array, pack_int32
from protocol.errors import EngineError, describe
from protocol.messages import MasksMissing, PrepareScores, SchedulerOutput, SchedulerToWorker, ScoresReady, StepMasks
from tpu_worker.collector import Part, StepTimes
from tpu_worker.device import Device
from tpu_worker.masks import Masks
from tpu_worker.slots import Slots


@dataclass(frozen=True, slots=True)
class _Open:
    """A step whose forward pass was dispatched and whose masks are not all here."""

    step_id: int
    handle: object
    masked_rows: Int32Array
    times: StepTimes


class Steps:
    """Messages in, work for the device and the collector out. Runs on the main thread and never waits."""

    def __init__(
        self, epoch: int, slots: Slots, masks: Masks, device: Device, collect: Callable[[Part | MasksMissing | ScoresReady], None]
    ) -> None:
        """`collect`: takes what is on the device, and what is to be told when all before it is done."""
        self._epoch = epoch
        self._slots = slots
        self._masks = masks
        self._device = device
        self._collect = collect
        self._waiting: deque[tuple[SchedulerOutput, int]] = deque()  # behind an open step, with when they came; at most the credits
        self._open: _Open | None = None
        self._told = -1  # the open step when `tell_missing` was called last
        self._next = 0  # step that is due
        self.dispatched = 0

    def take_in(self, message: SchedulerToWorker) -> None:
        """A message came. Raises EngineError when scheduler and worker disagree, or the device takes no step any more."""
        match message:
            case StepMasks():
                self._masks.add(message)
            case PrepareScores(epoch=self._epoch):
                self._device.prepare_scores(lambda error: self._collect(ScoresReady(self._epoch, error)))
            case SchedulerOutput(epoch=self._epoch, step_id=step_id):  # else it was meant for a predecessor
                if step_id > self._next:
                    raise EngineError(f"step {step_id} came where step {self._next} was due: what came between was lost")
                if step_id == self._next:  # else it came before
                    self._next += 1
                    self._waiting.append((message, now_ns()))
        while self._sample_open() and self._waiting:
            self._forward(*self._waiting.popleft())

    def abandon(self) -> None:
        """Nobody believes what comes of the steps that were taken in. What the device has begun it ends, with tokens that mean
        nothing."""
        self._waiting.clear()
        if self._open is not None:
            allowed = np.full((len(self._open.masked_rows), self._masks.num_words), 0xFFFFFFFF, np.uint32)
            self._sample(self._open, allowed)

    def tell_missing(self) -> None:
        """Called now and then: a step that has been open since the call before is reported, with the rows that it waits for."""
        if self._open is None:
            self._told = -1
            return
        if self._told == self._open.step_id:
            rows = self._masks.missing(self._open.step_id, self._open.masked_rows)
            self._collect(MasksMissing(self._epoch, self._open.step_id, pack_int32(rows)))
        self._told = self._open.step_id

    def _forward(self, message: SchedulerOutput, received_ns: int) -> None:
        try:
            plan = self._slots.apply(message)
            prepared_ns = now_ns()
            handle = self._device.forward(plan)
        except Exception as error:
            raise EngineError(f"step {message.step_id} could not be dispatched: {describe(error)}") from error
        self.dispatched += 1
        times = StepTimes(received_ns, prepared_ns, now_ns())
        if plan.masked_rows is None:
            self._masks.sampled(plan.step_id)
            self._collect(Part(plan.step_id, handle, times))
        else:
            self._open = _Open(plan.step_id, handle, plan.masked_rows, times)
            self._collect(Part(plan.step_id, handle, times, plan.answers(masked=False), more=True))

    def _sample_open(self) -> bool:
        """Samples the open step if its masks are here; returns whether none is open now."""
        step = self._open
        if step is None:
            return True
        bits = self._masks.take(step.step_id, step.masked_rows)
        if bits is None:
            return False
        self._sample(step, bits)
        return True

    def _sample(self, step: _Open, bits: UInt32Array) -> None:
        try:
            handle = self._device.sample(step.handle, bits)
        except Exception as error:
            raise EngineError(f"step {step.step_id} could not be sampled: {describe(error)}") from error
        self._collect(Part(step.step_id, handle, step.times, step.masked_rows))
        self._open = None
