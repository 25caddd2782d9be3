"""The link between launcher and child, with real processes."""

import subprocess
import sys
from pathlib import Path

from protocol.config import ChildSpec, EngineConfig, encode_spec
from protocol.messages import CHILD_TO_LAUNCHER, LAUNCHER_TO_CHILD, Drain, Progress, WorkerLost
from protocol.supervision import SupervisionLink, socket_pair

CHILD = """
import select, sys
from protocol.messages import Drain, Progress, WorkerLost
from protocol.supervision import enter_child
spec, launcher = enter_child(int(sys.argv[1]), "tpu_worker", die_with_launcher=False)
launcher.send(Progress(open("/proc/self/comm").read().strip(), spec.index, spec.epoch))
while not launcher.closed:
    select.select([launcher], [], [])
    order = launcher.receive()
    if order is not None:
        launcher.send(Progress(type(order).__name__, 0, 0))
sys.exit(7)
"""


def spec(index: int) -> ChildSpec:
    config = EngineConfig(model_path="/m", model_format="gguf", served_model_names=("m",))
    return ChildSpec(role="worker", index=index, epoch=5, run_dir="/r", cpus=(), config=config)


def test_specification_orders_reports_and_death(tmp_path: Path) -> None:
    ours, theirs = socket_pair()
    with subprocess.Popen([sys.executable, "-c", CHILD, str(theirs.fileno())], pass_fds=[theirs.fileno()]) as child:
        theirs.close()
        ours.sendall(encode_spec(spec(12)))
        link = SupervisionLink(ours, CHILD_TO_LAUNCHER)

        def receive() -> object:
            ours.setblocking(True)
            ours.settimeout(30)
            return link.receive()

        assert receive() == Progress("tpu_worker-12", 12, 5)
        link.send(WorkerLost(1, 2))
        assert receive() == Progress("WorkerLost", 0, 0)
        link.send(Drain())
        assert receive() == Progress("Drain", 0, 0)
        link.close()  # as if the launcher had died
        assert child.wait(30) == 7


def test_a_dead_peer_is_noticed_and_sending_to_it_is_harmless() -> None:
    ours, theirs = socket_pair()
    link = SupervisionLink(ours, LAUNCHER_TO_CHILD)
    assert link.receive() is None and not link.closed
    theirs.close()
    link.send(Drain())
    assert link.receive() is None and link.closed
    link.close()
