"""The end of a worker process: what it still has to say arrives, and nothing holds it up. The test is scheduler and launcher."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.channel import Poller, Receiver, Sender
from protocol.clock import now
from protocol.codec import pack_int32
from protocol.config import ChildSpec, EngineConfig, encode_spec
from protocol.endpoints import ipc_address, worker_inbox, worker_outbox
from protocol.errors import ExitCode
from protocol.messages import (
    CHILD_TO_LAUNCHER,
    WORKER_TO_SCHEDULER,
    ChildToLauncher,
    Drain,
    Failed,
    NewRequest,
    SchedulerOutput,
    WorkerFailed,
    WorkerReady,
    WorkerToScheduler,
)
from protocol.params import EngineParams
from protocol.supervision import SupervisionLink, socket_pair

TIMEOUT = 30.0  # seconds; bounds a hang

PROGRAM = """
import sys, threading, time
from pathlib import Path
from protocol.supervision import enter_child, leave, run_child
from tpu_worker.device import Capacity
from tpu_worker.loop import WorkerLoop


class Broken:
    '''A device whose first step fails while the main thread waits for it, as both may in one driver.'''

    def load(self, report):
        threading.Thread(target=time.sleep, args=(1000,), name="compiler").start()
        return Capacity(num_blocks=8, block_size=16, max_model_len=64, vocab_size=100, description="broken")

    def forward(self, plan):
        if plan.step_id == 1:
            time.sleep(1000)

    def collect(self, handle):
        Path(spec.run_dir, "failed").touch()
        raise RuntimeError("the chip is on fire: " + "x" * 1_000_000)


spec, launcher = enter_child(int(sys.argv[1]), "tpu_worker", die_with_launcher=True)
leave(run_child(launcher, WorkerLoop(spec, launcher, Broken()).run))
"""


class Worker:
    """A worker process and both of its links."""

    def __init__(self, run_dir: Path) -> None:
        config = EngineConfig(model_path="/m", model_format="gguf", served_model_names=("m",), device="sim", max_num_seqs=4)
        ours, theirs = socket_pair()
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        ours.sendall(encode_spec(ChildSpec(role="worker", index=0, epoch=3, run_dir=str(run_dir), cpus=(), config=config)))
        self.link: SupervisionLink[ChildToLauncher] = SupervisionLink(ours, CHILD_TO_LAUNCHER)
        self.steps = Sender(ipc_address(str(run_dir), worker_inbox(0)), bind=False)
        self._run_dir = run_dir

    def answers(self, count: int) -> list[WorkerToScheduler]:
        """The first messages to the scheduler, which begins to listen with this."""
        answers: Receiver[WorkerToScheduler] = Receiver(
            ipc_address(str(self._run_dir), worker_outbox(0)), WORKER_TO_SCHEDULER, bind=True
        )
        poller = Poller()
        poller.watch(answers)
        messages = list[WorkerToScheduler]()
        while len(messages) < count:
            assert poller.wait(TIMEOUT), "the worker says nothing"
            if (message := answers.receive()) is not None:
                messages.append(message)
        answers.close()
        return messages

    def last_word(self) -> ChildToLauncher:
        """What it said last to the launcher before it ended."""
        poller = Poller()
        poller.watch(self.link.fileno())
        last = None
        while not self.link.closed:
            assert poller.wait(TIMEOUT), "the worker neither speaks nor ends"
            last = self.link.receive() or last
        assert last is not None
        return last

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.link.close()
        self.steps.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.close()


def step(step_id: int) -> SchedulerOutput:
    if step_id:
        return SchedulerOutput(epoch=3, step_id=step_id, num_decodes=0)
    new = NewRequest(0, pack_int32([1, 2, 3]), 3, 0, pack_int32([1]), EngineParams(max_tokens=4))
    return SchedulerOutput(epoch=3, step_id=0, new=(new,), prefill_slots_i32=pack_int32([0]), prefill_counts_i32=pack_int32([3]))


def test_a_device_that_fails_is_reported_to_both_before_the_process_ends(worker: Worker, tmp_path: Path) -> None:
    worker.steps.send(step(0))
    worker.steps.send(step(1))
    limit = now() + TIMEOUT
    while not (tmp_path / "failed").exists():
        assert now() < limit, "the device never failed"
    ready, failed = worker.answers(2)  # the scheduler was busy, and takes in only now what is about to be lost
    assert isinstance(ready, WorkerReady)
    assert isinstance(failed, WorkerFailed)
    assert failed.epoch == 3
    assert failed.message.startswith("step 0 failed on the device: the chip is on fire: xxx")
    assert worker.last_word() == Failed(ExitCode.CRASHED, failed.message)
    assert worker.process.wait(TIMEOUT) == ExitCode.CRASHED


def test_a_worker_that_is_told_to_end_does_not_wait_for_its_compiler(worker: Worker) -> None:
    (ready,) = worker.answers(1)
    assert isinstance(ready, WorkerReady)
    worker.link.send(Drain())
    assert worker.process.wait(TIMEOUT) == ExitCode.OK
