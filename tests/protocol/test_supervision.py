"""The link between launcher and child, with real processes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from protocol.config import ChildSpec, EngineConfig, encode_spec
from protocol.errors import ConfigError, ExitCode, ProtocolError
from protocol.messages import (
    CHILD_TO_LAUNCHER,
    LAUNCHER_TO_CHILD,
    ChildToLauncher,
    Drain,
    Failed,
    Progress,
    Pulse,
    WorkerHung,
    WorkerLost,
)
from protocol.supervision import SupervisionLink, run_child, socket_pair

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


def ends() -> tuple[SupervisionLink[object], SupervisionLink[ChildToLauncher]]:
    """A child's end and its launcher's."""
    ours, theirs = socket_pair()
    return SupervisionLink(theirs, LAUNCHER_TO_CHILD), SupervisionLink(ours, CHILD_TO_LAUNCHER)  # type: ignore[arg-type]


def read(link: SupervisionLink[ChildToLauncher]) -> list[ChildToLauncher]:
    messages = []
    while (message := link.receive()) is not None:
        messages.append(message)
    return messages


def fill(link: SupervisionLink[object]) -> None:
    """Until the socket holds no more."""
    before = -1
    text = "x" * 10_000
    for _ in range(1000):
        link.send(Progress(text, 0, 0))
    link.send(WorkerHung(0, before, "the first that waits"))
    assert link.wants_write


def test_behind_a_full_socket_only_progress_and_pulses_are_dropped() -> None:
    child, launcher = ends()
    fill(child)
    for number in range(100):
        child.send(WorkerHung(0, number, "hung"))
        child.send(Pulse("idle", number))
        child.send(Progress("loading", number, 100))
    child.send(Failed(1, "the last word"))
    heard = list[ChildToLauncher]()
    while not (heard and isinstance(heard[-1], Failed)):
        heard += read(launcher)
        child.flush()
    assert [message.epoch for message in heard if isinstance(message, WorkerHung)] == list(range(-1, 100))
    assert not any(isinstance(message, Pulse) for message in heard)
    assert not child.wants_write
    child.close()
    launcher.close()


def test_last_words_are_delivered_to_a_launcher_that_reads_late_and_given_up_for_one_that_does_not() -> None:
    child, launcher = ends()
    fill(child)
    assert not child.deliver(0.0)
    reader = threading.Timer(0.05, read, [launcher])
    reader.start()
    assert child.deliver(30.0)
    reader.join()
    child.close()
    launcher.close()


def test_a_peer_that_leaves_too_much_unread_is_as_good_as_gone() -> None:
    child, launcher = ends()
    fill(child)
    for number in range(2000):
        child.send(WorkerHung(0, number, "hung"))
    assert not child.wants_write
    assert child.receive() is None
    assert child.closed
    read(launcher)
    assert launcher.closed
    child.close()
    launcher.close()


def test_a_message_that_no_packet_holds_is_refused() -> None:
    child, launcher = ends()
    with pytest.raises(ProtocolError, match="a Failed of 200"):
        child.send(Failed(1, "x" * 200_000))
    child.close()
    launcher.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("m\udcff.gguf: no such file"), Failed(ExitCode.BAD_CONFIG, "m\\udcff.gguf: no such file")),
        (ConfigError("x" * 10**6), Failed(ExitCode.BAD_CONFIG, "x" * 16_384)),
        (ValueError("a fault"), Failed(ExitCode.CRASHED, "ValueError: a fault")),
        (AssertionError(), Failed(ExitCode.CRASHED, "AssertionError: AssertionError")),
    ],
)
def test_whatever_ends_a_child_becomes_its_last_word(error: Exception, said: Failed) -> None:
    child, launcher = ends()

    def serve() -> None:
        raise error

    assert run_child(child, serve) == said.exit_code  # type: ignore[arg-type]
    assert read(launcher) == [said]
    child.close()
    launcher.close()
