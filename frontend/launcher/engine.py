"""The launcher's loop: hears signals and children, asks the supervisor, does what it says."""

import os
import selectors
import shutil
import socket
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from frontend.launcher.accelerators.host import raise_locked_memory_limit
from frontend.launcher.child import PROGRAMS, ChildProcess, Programs
from frontend.launcher.events import (
    SCHEDULER,
    Announce,
    Begin,
    Child,
    Command,
    Event,
    Exit,
    Exited,
    Looked,
    Said,
    Say,
    Send,
    Show,
    Signal,
    Spawn,
    Status,
    Stopping,
    StopRequested,
    Tick,
)
from frontend.launcher.follower import FollowerSupervisor
from frontend.launcher.liveness import Limits
from frontend.launcher.notify import EXTENSION, Notifier
from frontend.launcher.output import Voice, announce
from frontend.launcher.phase import LONGEST_END, Phase
from frontend.launcher.placement import place_workers
from frontend.launcher.progress import StartDisplay, start_display
from frontend.launcher.run_directory import RunDirectory
from frontend.launcher.signals import Signals
from frontend.launcher.supervisor import Supervisor
from frontend.restarts import publish_restarts
from frontend.server.bind import bind_http
from protocol.clock import ChargedClock, now, now_ns
from protocol.config import ChildSpec, EngineConfig
from protocol.endpoints import LONGEST_SOCKET_PATH, MAX_SESSIONS, session_dir, worker_outbox
from protocol.errors import ConfigError, EngineError, ExitCode, ProtocolError
from protocol.messages import Failed, Reload
from protocol.pulse import Metronome


