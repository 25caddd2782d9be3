"""A whole engine in virtual time: real scheduler, supervisor, journal of the frontend, and client; between them pipes that delay,
lose, repeat and reorder; and processes that die or stop at any moment.

Every process is a node; what it says travels as an event. A node that dies takes along what it had not sent, and some of the rest.
"""

import heapq
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

from frontend.client.requests import StreamedRequest, WholeRequest
from frontend.client.session import Session
from frontend.errors import RequestLost
from frontend.launcher.events import (
    FRONTEND,
    SCHEDULER,
    Begin,
    Child,
    Command,
    Event,
    Exit,
    Exited,
    Looked,
    Said,
    Send,
    Signal,
    Spawn,
    Tick,
)
from frontend.launcher.liveness import Limits
from frontend.launcher.supervisor import Supervisor
from frontend.server.ipc.resumption import Remainder, outputs
from frontend.server.journal import Journal
from frontend.server.token_stream import Generation
from frontend.wire import (
    CLIENT_MESSAGES,
    WIRE_VERSION,
    Cancel,
    Delta,
    FrameReader,
    Hello,
    Submit,
    TokenPrompt,
    Welcome,
    frames,
)
from protocol.codec import encode, unpack_int32
from protocol.config import EngineConfig, SimulatedTimes
from protocol.errors import EngineError, ExitCode
from protocol.messages import (
    AbortRequest,
    AddRequest,
    EngineReady,
    FrontendJoined,
    FrontendLost,
    ModelRunnerOutput,
    Pulse,
    Ready,
    SchedulerOutput,
    SchedulerStarted,
    TokenBatch,
    WorkerLost,
)
from protocol.params import EngineParams, SamplingParams
from scheduler_proc.events import FromWorker, ToFrontend, ToLauncher, ToWorker
from scheduler_proc.invariants import validate, validate_idle
from scheduler_proc.state import SchedulerState
from tests.scheduler_proc.world import VOCAB, Sent, SimulatedWorker
from tests.simulation.scenario import Asked, Scenario

MAX_MODEL_LEN = 64
_END = 60.0  # seconds within which all is over, whatever happened
_LIMITS = Limits(pulse=1.0, step=2.0, boot=5.0)


class Wrong(AssertionError):
    """Something that must hold does not."""


@dataclass(eq=False)
class Node:
    """A process."""

    child: Child
    epoch: int
    session: int
    alive: bool = True
    booted: bool = False  # it reads what comes
    ready: bool = False
    stopped: bool = False
    postponed: list[Callable[[], None]] = field(default_factory=list)  # what came while it did not


@dataclass(eq=False)
class SchedulerNode(Node):
    """The scheduler's state, and which pulse it is at."""

    state: SchedulerState = None  # type: ignore[assignment]


@dataclass(eq=False)
class WorkerNode(Node):
    """A worker with a device that takes time for each step."""

    worker: SimulatedWorker = None  # type: ignore[assignment]
    busy_until: float = 0.0
    hung: bool = False  # a message was lost on the way to it: it waits for ever


@dataclass(eq=False)
class FrontendNode(Node):
    """The journal, and the connection that the client has to it."""

    journal: Journal = None  # type: ignore[assignment]
    capacity: EngineReady | None = None
    running: dict[int, list["Output"]] = field(default_factory=dict)  # by the client's number
    reader: FrameReader | None = None


@dataclass(eq=False)
class Output:
    """One output that a frontend delivers."""

    request_id: int
    index: int
    generation: Generation
    missing: Remainder
    streams: bool
    token_ids: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Log:
    """What the client was told of one request."""

    asked: Asked
    request: WholeRequest | StreamedRequest
    outputs: dict[int, list[int]]
    reasons: dict[int, str] = field(default_factory=dict)
    cancelled: bool = False
    error: str = ""


