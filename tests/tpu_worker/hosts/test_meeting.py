"""Rank 0 and another rank meet over loopback, each driven by hand where it would wait for a device."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.channel import Poller
from protocol.config import ChildSpec, EngineConfig
from protocol.errors import ConfigError, DeviceError, ExitCode
from protocol.host_messages import (
    HostHello,
    HostJoined,
    HostLoaded,
    HostProgress,
    HostScores,
    HostsEnd,
    HostsMet,
    HostValue,
    LeastValue,
    PlayPrepare,
)
from protocol.host_pipes import FollowerPipes
from protocol.messages import LAUNCHER_TO_CHILD
from protocol.supervision import SupervisionLink, socket_pair
from tests.model_writer import write_huggingface
from tests.ports import ports_in_a_row
from tpu_worker.hosts.facts import gather_facts
from tpu_worker.hosts.follower import Follower
from tpu_worker.hosts.lead import Lead

HOSTS = ("127.0.0.1", "127.0.0.1")


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    model = write_huggingface(tmp_path / "m")
    return EngineConfig(
        model_path=str(model),
        model_format="huggingface",
        served_model_names=("m",),
        device="cpu",
        tensor_parallel_size=2,
        hosts=HOSTS,
        hosts_port=ports_in_a_row(3),
        boot_timeout=0.3,
    )


def with_link(make: Callable[[ChildSpec, SupervisionLink[Any]], Any], config: EngineConfig) -> Any:
    """A rank, and the launcher's end that it must be able to talk to."""
    ours, theirs = socket_pair()
    spec = ChildSpec(role="worker", index=0, epoch=0, run_dir="/none", cpus=(), config=config)
    return make(spec, SupervisionLink(theirs, LAUNCHER_TO_CHILD)), ours, theirs


def test_who_does_not_come_is_named_on_both_sides(config: EngineConfig) -> None:
    lead, *ends = with_link(Lead, config)
    with pytest.raises(DeviceError, match=r"--hosts: rank 1 \(127.0.0.1\) did not come within 0.3 s: start engine-launch there"):
        lead.meet(lambda *_: None)
    lead.end(ExitCode.DEVICE_UNAVAILABLE, "rank 1 did not come")
    follower, *others = with_link(Follower, replace(config, host_rank=1))
    with pytest.raises(DeviceError, match=r"--hosts: rank 0 \(127.0.0.1\) did not ask this one in within 0.3 s: does"):
        follower.run()
    for end in (*ends, *others):
        end.close()


def test_names_that_nobody_knows_are_said(config: EngineConfig) -> None:
    lead, *ends = with_link(Lead, replace(config, hosts=("127.0.0.1", "no-such-host.invalid")))
    with pytest.raises(DeviceError, match=r"did not come within 0.3 s; no known host: no-such-host.invalid: start"):
        lead.meet(lambda *_: None)
    for end in ends:
        end.close()


class Hand(threading.Thread):
    """Rank 1, which answers like a rank that loads and follows, with these facts."""

    def __init__(self, config: EngineConfig, facts: dict[str, str], loaded: dict[str, str]) -> None:
        super().__init__(daemon=True)  # a test that fails does not wait for it
        self.heard: list[object] = []
        self._config, self._facts, self._loaded = config, facts, loaded

    def run(self) -> None:
        pipes = FollowerPipes(self._config, "127.0.0.1")
        poller = Poller()
        poller.watch(pipes.orders)
        epoch = -1
        while not any(isinstance(message, HostsEnd) for message in self.heard):
            if epoch < 0:
                pipes.reports.send(HostHello(1, 5, self._facts))
            poller.wait(0.02)
            for message in pipes.orders.receive_some():
                if isinstance(message, HostsMet) and epoch < 0:
                    epoch = message.epoch
                    pipes.reports.send(HostJoined(epoch, 1))
                    pipes.reports.send(HostProgress(epoch, 1, "loading weights", 1, 3))
                    pipes.reports.send(HostValue(epoch, 1, 7))
                elif isinstance(message, LeastValue):
                    pipes.reports.send(HostLoaded(epoch, 1, self._loaded))
                elif isinstance(message, PlayPrepare):
                    pipes.reports.send(HostScores(epoch, 1, message.call, "no room"))
                if not isinstance(message, HostsMet):
                    self.heard.append(message)
        pipes.close()


def test_all_take_the_least_and_hear_of_the_end(config: EngineConfig) -> None:
    config = replace(config, boot_timeout=30.0)
    hand = Hand(config, gather_facts(config, os.environ), {"x": "1"})
    hand.start()
    lead, *ends = with_link(Lead, config)
    progress: list[tuple[str, int, int]] = []
    lead.meet(lambda *report: progress.append(report))
    assert lead.least(9) == 7
    lead.await_loaded({"x": "1"})
    told: list[str] = []
    answered = threading.Event()

    def tell(error: str) -> None:
        told.append(error)
        answered.set()

    lead.expect_scores(0, tell)
    lead.tell(PlayPrepare(lead.epoch, 0))
    assert answered.wait(30.0) and told == ["no room"]
    lead.end(ExitCode.OK, "")
    hand.join(30.0)
    assert hand.heard == [LeastValue(lead.epoch, 7), PlayPrepare(lead.epoch, 0), HostsEnd(lead.epoch, 0, "")]
    assert ("loading weights on rank 1", 1, 3) in progress
    for end in ends:
        end.close()


def test_those_that_loaded_something_else_are_refused(config: EngineConfig) -> None:
    config = replace(config, boot_timeout=30.0)
    hand = Hand(config, gather_facts(config, os.environ), {"the longest context": "64"})
    hand.start()
    lead, *ends = with_link(Lead, config)
    lead.meet(lambda *_: None)
    assert lead.least(3) == 3
    with pytest.raises(ConfigError, match=r"the longest context is 96 on rank 0 \(127.0.0.1\), 64 on rank 1"):
        lead.await_loaded({"the longest context": "96"})
    lead.end(ExitCode.BAD_CONFIG, "they disagree")
    hand.join(30.0)
    assert hand.heard[-1] == HostsEnd(lead.epoch, ExitCode.BAD_CONFIG, "they disagree")
    for end in ends:
        end.close()
