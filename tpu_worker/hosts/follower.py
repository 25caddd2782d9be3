"""The loop of a rank behind the first: meets rank 0, loads, and does with its chips whatever rank 0 does."""

import contextlib
import logging
import os
import queue
import secrets
import threading

import numpy as np

from protocol.channel import ChannelFullError, Poller
from protocol.clock import now, now_ns
from protocol.config import ChildSpec
from protocol.errors import ConfigError, DeviceError, EngineError, ExitCode, ProtocolError, describe
from protocol.host_messages import (
    FollowerToLeader,
    HostFailed,
    HostHello,
    HostJoined,
    HostLoaded,
    HostProgress,
    HostScores,
    HostsEnd,
    HostsMet,
    HostValue,
    LeaderToFollower,
    LeastValue,
    PlayForward,
    PlayPrepare,
    PlaySample,
)
from protocol.host_pipes import FollowerPipes, resolve_all
from protocol.logs import set_level
from protocol.messages import Drain, Failed, LauncherToChild, Progress, Pulse, Ready, Reload
from protocol.pulse import Metronome
from protocol.supervision import SupervisionLink, leave
from tpu_worker.hosts.distributed import connect
from tpu_worker.hosts.facts import gather_facts
from tpu_worker.hosts.leading_device import loaded_facts
from tpu_worker.hosts.plans import unpack_plan
from tpu_worker.runner import JaxDevice

_LOG = logging.getLogger(__name__)

_REPEAT = 0.2  # seconds between two hellos
_LOOK_UP = 2.0  # seconds between two looks at the address of rank 0
_REFUSALS = 8  # connections that rank 0 ends at once, before a token counts as wrong: one may end because rank 0 does
_GRACE = 3.0  # seconds in which a wrong token is tried again, so that rank 0 notices too: of a failed handshake, one end may not
_SETTLE = 1.5  # seconds between a failed program and the end of the connection that says why
_LAST_ORDER = 0.5  # seconds for the main thread to read why rank 0 is gone, if it said so


class _EndedError(Exception):
    """The engine was told to stop, or this rank was."""