class Engine:
    """The processes of one engine, from start to end. Owns the run directory."""

    def __init__(
        self,
        config: EngineConfig,
        signals: Signals,
        *,
        reread: Callable[[], Reload] | None = None,
        programs: Programs = PROGRAMS,
        environ: Mapping[str, str] = os.environ,
        listener: socket.socket | None = None,
    ) -> None:
        """Nothing is started yet. `reread`: finds out what is to change, at a SIGHUP. `listener`: what the frontends are to listen
        on, in place of a port of their own.

        Raises ConfigError when the host's chips do not suffice.
        """
        self._config = config
        self._signals = signals
        self._programs = programs
        self._placements = place_workers(config, environ)
        limits = Limits(config.pulse_timeout, config.step_timeout, config.boot_timeout)
        self._supervisor: Supervisor | FollowerSupervisor
        if config.host_rank > 0:
            self._supervisor = FollowerSupervisor(config.host_rank, config.restart_delay, config.max_restarts, limits)
        else:
            self._supervisor = Supervisor(
                workers=config.workers,
                drain_timeout=config.drain_timeout,
                restart_delay=config.restart_delay,
                max_restarts=config.max_restarts,
                frontends=config.frontends,
                limits=limits,
            )
        self._reread = reread
        self._listener = listener
        self._voice = Voice(config.log_format)
        self._notifier = Notifier(environ)
        self._selector = selectors.DefaultSelector()
        self._children: dict[Child, ChildProcess] = {}
        self._events: deque[Event] = deque()
        self._display: StartDisplay | None = None
        self._tick = config.pulse_interval
        self._clock = ChargedClock(int(self._tick * 1e9), now_ns())  # of all limits: no child is blamed for a freeze of all of us
        self._looks = Metronome(self._tick)
        self._next_ping = now()
        self._pinged_at = 0.0  # on the clock of the limits
        self._exit_code: int | None = None
        self._port: socket.socket | None = None  # bound; where one frontend alone listens, it inherits it

    def run(self) -> int:
        """Starts the children and stays until all have ended. Returns the exit code."""
        self._run_dir = RunDirectory()
        try:
            longest = f"{session_dir(self._run_dir.path, MAX_SESSIONS - 1)}/{worker_outbox(self._config.workers)}"
            if len(os.fsencode(longest)) > LONGEST_SOCKET_PATH:
                raise ConfigError(f"{self._run_dir.path} is too long for sockets: set XDG_RUNTIME_DIR to a shorter directory")
            self._run_dir.sweep()
            if "stop" in self._signals.take():
                return ExitCode.OK
            if self._config.device == "tpu":
                raise_locked_memory_limit()
            if self._listener is None and self._config.host_rank == 0:  # held here, so that nobody takes it when a frontend dies
                self._port = bind_http(self._config.host, self._config.port, shared=self._config.frontends > 1)
                self._config = msgspec.structs.replace(self._config, port=self._port.getsockname()[1])
            self._selector.register(self._signals, selectors.EVENT_READ, self._signals)
            self._check_watchdog()
            self._handle(Begin())
            self._display = start_display(self._voice, plain=self._config.log_format != "human")
            while self._exit_code is None:
                self._wait()
            return self._exit_code
        finally:
            self._close_display()
            self._selector.close()
            self._run_dir.remove()
            for held in (self._port, self._listener):
                if held is not None:
                    held.close()
            _remove_stale_socket(self._config.ipc_path)

    def _wait(self) -> None:
        events = self._selector.select(self._timeout())
        self._clock.advance(now_ns())
        for key, ready in events:
            match key.data:
                case Signals():
                    for wanted in key.data.take():
                        if wanted == "stop":
                            self._handle(StopRequested())
                        else:
                            self._reload()
                case ChildProcess() if self._children.get(key.data.child) is key.data:  # not buried in this pass
                    if ready & selectors.EVENT_WRITE:
                        key.data.flush()
                        self._watch(key.data)
                    self._hear(key.data)
                    if key.fd == key.data.pidfd:
                        self._bury(key.data)
        self._handle(Tick())
        if self._looks.is_due(now_ns()):
            self._handle(Looked(frozenset(child for child, process in self._children.items() if process.is_stopped())))
            self._notifier.retry()
        self._ping()

    def _reload(self) -> None:
        """The operator asks for what may change while the engine runs to be read again."""
        if self._reread is None:
            return
        try:
            found = self._reread()
        except EngineError as error:
            self._voice.say(f"nothing is changed: {error}")
            return
        self._config = msgspec.structs.replace(self._config, api_keys=found.api_keys, log_level=found.log_level)
        for process in self._children.values():
            process.send(found)
            self._watch(process)
        self._voice.say(f"read again: {len(found.api_keys)} API keys, log level {found.log_level}")

    def _check_watchdog(self) -> None:
        """Says so when it is quicker than our own limits."""
        interval, needed = self._notifier.watchdog_interval, self._config.step_timeout + self._config.pulse_timeout
        if interval is not None and 2 * interval < needed:
            limits = f"--step-timeout and --pulse-timeout together ({needed:g} s)"
            text = f"WatchdogSec={2 * interval:g} is shorter than {limits}"
            self._voice.say(f"{text}: where one worker is to be replaced, the whole engine would be")

    def _ping(self) -> None:
        """Tells the service manager that all is well: while the engine starts, that this loop goes round and holds the children to
        their limits; from then on, that every child got on since it was told so last.
        """
        if self._supervisor.phase is Phase.STARTING:
            if now() >= self._next_ping:
                self._notifier.starting()
                self._next_ping = now() + EXTENSION / 4
            return
        interval = self._notifier.watchdog_interval
        if interval is not None and now() >= self._next_ping and self._supervisor.all_moved_since(self._pinged_at):
            self._notifier.alive()
            self._pinged_at = self._clock.now
            self._next_ping = now() + interval

    def _timeout(self) -> float:
        waits = [self._tick]
        if (deadline := self._supervisor.next_deadline()) is not None:
            waits.append(deadline - self._clock.now)
        if self._notifier.watchdog_interval is not None and self._next_ping > now():  # else it waits for the children
            waits.append(self._next_ping - now())
        return max(0.0, min(waits))

    def _hear(self, process: ChildProcess) -> None:
        """Handles everything that the child said so far."""
        if process.is_silent():
            return
        try:
            while (message := process.receive()) is not None:
                self._handle(Said(process.child, process.epoch, message))
        except ProtocolError as error:
            self._handle(Said(process.child, process.epoch, Failed(error.exit_code, str(error))))
        if process.is_silent():  # a closed end is readable for ever; the process itself is still watched
            self._selector.unregister(process.fileno())

    def _watch(self, process: ChildProcess) -> None:
        """Waits for room on the link too, while something waits to be said."""
        if not process.is_silent():
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if process.wants_write else 0)
            self._selector.modify(process.fileno(), events, process)

    def _bury(self, process: ChildProcess) -> None:
        if not process.is_silent():
            self._selector.unregister(process.fileno())
        self._selector.unregister(process.pidfd)
        if self._children.get(process.child) is process:
            del self._children[process.child]
        self._handle(Exited(process.child, process.epoch, process.reap()))

    def _handle(self, event: Event) -> None:
        """Everything that follows from one event is done before the next; what happens meanwhile waits for its turn."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            for command in self._supervisor.handle(self._events[0], self._clock.now):
                self._execute(command)
            self._events.popleft()

    def _execute(self, command: Command) -> None:
        match command:
            case Spawn(child, epoch, session):
                self._spawn(child, epoch, session)
            case Send(child, message):
                if child in self._children:
                    self._children[child].send(message)
                    self._watch(self._children[child])
            case Signal(child, signum):
                if child in self._children:
                    self._children[child].signal(signum)
            case Show(child, progress):
                if progress is not None and self._supervisor.phase is Phase.STARTING:
                    of = f" ({progress.done} of {progress.total})" if progress.total > 1 else ""
                    self._notifier.status(f"{child}: {progress.phase}{of}")
                if self._display is not None and progress is not None:
                    self._display.update(child, progress)
                elif self._display is not None:
                    self._display.finish(child)
            case Announce(facts):
                self._close_display()
                self._notifier.ready(f"serving {facts.get('model', '')}" if "model" in facts else "following rank 0")
                self._next_ping = now()
                announce(ready_line(facts) if "model" in facts else following_line(facts, self._config))
            case Say(text):
                self._voice.say(text)
            case Status(text):
                self._notifier.status(text)
            case Stopping():
                self._close_display()
                if self._port is not None:  # as soon as the frontends close it, nobody is let in any more
                    self._port.close()
                self._notifier.stopping(self._config.drain_timeout + LONGEST_END)
            case Exit(code):
                self._exit_code = code

    def _spawn(self, child: Child, epoch: int, session: int) -> None:
        if epoch > 0:
            publish_restarts(self._run_dir.path, self._supervisor.restarts)
        if child == SCHEDULER and session > 0:
            Path(session_dir(self._run_dir.path, session)).mkdir(mode=0o700, exist_ok=True)
            if session > 2:  # nobody looks there any more
                shutil.rmtree(session_dir(self._run_dir.path, session - 2), ignore_errors=True)
        placed = None
        if child.role in ("worker", "follower"):
            placed = self._placements[child.index if child.role == "worker" else 0]
        listener = self._listener or (self._port if self._config.frontends == 1 else None)
        spec = ChildSpec(
            role=child.role,
            index=child.index,
            epoch=epoch,
            run_dir=self._run_dir.path,
            session=session,
            cpus=placed.cpus if placed is not None else (),
            config=self._config,
            http_fd=listener.fileno() if listener is not None and child.role == "frontend" else -1,
            http_outlives=self._listener is not None,
        )
        try:
            process = ChildProcess(child, spec, self._programs[child.role], placed.environ if placed is not None else {})
        except OSError as error:  # no memory, descriptors or processes left: it may go better the next time
            self._handle(Said(child, epoch, Failed(ExitCode.CRASHED, f"no process could be started: {error}")))
            self._handle(Exited(child, epoch, ExitCode.CRASHED))
            return
        self._children[child] = process
        self._selector.register(process.fileno(), selectors.EVENT_READ, process)
        self._selector.register(process.pidfd, selectors.EVENT_READ, process)

    def _close_display(self) -> None:
        if self._display is not None:
            self._display.close()
            self._display = None


def ready_line(facts: Mapping[str, str | int]) -> str:
    """What the operator waits for, in one line."""
    frontends = f"  frontends {facts['frontends']}" if facts.get("frontends", 1) != 1 else ""
    weights = f"  weights {facts['weights']}" if facts.get("weights") else ""
    kept = f" of {facts['kv_cache_dtype']}" if facts.get("kv_cache_dtype") else ""
    return (
        f"ready: {facts.get('address')}  ipc {facts.get('socket')}  model {facts.get('model')}  workers {facts.get('workers')}"
        f"{frontends}  device {facts.get('device')}{weights}  depth {facts.get('queue_depth')}  "
        f"KV cache {facts.get('kv_cache_tokens'):,} tokens{kept} in blocks of {facts.get('kv_block_size')}"
    )


def following_line(facts: Mapping[str, str | int], config: EngineConfig) -> str:
    """The same on a host of another rank, where nobody is served."""
    return f"ready: rank {config.host_rank} of {len(config.hosts)}  follows {config.hosts[0]}  device {facts.get('device')}"


def _remove_stale_socket(path: str) -> None:
    """Removes the client socket that a killed frontend left; one that still answers is another engine's."""
    try:
        if path and Path(path).is_socket():
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(path)
    except ConnectionRefusedError:
        Path(path).unlink(missing_ok=True)
    except OSError:
        pass