class Simulation:
    """Runs a scenario; `run` raises Wrong, or what the code under test raises, when something is not as it must be."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._draw = random.Random(scenario.seed + 1)
        self._config = EngineConfig(
            model_path="",
            model_format="gguf",
            served_model_names=("sim",),
            device="sim",
            workers=scenario.workers,
            queue_depth=scenario.depth,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            block_size=4,
            kv_cache_memory=scenario.blocks * 4 * 8,
            simulated=SimulatedTimes(0, 0, 0),
            pulse_timeout=_LIMITS.pulse,
            step_timeout=_LIMITS.step,
        )
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._last: dict[tuple[int, int], float] = {}  # when the last message on a pipe arrives
        self._pending_faults: dict[str, list[str]] = {}  # pipe -> what happens to its next messages
        self._nodes: dict[Child, Node] = {}
        self._supervisor = Supervisor(
            workers=scenario.workers, drain_timeout=5.0, restart_delay=0.05, limits=_LIMITS, max_restarts=1000
        )
        self._session = Session("/engine.sock", reconnect=_END)
        self._server: FrontendNode | None = None  # whom the client is connected to
        self._logs: list[Log] = []
        self._worker_deaths = 0
        self._begun = False

    def run(self) -> None:
        """From the start of the engine until every request has ended."""
        self._supervise(Begin())
        self._every(self._config.pulse_interval, self._tick)
        while not self._is_over():
            if not self._queue or self.now > _END:
                raise Wrong(f"not over after {self.now:.1f} s: {self._describe()}")
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self._check()

    # time and pipes

    def _at(self, time: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, action))

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._at(self.now + seconds, action)

    def _every(self, seconds: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self._after(seconds, again)

        self._after(seconds, again)

    def _deliver(self, pipe: str, sender: Node, receiver: Node, action: Callable[[], None]) -> None:
        """A message travels, behind those before it. It is lost with its receiver, and sometimes with its sender."""
        key = id(sender), id(receiver)
        arrives = max(self.now + self._draw.uniform(1e-5, 1e-3), self._last.get(key, 0.0))
        fault = self._pending_faults.get(pipe, [])
        what = fault.pop(0) if fault else ""
        if what == "reorder":  # it comes behind what is sent next
            arrives += 2e-3
        else:
            self._last[key] = arrives
        session = sender.session
        lost_with_sender = self._draw.random() < 0.5

        def arrive() -> None:
            of_session = sender is receiver or receiver.session == session  # what clients say belongs to none
            if not receiver.alive or not of_session or (not sender.alive and lost_with_sender):
                return
            if receiver.stopped or not receiver.booted:
                receiver.postponed.append(arrive)
            else:
                action()

        if what != "drop":
            self._at(arrives, arrive)
        if what == "duplicate":
            self._at(arrives + 1e-4, arrive)

    # the launcher

    def _supervise(self, event: Event) -> None:
        for command in self._supervisor.handle(event, self.now):
            self._execute(command)
        self._supervisor.validate()

    def _execute(self, command: Command) -> None:
        match command:
            case Spawn(child, epoch, session):
                self._spawn(child, epoch, session)
            case Send(child, message):
                node = self._nodes.get(child)
                if node is not None:
                    self._after(1e-4, lambda: self._order(node, message))
            case Signal(child, signum):
                if child in self._nodes:
                    self._kill(self._nodes[child], signum)
            case Exit(code):
                raise Wrong(f"the engine ended with {code}")

    def _order(self, node: Node, message: object) -> None:
        if not node.alive:
            return
        if node.stopped or not node.booted:
            node.postponed.append(lambda: self._order(node, message))
            return
        match node, message:
            case SchedulerNode(), WorkerLost() | FrontendLost():
                self._schedule(node, message)
            case FrontendNode(), SchedulerStarted(session):
                node.session = session
                self._join(node)
                node.journal.tell_again()
            case WorkerNode(), SchedulerStarted(session):
                node.worker.steps.abandon()
                self._begin_worker(node, session)

    def _tick(self) -> None:
        self._supervise(Tick())
        stopped = frozenset(child for child, node in self._nodes.items() if node.alive and node.stopped)
        self._supervise(Looked(stopped))
        for node in list(self._nodes.values()):
            if node.alive and node.ready and not node.stopped:
                if isinstance(node, SchedulerNode):
                    self._schedule(node)
                self._supervise(Said(node.child, node.epoch, Pulse("here", 1)))

    def _spawn(self, child: Child, epoch: int, session: int) -> None:
        match child.role:
            case "scheduler":
                node: Node = SchedulerNode(child, epoch, session, state=SchedulerState(self._config, session=session, strict=True))
            case "worker":
                node = WorkerNode(child, epoch, session)
            case "frontend":
                node = FrontendNode(child, epoch, session)
            case _:
                node = Node(child, epoch, session)
        self._nodes[child] = node
        self._after(self._draw.uniform(0.005, 0.1), lambda: self._boot(node))

    def _boot(self, node: Node) -> None:
        if not node.alive:
            return
        if node.stopped:
            node.postponed.append(lambda: self._boot(node))
            return
        match node:
            case WorkerNode():
                self._begin_worker(node, node.session)
            case FrontendNode():
                node.journal = Journal(0, node.epoch, lambda message: self._to_scheduler(node, message))
                self._join(node)
        node.booted = True
        if not isinstance(node, FrontendNode):  # which serves when it knows the engine's limits
            self._now_ready(node)
        for action in self._take_postponed(node):
            action()

    def _now_ready(self, node: Node) -> None:
        node.ready = True
        self._supervise(Said(node.child, node.epoch, Ready()))
        if isinstance(node, FrontendNode) and not self._begun:
            self._begin()

    def _kill(self, node: Node, signum: int = signal.SIGKILL) -> None:
        if not node.alive:
            return
        node.alive = False
        self._worker_deaths += isinstance(node, WorkerNode)
        self._after(self._draw.uniform(1e-4, 0.01), lambda: self._supervise(Exited(node.child, node.epoch, -signum)))
        if node is self._server:
            self._after(self._draw.uniform(1e-4, 0.01), self._disconnected)

    def _take_postponed(self, node: Node) -> list[Callable[[], None]]:
        actions, node.postponed = node.postponed, []
        return actions

    # the scheduler

    def _schedule(self, node: SchedulerNode, *events: object) -> None:
        for command in node.state.handle(events, int(self.now * 1e9)):  # type: ignore[arg-type]
            match command:
                case ToWorker(index, message):
                    worker = self._nodes.get(Child("worker", index))
                    if isinstance(worker, WorkerNode):
                        self._deliver("scheduler>worker", node, worker, lambda w=worker, m=message: self._step(w, m))  # type: ignore[misc]
                case ToFrontend(reply, _):
                    frontend = self._nodes.get(FRONTEND)
                    if isinstance(frontend, FrontendNode):
                        self._deliver(
                            "scheduler>frontend"
                            if isinstance(reply, TokenBatch) and len(reply.token_ids_i32) and not reply.finished
                            else "",
                            node,
                            frontend,
                            lambda f=frontend, r=reply: self._hear(f, r),  # type: ignore[misc]
                        )
                case ToLauncher(report):
                    self._supervise(Said(SCHEDULER, node.epoch, report))
        self._count += 1
        if self._count % 16 == 0:
            validate(node.state)

    def _to_scheduler(self, sender: Node, message: object) -> None:
        node = self._nodes.get(SCHEDULER)
        if isinstance(node, SchedulerNode):
            pipe = {"frontend": "frontend>scheduler", "worker": "worker>scheduler"}[sender.child.role]
            event = FromWorker(sender.child.index, message) if isinstance(sender, WorkerNode) else message  # type: ignore[arg-type]
            if isinstance(message, FrontendJoined) or not isinstance(message, AddRequest | AbortRequest | ModelRunnerOutput):
                pipe = ""  # a hello is the first word on a pipe
            self._deliver(pipe, sender, node, lambda: self._schedule(node, event))

    # workers

    def _begin_worker(self, node: WorkerNode, session: int) -> None:
        node.session = session
        scenario = self._scenario
        node.worker = SimulatedWorker(
            self._config, node.child.index, node.epoch, MAX_MODEL_LEN, scenario.blocks, windows=scenario.windows
        )
        node.busy_until = self.now
        self._to_scheduler(node, node.worker.ready)

    def _step(self, node: WorkerNode, message: SchedulerOutput) -> None:
        worker = node.worker
        try:
            worker.take_in(message)
        except EngineError:  # a step was lost on the way
            self._kill(node, -ExitCode.CRASHED)
            return
        while worker.outbox:
            output = worker.outbox.popleft()
            node.busy_until = max(node.busy_until, self.now) + self._draw.uniform(1e-4, 2e-3)

            def answer(output: ModelRunnerOutput = output) -> None:
                if node.worker is worker and node.alive:
                    if node.stopped:
                        node.postponed.append(answer)
                    else:
                        self._to_scheduler(node, output)

            self._at(node.busy_until, answer)

    # the frontend

    def _join(self, node: FrontendNode) -> None:
        self._to_scheduler(node, FrontendJoined(0, node.epoch))

    def _hear(self, node: FrontendNode, reply: object) -> None:
        match reply:
            case EngineReady():
                node.capacity = reply
                if not node.ready:
                    self._now_ready(node)
            case TokenBatch():
                node.journal.take(reply, 0)
                self._say(node, self._news(node))

    def _news(self, node: FrontendNode) -> list[Delta]:
        deltas = []
        for number, running in list(node.running.items()):
            for output in list(running):
                while output.generation.has_news:
                    delta = output.generation.take()
                    output.token_ids += delta.token_ids
                    if not output.streams and delta.finish_reason is None:
                        continue
                    tokens, output.token_ids = output.missing.tokens(output.token_ids), []
                    deltas.append(Delta(number, output.index, "", tokens, delta.finish_reason, message=delta.message))
                    if delta.finish_reason is not None:
                        running.remove(output)
                        break
            if not running:
                del node.running[number]
        return deltas

    def _say(self, node: FrontendNode, messages: list[Delta] | list[Welcome]) -> None:
        """To the client, over the one connection that it has."""
        reader = node.reader
        if messages and reader is not None:
            data = frames(map(encode, messages))
            self._deliver("", node, node, lambda: self._client_hears(node, reader, data))

    def _serve(self, node: FrontendNode, reader: FrameReader, data: bytes) -> None:
        """The frontend reads what its client sent."""
        if node.reader is not reader:
            return
        for frame in reader.feed(data):
            for message in CLIENT_MESSAGES.decode(frame):
                match message:
                    case Hello():
                        self._say(node, [Welcome(WIRE_VERSION, ("sim",), MAX_MODEL_LEN, VOCAB)])
                    case Submit():
                        self._submit(node, message)
                    case Cancel(number):
                        for output in node.running.pop(number, []):
                            output.generation.cancel()
        self._say(node, self._news(node))

    def _submit(self, node: FrontendNode, submit: Submit) -> None:
        assert isinstance(submit.prompt, TokenPrompt)
        params = submit.params
        for index, came in outputs(submit):
            known = unpack_int32(came.token_ids_i32).tolist() if submit.stream else []
            generation = node.journal.accept(
                unpack_int32(submit.prompt.token_ids_i32),
                EngineParams(
                    max_tokens=params.max_tokens or 1,
                    seed=(params.seed or 0) + index,
                    stop_token_ids=tuple(params.stop_token_ids),
                    min_tokens=params.min_tokens,
                ),
                stream=submit.stream,
                known=known,
            )
            node.running.setdefault(submit.request_id, []).append(
                Output(submit.request_id, index, generation, Remainder(came), submit.stream)
            )

    # the client

    def _begin(self) -> None:
        """The engine serves: the clock of the scenario begins."""
        self._begun = True
        self._connect()
        began = self.now
        for asked in self._scenario.asked:
            self._at(began + 0.01 + asked.at, lambda a=asked: self._ask(a))  # type: ignore[misc]
        for fault in self._scenario.faults:
            self._at(began + 0.01 + fault.at, lambda f=fault: self._strike(f.kind, f.where))  # type: ignore[misc]

    def _connect(self) -> None:
        node = self._nodes.get(FRONTEND)
        if not isinstance(node, FrontendNode) or not node.alive or not node.ready:
            self._after(0.02, self._connect)
            return
        node.reader = FrameReader()
        self._server = node
        self._flush()

    def _disconnected(self) -> None:
        self._server = None
        if not self._session.broke():
            raise Wrong(f"the client gave up: {self._session.lost}")
        self._after(0.005, self._connect)

    def _flush(self) -> None:
        node = self._server
        if node is None or node.reader is None:
            return
        data, reader = self._session.take_outgoing(), node.reader
        if data:
            self._deliver("", node, node, lambda: self._serve(node, reader, data))

    def _client_hears(self, node: FrontendNode, reader: FrameReader, data: bytes) -> None:
        if node is self._server and node.reader is reader:
            self._session.feed(data)
            self._read()
            self._flush()

    def _ask(self, asked: Asked) -> None:
        if not self._session.greeting.ready:  # the first words are still on their way
            self._after(0.005, lambda: self._ask(asked))
            return
        params = SamplingParams(
            max_tokens=asked.max_tokens, seed=asked.seed, n=asked.n, stop_token_ids=list(asked.stops), temperature=1.0
        )
        prompt = list(asked.prompt)
        request = self._session.stream(prompt, params, "") if asked.streams else self._session.submit(prompt, params, "")
        log = Log(asked, request, {index: [] for index in range(asked.n)})
        self._logs.append(log)
        if asked.cancelled_at is not None:
            self._after(asked.cancelled_at - asked.at, lambda: self._cancel(log))
        self._flush()

    def _cancel(self, log: Log) -> None:
        if not log.request.ended:
            log.cancelled = True
            log.request.close()
            self._flush()

    def _read(self) -> None:
        for log in self._logs:
            request = log.request
            if isinstance(request, StreamedRequest):
                while request.ready:
                    try:
                        delta = request.result()
                    except RequestLost as error:
                        log.error = str(error)
                        break
                    if delta is None:
                        break
                    log.outputs[delta.index] += delta.token_ids
                    if delta.finish_reason is not None:
                        log.reasons[delta.index] = delta.finish_reason

    # faults

    def _strike(self, kind: str, where: str) -> None:
        role, _, index = where.partition(" ")
        child = {"scheduler": SCHEDULER, "frontend": FRONTEND}.get(role) or Child("worker", int(index or 0))
        node = self._nodes.get(child)
        match kind:
            case "kill":
                if node is not None:
                    self._kill(node)
            case "stop":
                if node is not None:
                    node.stopped = True
            case _:
                self._pending_faults.setdefault(where, []).append(kind)

    # the end

    def _is_over(self) -> bool:
        if not self._begun or len(self._logs) < len(self._scenario.asked) or not all(log.request.ended for log in self._logs):
            return False
        scheduler, frontend = self._nodes.get(SCHEDULER), self._nodes.get(FRONTEND)
        if not isinstance(scheduler, SchedulerNode) or not isinstance(frontend, FrontendNode):
            return False
        return scheduler.alive and scheduler.ready and scheduler.state.idle and frontend.ready and not len(frontend.journal)

    def _check(self) -> None:
        self._read()
        scheduler = self._nodes[SCHEDULER]
        assert isinstance(scheduler, SchedulerNode)
        validate(scheduler.state)
        validate_idle(scheduler.state)
        breaches = [name for name in scheduler.state.counters if name.startswith("breach_")]
        if breaches:
            raise Wrong(f"rules were broken: {breaches}")
        for number, log in enumerate(self._logs):
            for index in range(log.asked.n):
                self._check_output(f"request {number}, output {index}", log, index)

    def _check_output(self, name: str, log: Log, index: int) -> None:
        asked = log.asked
        params = EngineParams(max_tokens=asked.max_tokens, seed=asked.seed + index, stop_token_ids=asked.stops)
        tokens, reason = Sent(list(asked.prompt), params, MAX_MODEL_LEN, windows=self._scenario.windows).expected()
        came, told = log.outputs[index], log.reasons.get(index, "")
        if isinstance(log.request, WholeRequest) and not log.cancelled and log.request.error is None:
            output = log.request.result().outputs[index]
            came, told = output.token_ids, output.finish_reason or ""
        if log.cancelled:
            if came != tokens[: len(came)]:
                raise Wrong(f"{name}: {came} came before it was cancelled, not the beginning of {tokens}")
        elif log.request.error is not None or told == "error":
            if self._worker_deaths < 2:
                raise Wrong(f"{name} failed though one worker died at most: {log.request.error}")
            if came != tokens[: len(came)]:
                raise Wrong(f"{name}: {came} came before it was failed, not the beginning of {tokens}")
        elif (came, told) != (tokens, reason):
            raise Wrong(f"{name}: {came} ({told}) came, not {tokens} ({reason})")

    def _describe(self) -> str:
        nodes = [f"{node.child} {'' if node.alive else 'dead'}{'' if node.ready else 'not ready'}" for node in self._nodes.values()]
        logs = [f"{number}: {log.outputs} {log.reasons}" for number, log in enumerate(self._logs) if not log.request.ended]
        return f"{nodes}; {logs}"
