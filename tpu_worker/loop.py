"""The worker's loop: receive, prepare, dispatch. What the device yields is another thread's business."""

from protocol.channel import Poller, Receiver, Sender
from protocol.clock import now_ns
from protocol.config import PROTOCOL_VERSION, ChildSpec
from protocol.endpoints import ipc_address, worker_inbox, worker_outbox
from protocol.messages import (
    SCHEDULER_TO_WORKER,
    Drain,
    LauncherToChild,
    Progress,
    Pulse,
    Ready,
    SchedulerToWorker,
    WorkerReady,
)
from protocol.pulse import Metronome
from protocol.supervision import SupervisionLink
from tpu_worker.collector import Collector
from tpu_worker.device import Device
from tpu_worker.masks import Masks
from tpu_worker.slots import Slots
from tpu_worker.steps import Steps


class WorkerLoop:
    """Owns the device and the pipes of one worker process."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild], device: Device) -> None:
        self._spec = spec
        self._launcher = launcher
        self._device = device
        directory, index = spec.run_dir, spec.index
        self._inbox: Receiver[SchedulerToWorker] = Receiver(
            ipc_address(directory, worker_inbox(index)), SCHEDULER_TO_WORKER, bind=True
        )
        self._outbox = Sender(ipc_address(directory, worker_outbox(index)), bind=False, own_context=True)
        self._metronome = Metronome(spec.config.pulse_interval)

    def run(self) -> None:
        """Loads the device, says hello, then serves until told to end. Raises EngineError when it cannot go on.

        Nobody wants the answers of steps in flight any more when it is told to end, since the scheduler has ended before, and the
        device is left to the kernel: to close it would wait for the program that is being compiled.
        """
        steps = self._load()
        poller = Poller()
        poller.watch(self._inbox)
        poller.watch(self._launcher.fileno())
        running = True
        while running and not self._launcher.closed:
            if self._launcher.fileno() in poller.wait(self._spec.config.pulse_interval):
                running = not isinstance(self._launcher.receive(), Drain)
            while (message := self._inbox.receive()) is not None:
                steps.take_in(message)
                self._beat(steps)
            self._beat(steps)

    def _beat(self, steps: Steps) -> None:
        """The pulse of the main loop; a dispatch may take as long as a step."""
        if self._metronome.is_due(now_ns()):
            self._launcher.flush()
            self._launcher.send(Pulse("serving", steps.dispatched))
            steps.tell_missing()

    def _load(self) -> Steps:
        config, epoch = self._spec.config, self._spec.epoch
        capacity = self._device.load(lambda phase, done, total: self._launcher.send(Progress(phase, done, total)))
        self._outbox.send(
            WorkerReady(
                version=PROTOCOL_VERSION,
                worker=self._spec.index,
                epoch=epoch,
                num_blocks=capacity.num_blocks,
                block_size=capacity.block_size,
                max_num_seqs=config.max_num_seqs,
                max_model_len=capacity.max_model_len,
                vocab_size=capacity.vocab_size,
                device=capacity.description,
                saturating_tokens=capacity.saturating_tokens,
                scores_ready=capacity.scores_ready,
            )
        )
        self._launcher.send(Ready())
        masks = Masks(epoch, capacity.vocab_size, config.max_num_seqs, config.queue_depth)
        collector = Collector(self._device, self._outbox, self._launcher, epoch)
        return Steps(epoch, Slots(config.max_num_seqs), masks, self._device, collector.put)
