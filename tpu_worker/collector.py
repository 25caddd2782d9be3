"""The thread that waits for the device and answers, so that the main loop waits for neither."""

import queue
import threading
from dataclasses import dataclass

from protocol.channel import Sender
from protocol.clock import now_ns
from protocol.codec import Int32Array, pack_int32
from protocol.errors import ExitCode, describe
from protocol.messages import (
    Failed,
    LauncherToChild,
    MasksMissing,
    ModelRunnerOutput,
    PromptScores,
    RowLogprobs,
    ScoresReady,
    WorkerFailed,
    WorkerReady,
    WorkerToScheduler,
)
from protocol.supervision import SupervisionLink, leave
from tpu_worker.device import Device


@dataclass(frozen=True, slots=True)
class StepTimes:
    """When a step came and went, before the device had it; nanoseconds."""

    received: int
    prepared: int
    dispatched: int


@dataclass(frozen=True, slots=True)
class Part:
    """A step, or those of its rows that are sampled together, on the way through the device."""

    step_id: int
    handle: object
    times: StepTimes
    rows: Int32Array | None = None  # indices among the rows that sample; None: all
    more: bool = False  # another part follows


@dataclass(frozen=True, slots=True)
class Session:
    """A scheduler begins: it is told hello, and then all that follows."""

    address: str  # of its pipe
    hello: WorkerReady


class Collector:
    """It alone writes to the scheduler, to the one of the last `Session` that was put."""

    def __init__(self, device: Device, launcher: SupervisionLink[LauncherToChild], epoch: int) -> None:
        self._device = device
        self._outbox: Sender | None = None
        self._launcher = launcher
        self._epoch = epoch
        # Bounded by the credits of the scheduler.
        self._parts: queue.SimpleQueue[Part | MasksMissing | ScoresReady | Session] = queue.SimpleQueue()
        self._scores: dict[int, PromptScores] = {}  # of the step whose tokens are still to come
        threading.Thread(target=self._run, name="collector", daemon=True).start()  # ends with the process

    def put(self, part: Part | MasksMissing | ScoresReady | Session) -> None:
        """Hands over what is on the device; it is answered in this order. What misses masks is told when all before it is done."""
        self._parts.put(part)

    def _run(self) -> None:
        while True:
            match self._parts.get():
                case Session() as session:
                    self._begin(session)
                case MasksMissing() | ScoresReady() as report:
                    self._send(report)
                case Part() as part:
                    try:
                        self._answer(part)
                    except Exception as error:  # noqa: BLE001 - whatever a device raises, the scheduler hears of it before the end
                        self._fail(f"step {part.step_id} failed on the device: {describe(error)}")

    def _begin(self, session: Session) -> None:
        """What is on its way to the scheduler before is dropped with its pipe."""
        if self._outbox is not None:
            self._outbox.close(deliver=False)
        self._scores = {}
        self._outbox = Sender(session.address, bind=False, own_context=True)
        self._outbox.send(session.hello)

    def _send(self, message: WorkerToScheduler) -> None:
        assert self._outbox is not None
        self._outbox.send(message)

    def _fail(self, text: str) -> None:
        if self._outbox is not None:
            self._outbox.send(WorkerFailed(self._epoch, text))
            self._outbox.close()
        self._launcher.send(Failed(ExitCode.CRASHED, text))
        self._launcher.deliver()
        leave(ExitCode.CRASHED)  # the main thread may be waiting for the very device that failed

    def _answer(self, part: Part) -> None:
        result = self._device.collect(part.handle)
        scores, self._scores = self._scores | result.prompt_scores, {}
        if part.more and not len(result.token_ids):  # every row waits for a mask
            self._scores = scores
            return
        self._send(
            ModelRunnerOutput(
                epoch=self._epoch,
                step_id=part.step_id,
                token_ids_i32=pack_int32(result.token_ids),
                failed_rows_i32=pack_int32(result.failed_rows) if result.failed_rows else b"",
                logprobs=tuple(RowLogprobs(row, logprobs) for row, logprobs in result.logprobs.items()),
                times_ns=(
                    part.times.received,
                    part.times.prepared,
                    part.times.dispatched,
                    result.started_ns or part.times.dispatched,
                    result.finished_ns or now_ns(),
                    now_ns(),
                ),
                failed_programs=result.failed_programs,
                rows_i32=b"" if part.rows is None else pack_int32(part.rows),
                more=part.more,
                prompt_scores=scores,
            )
        )
