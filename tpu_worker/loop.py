"""The worker's loop: receive, prepare, dispatch. What the device yields is another thread's business."""

from protocol.channel import Poller, Receiver
from protocol.clock import now_ns
from protocol.config import PROTOCOL_VERSION, ChildSpec
from protocol.endpoints import ipc_address, session_dir, worker_inbox, worker_outbox
from protocol.logs import set_level
from protocol.messages import (
    SCHEDULER_TO_WORKER,
    Drain,
    LauncherToChild,
    Progress,
    Pulse,
    Ready,
    Reload,
    SchedulerStarted,
    SchedulerToWorker,
    WorkerReady,
)
from protocol.pulse import Metronome
from protocol.supervision import SupervisionLink
from tpu_worker.collector import Collector, Session
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
        self._collector = Collector(device, launcher, spec.epoch)
        self._poller = Poller()
        self._poller.watch(launcher.fileno())
        self._inbox = self._open_inbox(spec.session)
        self._metronome = Metronome(spec.config.pulse_interval)

    def run(self) -> None:
        """Loads the device, says hello, then serves until told to end. Raises EngineError when it cannot go on.

        Nobody wants the answers of steps in flight any more when it is told to end, since the scheduler has ended before, and the
        device is left to the kernel: to close it would wait for the program that is being compiled.
        """
        hello = self._load()
        steps = self._begin(self._spec.session, hello)
        self._launcher.send(Ready())
        while not self._launcher.closed:
            if self._launcher.fileno() in self._poller.wait(self._spec.config.pulse_interval):
                match self._launcher.receive():
                    case Drain():
                        return
                    case Reload(log_level=level):
                        set_level(level)
                    case SchedulerStarted(session):
                        steps.abandon()
                        self._poller.forget(self._inbox)
                        self._inbox.close()
                        self._inbox = self._open_inbox(session)
                        steps = self._begin(session, hello)
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

    def _open_inbox(self, session: int) -> Receiver[SchedulerToWorker]:
        address = ipc_address(session_dir(self._spec.run_dir, session), worker_inbox(self._spec.index))
        inbox: Receiver[SchedulerToWorker] = Receiver(address, SCHEDULER_TO_WORKER, bind=True)
        self._poller.watch(inbox)
        return inbox

    def _begin(self, session: int, hello: WorkerReady) -> Steps:
        """A scheduler begins, for which every slot is free: weights, compiled programs and the device stay as they are."""
        config = self._spec.config
        address = ipc_address(session_dir(self._spec.run_dir, session), worker_outbox(self._spec.index))
        self._collector.put(Session(address, hello))
        masks = Masks(hello.epoch, hello.vocab_size, config.max_num_seqs, config.queue_depth)
        return Steps(hello.epoch, Slots(config.max_num_seqs, len(hello.windows)), masks, self._device, self._collector.put)

    def _load(self) -> WorkerReady:
        capacity = self._device.load(lambda phase, done, total: self._launcher.send(Progress(phase, done, total)))
        return WorkerReady(
            version=PROTOCOL_VERSION,
            worker=self._spec.index,
            epoch=self._spec.epoch,
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_num_seqs=self._spec.config.max_num_seqs,
            max_model_len=capacity.max_model_len,
            vocab_size=capacity.vocab_size,
            device=capacity.description,
            saturating_tokens=capacity.saturating_tokens,
            scores_ready=capacity.scores_ready,
            weights=capacity.weights,
            embedding_size=capacity.embedding_size,
            windows=capacity.windows,
            kv_cache_dtype=capacity.kv_cache_dtype,
        )
