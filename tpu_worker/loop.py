"""The worker's loop: receive, prepare, dispatch. A second thread collects and answers, so neither waits for the other."""

import queue
import threading
from dataclasses import dataclass

from protocol.channel import Poller, Receiver, Sender
from protocol.clock import now_ns
from protocol.codec import pack_int32
from protocol.config import PROTOCOL_VERSION, ChildSpec
from protocol.endpoints import ipc_address, worker_inbox, worker_outbox
from protocol.errors import EngineError, ExitCode, describe
from protocol.messages import (
    SCHEDULER_TO_WORKER,
    Drain,
    Failed,
    LauncherToChild,
    ModelRunnerOutput,
    Progress,
    Pulse,
    Ready,
    RowLogprobs,
    SchedulerOutput,
    SchedulerToWorker,
    WorkerFailed,
    WorkerReady,
)
from protocol.pulse import Metronome
from protocol.supervision import SupervisionLink, leave
from tpu_worker.device import Device
from tpu_worker.slots import Slots


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A step on its way through the device."""

    step_id: int
    handle: object
    received_ns: int
    prepared_ns: int
    dispatched_ns: int


class Collector:
    """The thread that waits for the device and sends each step's answer. It alone uses the outbox after the worker's hello."""

    def __init__(self, device: Device, outbox: Sender, launcher: SupervisionLink[LauncherToChild], epoch: int) -> None:
        self._device = device
        self._outbox = outbox
        self._launcher = launcher
        self._epoch = epoch
        self._steps: queue.SimpleQueue[Dispatched] = queue.SimpleQueue()  # bounded by the credits of the scheduler
        threading.Thread(target=self._run, name="collector", daemon=True).start()  # ends with the process

    def put(self, step: Dispatched) -> None:
        """Hands over a dispatched step; steps are answered in this order."""
        self._steps.put(step)

    def _run(self) -> None:
        while True:
            step = self._steps.get()
            try:
                self._answer(step)
            except Exception as error:  # noqa: BLE001 - whatever a device raises, the scheduler hears of it before the end
                text = f"step {step.step_id} failed on the device: {describe(error)}"
                self._outbox.send(WorkerFailed(self._epoch, text))
                self._outbox.close()
                self._launcher.send(Failed(ExitCode.CRASHED, text))
                self._launcher.deliver()
                leave(ExitCode.CRASHED)  # the main thread may be waiting for the very device that failed

    def _answer(self, step: Dispatched) -> None:
        result = self._device.collect(step.handle)
        self._outbox.send(
            ModelRunnerOutput(
                epoch=self._epoch,
                step_id=step.step_id,
                token_ids_i32=pack_int32(result.token_ids),
                failed_rows_i32=pack_int32(result.failed_rows) if result.failed_rows else b"",
                logprobs=tuple(RowLogprobs(row, logprobs) for row, logprobs in result.logprobs.items()),
                times_ns=(
                    step.received_ns,
                    step.prepared_ns,
                    step.dispatched_ns,
                    result.started_ns or step.dispatched_ns,
                    result.finished_ns or now_ns(),
                    now_ns(),
                ),
                failed_programs=result.failed_programs,
            )
        )


class WorkerLoop:
    """Owns the device, the mirror of the slots and the pipes of one worker process."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild], device: Device) -> None:
        self._spec = spec
        self._launcher = launcher
        self._device = device
        self._slots = Slots(spec.config.max_num_seqs)
        directory, index = spec.run_dir, spec.index
        self._inbox: Receiver[SchedulerToWorker] = Receiver(
            ipc_address(directory, worker_inbox(index)), SCHEDULER_TO_WORKER, bind=True
        )
        self._outbox = Sender(ipc_address(directory, worker_outbox(index)), bind=False, own_context=True)
        self._metronome = Metronome(spec.config.pulse_interval)
        self._steps = 0  # dispatched

    def run(self) -> None:
        """Loads the device, says hello, then serves until told to end. Raises EngineError when it cannot go on.

        Nobody wants the answers of steps in flight any more when it is told to end, since the scheduler has ended before, and the
        device is left to the kernel: to close it would wait for the program that is being compiled.
        """
        self._load()
        collector = Collector(self._device, self._outbox, self._launcher, self._spec.epoch)
        poller = Poller()
        poller.watch(self._inbox)
        poller.watch(self._launcher.fileno())
        running = True
        while running and not self._launcher.closed:
            if self._launcher.fileno() in poller.wait(self._spec.config.pulse_interval):
                running = not isinstance(self._launcher.receive(), Drain)
            while (message := self._inbox.receive()) is not None:
                if isinstance(message, SchedulerOutput) and message.epoch == self._spec.epoch:
                    collector.put(self._dispatch(message))
                self._beat()
            self._beat()

    def _beat(self) -> None:
        """The pulse of the main loop; a dispatch may take as long as a step."""
        if self._metronome.is_due(now_ns()):
            self._launcher.flush()
            self._launcher.send(Pulse("serving", self._steps))

    def _load(self) -> None:
        config = self._spec.config
        capacity = self._device.load(lambda phase, done, total: self._launcher.send(Progress(phase, done, total)))
        self._outbox.send(
            WorkerReady(
                version=PROTOCOL_VERSION,
                worker=self._spec.index,
                epoch=self._spec.epoch,
                num_blocks=capacity.num_blocks,
                block_size=capacity.block_size,
                max_num_seqs=config.max_num_seqs,
                max_model_len=capacity.max_model_len,
                vocab_size=capacity.vocab_size,
                device=capacity.description,
                saturating_tokens=capacity.saturating_tokens,
            )
        )
        self._launcher.send(Ready())

    def _dispatch(self, message: SchedulerOutput) -> Dispatched:
        received = now_ns()
        try:
            plan = self._slots.apply(message)
            prepared = now_ns()
            handle = self._device.dispatch(plan)
        except Exception as error:
            raise EngineError(f"step {message.step_id} could not be dispatched: {describe(error)}") from error
        self._steps += 1
        return Dispatched(message.step_id, handle, received, prepared, now_ns())