class Follower:
    """Owns the device and the pipes of one process."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        self._spec = spec
        self._config = spec.config
        self._launcher = launcher
        self._rank = spec.config.host_rank
        self._device = JaxDevice(spec.config, least=self._least)
        self._epoch = -1  # before this rank has joined
        self._pipes: FollowerPipes | None = None
        self._lock = threading.Lock()  # of what is reported
        self._heard = threading.Event()  # why all ranks end
        self._handles: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._open: object = None  # the last step, which may yet be sampled
        self._calls = 0
        self._barred_at: float | None = None  # since when rank 0 is known to have another token

    def run(self) -> None:
        """Serves until told to end. Raises EngineError when it cannot go on."""
        try:
            leader = self._meet()
            threading.Thread(target=self._watch, name="rank 0", daemon=True).start()  # ends with the process
            connect(self._config, leader)
            capacity = self._device.load(self._report)
            self._say(HostLoaded(self._epoch, self._rank, loaded_facts(capacity)))
            threading.Thread(target=self._collect, name="collector", daemon=True).start()
            self._launcher.send(Ready({"rank": self._rank, "device": capacity.description}))
            self._serve()
        except _EndedError:
            return
        except Exception as error:
            if self._epoch >= 0 and not self._heard.is_set():
                threading.Event().wait(_SETTLE)
            code = error.exit_code if isinstance(error, EngineError) else ExitCode.CRASHED
            self._give_notice(code, describe(error))
            raise
        finally:
            with self._lock:
                if self._pipes is not None and self._epoch >= 0:  # the other thread still reads
                    self._pipes.reports.close()
                elif self._pipes is not None:
                    self._pipes.close()

    # the meeting

    def _meet(self) -> str:
        """Waits until rank 0 says that all are there; returns its address."""
        config, metronome = self._config, Metronome(self._config.pulse_interval)
        hello = HostHello(self._rank, secrets.randbits(63), gather_facts(config, os.environ))
        looked, leader = -_LOOK_UP, ""
        deadline = now() + config.boot_timeout
        while True:
            if metronome.is_due(now_ns()):
                self._launcher.flush()
                self._launcher.send(Progress(f"waiting for rank 0 ({config.hosts[0]})", 0, 1))
            if now() - looked > _LOOK_UP:
                leader, looked = self._look_up(leader), now()
            if self._pipes is not None:
                with contextlib.suppress(ChannelFullError):  # a pipe whose token was wrong takes nothing
                    self._say(hello)
                for message in self._wait(self._pipes, _REPEAT):
                    match message:
                        case HostsMet(epoch, incarnations) if incarnations[self._rank - 1 : self._rank] == (hello.incarnation,):
                            self._epoch = epoch
                            self._say(HostJoined(epoch, self._rank))
                            return leader
                        case HostsEnd():
                            self._end(message)
                self._check_connections(self._pipes, leader)
            else:
                self._hear_launcher(_REPEAT)
            if now() > deadline:
                shut = ", which lets nobody in from this address" if self._pipes and self._pipes.connections.refused else ""
                raise DeviceError(
                    f"--hosts: rank 0 ({config.hosts[0]}){shut} did not ask this one in within {config.boot_timeout:g} s: does "
                    f"engine-launch run there with --host-rank 0, and are its port {config.hosts_port} and the next two open?"
                )

    def _look_up(self, before: str) -> str:
        """The address of rank 0, with pipes to it; empty, while it has none."""
        found, _ = resolve_all(self._config.hosts[:1])
        leader = found[0] if found else before
        if leader != before:
            if self._pipes is not None:
                self._pipes.close()
            self._pipes = FollowerPipes(self._config, leader)
        return leader

    def _check_connections(self, pipes: FollowerPipes, leader: str) -> None:
        pipes.connections.ended()
        where = f"{self._config.hosts[0]} ({leader}:{self._config.hosts_port})"
        if pipes.connections.wrong_token:
            self._barred_at = self._barred_at or now()
            if now() - self._barred_at > _GRACE:
                raise ConfigError(f"--hosts-token-file: {where} has another token, or one of the two has none")
            pipes.close()  # ZeroMQ does not try again
            self._pipes = FollowerPipes(self._config, leader)
        if self._config.hosts_secret and pipes.connections.refused > _REFUSALS:
            raise ConfigError(f"--hosts-token-file: {where} does not let this host in: its token, or its --hosts, is another")

    # while it loads

    def _report(self, phase: str, done: int, total: int) -> None:
        self._launcher.send(Progress(phase, done, total))
        self._say(HostProgress(self._epoch, self._rank, phase, done, total))

    def _least(self, value: int) -> int:
        """Of what all ranks say. Rank 0 counts them."""
        assert self._pipes is not None
        self._say(HostValue(self._epoch, self._rank, value))
        metronome = Metronome(self._config.pulse_interval)
        while True:
            if metronome.is_due(now_ns()):
                self._launcher.send(Progress("waiting for the other hosts", 0, 1))
            for message in self._wait(self._pipes, self._config.pulse_interval):
                match message:
                    case LeastValue(self._epoch, least):
                        return least
                    case HostsEnd(self._epoch):
                        self._end(message)

    # while it serves

    def _serve(self) -> None:
        assert self._pipes is not None
        metronome = Metronome(self._config.pulse_interval)
        while not self._launcher.closed:
            for message in self._wait(self._pipes, self._config.pulse_interval):
                self._play(message)
            if metronome.is_due(now_ns()):
                self._launcher.flush()
                self._launcher.send(Pulse("following", self._calls))

    def _play(self, message: LeaderToFollower) -> None:
        match message:
            case HostsEnd(self._epoch):
                self._end(message)
            case PlayForward(self._epoch, call):
                self._count(call)
                self._open = self._device.forward(unpack_plan(message))
                self._handles.put(self._open)
            case PlaySample(self._epoch, call, num_rows, bits):
                self._count(call)
                masks = np.frombuffer(bits, "<u4").reshape(num_rows, -1)
                self._handles.put(self._device.sample(self._open, masks))
            case PlayPrepare(self._epoch, call):
                self._count(call)
                self._device.prepare_scores(lambda error: self._say(HostScores(self._epoch, self._rank, call, error)))

    def _count(self, call: int) -> None:
        if call != self._calls:
            raise ProtocolError(f"call {call} of rank 0 came where call {self._calls} was due: what came between was lost")
        self._calls += 1

    def _collect(self) -> None:
        """Waits for the device, so that what fails there is heard of. Rank 0 has the same results."""
        while True:
            handle = self._handles.get()
            try:
                self._device.collect(handle)
            except Exception as error:  # noqa: BLE001 - whatever a device raises
                threading.Event().wait(_SETTLE)
                self._leave(ExitCode.CRASHED, f"a step failed on the device: {describe(error)}")

    # both ways

    def _wait(self, pipes: FollowerPipes, timeout: float) -> list[LeaderToFollower]:
        """What rank 0 says within that time. Raises _EndedError when the launcher says so."""
        poller = Poller()
        poller.watch(pipes.orders)
        poller.watch(self._launcher.fileno())
        if self._launcher.fileno() in poller.wait(timeout):
            self._hear_launcher(0.0)
        return pipes.orders.receive_some()

    def _hear_launcher(self, timeout: float) -> None:
        poller = Poller()
        poller.watch(self._launcher.fileno())
        if not poller.wait(timeout):
            return
        match self._launcher.receive():
            case Drain():
                self._give_notice(ExitCode.RANK_LOST, "its engine-launch was told to stop")
                raise _EndedError
            case Reload(log_level=level):
                set_level(level)
        if self._launcher.closed:
            raise _EndedError

    def _end(self, message: HostsEnd) -> None:
        """Rank 0 ends, and so does this one."""
        self._heard.set()
        if message.exit_code == ExitCode.OK:
            raise _EndedError
        error = EngineError(message.message)
        error.exit_code = message.exit_code
        raise error

    def _say(self, message: FollowerToLeader) -> None:
        with self._lock:
            if self._pipes is not None:
                self._pipes.reports.send(message)

    def _give_notice(self, exit_code: int, text: str) -> None:
        """The last word to rank 0, unless that has had its own."""
        if self._epoch >= 0 and not self._heard.is_set():
            self._say(HostFailed(self._epoch, self._rank, exit_code, text))

    def _watch(self) -> None:
        """Ends this process when rank 0 is gone, whatever the main thread waits for."""
        assert self._pipes is not None
        poller = Poller()
        poller.watch(self._pipes.connections)
        while not self._pipes.connections.ended():
            poller.wait(None)
        text = f"rank 0 ({self._config.hosts[0]}) is gone: its connection ended"
        if not self._heard.is_set():  # said at once: JAX aborts a process that its coordinator does not answer any more
            self._launcher.send(Failed(ExitCode.RANK_LOST, text))
        if not self._heard.wait(_LAST_ORDER):
            self._leave(ExitCode.RANK_LOST, text)

    def _leave(self, code: int, text: str) -> None:
        self._give_notice(code, text)
        with self._lock:
            if self._pipes is not None:
                self._pipes.reports.close()
        self._launcher.send(Failed(code, text))
        self._launcher.deliver()
        leave(code)
