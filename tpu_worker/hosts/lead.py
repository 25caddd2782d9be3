"""What rank 0 has to do with the other ranks: it waits for them, tells them what to do, and hears of their end."""

import contextlib
import logging
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping

from protocol.channel import Poller
from protocol.clock import now, now_ns
from protocol.config import ChildSpec
from protocol.errors import ConfigError, DeviceError, ExitCode, RankLostError
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
)
from protocol.host_pipes import LeaderPipes, resolve_all
from protocol.messages import Failed, LauncherToChild
from protocol.pulse import Metronome
from protocol.supervision import SupervisionLink, leave
from tpu_worker.device import ReportProgress
from tpu_worker.hosts.facts import find_disagreement, gather_facts
from tpu_worker.hosts.roll import Roll

_LOG = logging.getLogger(__name__)

_REPEAT = 0.05  # seconds between two invitations
_LOOK_UP = 2.0  # seconds between two looks at the addresses of the hosts, which come and change while the others start
_GRACE = 5.0  # seconds for those who are not here yet, so that they too hear what is wrong
_JOIN = 10.0  # seconds for all that are here to join
_SETTLE = 2.0  # seconds between a failed program and the end of the connection that says why
_FAREWELL = 2.0  # seconds for all to leave: an idle worker has five


class Lead:
    """Rank 0's end. `meet` first; then a thread of its own hears the others, and any thread may `tell` them."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        self._config = spec.config
        self._launcher = launcher
        self.epoch = secrets.randbits(63)
        self._peers: tuple[str, ...] = ()  # addresses of all hosts
        self._pipes: LeaderPipes | None = None
        self._lock = threading.Lock()  # of what is told
        self._ended = False
        self._watches = False
        self._gone = threading.Event()  # every other rank
        self._ranks: dict[int, int] = {}  # by connection, of those that are here
        self._answers: queue.SimpleQueue[HostValue | HostLoaded] = queue.SimpleQueue()
        self._on_scores: dict[int, Callable[[str], None]] = {}  # by call
        self._report: ReportProgress

    @property
    def address(self) -> str:
        """Of this host, once all have met."""
        return self._peers[0]

    def meet(self, report: ReportProgress) -> None:
        """Waits until all ranks are here and have joined.

        Raises ConfigError when they disagree, DeviceError when some do not come, AddressError when this is not the first host.
        """
        self._report = report
        roll = Roll(self._config.hosts, gather_facts(self._config, os.environ))
        self._gather(roll)
        self._invite(roll)
        self._ranks = roll.connections
        self._watches = True
        threading.Thread(target=self._watch, name="hosts", daemon=True).start()  # ends with the process

    def least(self, value: int) -> int:
        """Of what all ranks say."""
        least = min([value, *(answer.value for answer in self._collect() if isinstance(answer, HostValue))])
        self.tell(LeastValue(self.epoch, least))
        return least

    def await_loaded(self, facts: Mapping[str, str]) -> None:
        """Waits until all have loaded. Raises ConfigError when they did not load the same as this rank's `facts`."""
        loaded = {answer.rank: answer.facts for answer in self._collect() if isinstance(answer, HostLoaded)}
        if text := find_disagreement({0: facts, **dict(sorted(loaded.items()))}, self._config.hosts):
            raise ConfigError(text)

    def tell(self, message: LeaderToFollower) -> None:
        """Tells all ranks, in order."""
        with self._lock:
            if self._pipes is not None and not self._ended:
                self._pipes.orders.send(message)

    def expect_scores(self, call: int, told: Callable[[str], None]) -> None:
        """Has `told` called for each rank that answers the PlayPrepare of this number, with an empty text or why it cannot."""
        self._on_scores[call] = told

    @contextlib.contextmanager
    def ends_with_others(self) -> Iterator[None]:
        """Where a program fails because another rank is gone, that is what is told: it is given a moment to be heard of."""
        try:
            yield
        except Exception:
            self._gone.wait(_SETTLE)
            raise

    def end(self, exit_code: int, text: str) -> None:
        """Tells all ranks to end, and waits a moment until they have: JAX is less kind to a process whose coordinator is gone."""
        message = HostsEnd(self.epoch, exit_code, text)
        with self._lock:
            if self._pipes is None or self._ended:
                return
            self._ended = True  # before anybody leaves because of it: that is no loss
            self._pipes.orders.send(message)
        if self._watches:
            self._gone.wait(_FAREWELL)
        else:
            self._say_farewell(self._pipes, message)
        if self._gone.is_set() or not self._watches:
            self._pipes.close()
        else:  # the other thread still reads
            self._pipes.orders.close()

    # the meeting

    def _gather(self, roll: Roll) -> None:
        config, metronome = self._config, Metronome(self._config.pulse_interval)
        began = looked = now()
        deadline, unknown = began + config.boot_timeout, self._look_up()
        while roll.missing() or roll.wrong:
            if metronome.is_due(now_ns()):
                self._report("waiting for the other hosts", len(config.hosts) - 1 - len(roll.missing()), len(config.hosts) - 1)
            if now() - looked > _LOOK_UP and roll.missing():
                unknown, looked = self._look_up(), now()
            self._hear(roll)
            if roll.wrong:
                deadline = min(deadline, now() + _GRACE)
                if not roll.missing() or now() > deadline:
                    raise ConfigError(roll.wrong)
            if self._pipes is not None and self._pipes.connections.wrong_token:
                roll.object("--hosts-token-file: a host came with another token, or one of the two has none")
            if now() > deadline:
                names = f"; no known host: {', '.join(unknown)}" if unknown else ""
                raise DeviceError(
                    f"--hosts: {roll.describe(roll.missing())} did not come within {config.boot_timeout:g} s{names}: start "
                    f"engine-launch there with the same --hosts and its own --host-rank, and let it reach port {config.hosts_port} "
                    "and the two behind it"
                )

    def _look_up(self) -> list[str]:
        """Opens the pipes for the addresses that the hosts have by now. Returns the names of those that have none."""
        peers, unknown = resolve_all(self._config.hosts)
        if not unknown and peers != self._peers:
            if self._pipes is not None:
                self._pipes.close()
            self._pipes, self._peers = LeaderPipes(self._config, peers), peers
        return unknown

    def _hear(self, roll: Roll) -> list[int]:
        """What came of the pipes within a moment; returns the ranks that joined."""
        joined: list[int] = []
        if self._pipes is None:
            threading.Event().wait(_REPEAT)
            return joined
        poller = Poller()
        poller.watch(self._pipes.reports)
        poller.watch(self._pipes.connections)
        poller.wait(_REPEAT)
        while (received := self._pipes.reports.receive_with_connection()) is not None:
            # A number is given again when its connection has ended: what ended before this message came is looked at first.
            for connection in self._pipes.connections.ended():
                roll.left(connection)
            match received[0]:
                case HostHello() as hello:
                    roll.came(hello, received[1])
                case HostJoined(epoch, rank) if epoch == self.epoch:
                    joined.append(rank)
                case message:  # who has joined goes on, while others have not
                    self._take_in(message)
        for connection in self._pipes.connections.ended():
            roll.left(connection)
        self._ranks = roll.connections
        return joined

    def _invite(self, roll: Roll) -> None:
        """Says who is meant until each of them has joined: who connects does not hear from the first moment on."""
        invited, joined = roll.incarnations, set[int]()
        deadline = now() + _JOIN
        while len(joined) < len(invited):
            self.tell(HostsMet(self.epoch, invited))
            joined |= set(self._hear(roll))
            if roll.incarnations != invited or now() > deadline:
                late = [rank for rank in range(1, len(self._config.hosts)) if rank not in joined]
                raise RankLostError(f"--hosts: {roll.describe(late)} came and did not join")

    def _say_farewell(self, pipes: LeaderPipes, message: HostsEnd) -> None:
        """To those that came, and perhaps do not hear yet."""
        deadline = now() + _FAREWELL
        while self._ranks and now() < deadline:
            pipes.orders.send(message)
            threading.Event().wait(_REPEAT)
            for connection in pipes.connections.ended():
                self._ranks.pop(connection, None)

    # from then on

    def _collect(self) -> list[HostValue | HostLoaded]:
        """The answers of all other ranks to what they are asked next. A rank that is lost meanwhile ends this process."""
        return [self._answers.get() for _ in self._config.hosts[1:]]

    def _watch(self) -> None:
        assert self._pipes is not None
        reports, connections = self._pipes.reports, self._pipes.connections
        poller = Poller()
        poller.watch(reports)
        poller.watch(connections)
        while self._ranks:
            poller.wait(None)
            while (received := reports.receive_with_connection()) is not None:
                self._take_in(received[0])
            for connection in connections.ended():
                if (rank := self._ranks.pop(connection, None)) is not None and not self._ended:
                    self._fail(ExitCode.RANK_LOST, f"rank {rank} ({self._config.hosts[rank]}) is gone: its connection ended")
        self._gone.set()

    def _take_in(self, message: FollowerToLeader) -> None:
        match message:
            case HostProgress(self.epoch, rank, phase, done, total):
                self._report(f"{phase} on rank {rank}", done, total)
            case HostValue(self.epoch) | HostLoaded(self.epoch):
                self._answers.put(message)
            case HostScores(self.epoch, _, call, error):
                self._on_scores[call](error)
            case HostFailed(self.epoch, rank, exit_code, text):
                self._fail(exit_code, f"rank {rank} ({self._config.hosts[rank]}): {text}")
            case HostHello(rank):
                _LOG.warning("a further process says that it is rank %d: it waits until this worker has ended", rank)

    def _fail(self, exit_code: int, text: str) -> None:
        """The worker ends on all hosts: the main thread may be waiting for the very rank that is gone."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            assert self._pipes is not None
            self._pipes.orders.send(HostsEnd(self.epoch, exit_code, text))
            self._pipes.orders.close()
        self._launcher.send(Failed(exit_code, text))
        self._launcher.deliver()
        leave(exit_code)
