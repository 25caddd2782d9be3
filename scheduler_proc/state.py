"""The scheduler as a state machine: events in, commands out. No sockets, no clock, no randomness, no text."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from protocol.clock import ChargedClock
from protocol.config import PROTOCOL_VERSION, EngineConfig
from protocol.credit import Verdict
from protocol.errors import ProtocolError
from protocol.messages import (
    AbortRequest,
    AddRequest,
    EngineReady,
    Finished,
    FrontendToScheduler,
    GetStats,
    GetTrace,
    ModelRunnerOutput,
    SchedulerOutput,
    SchedulerToFrontend,
    TokenBatch,
    TraceRecords,
    WorkerFailed,
    WorkerHung,
    WorkerLost,
    WorkerReady,
    WorkerToScheduler,
)
from scheduler_proc.collect import collect_step
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane
from scheduler_proc.plan import plan_step
from scheduler_proc.policy import choose_lane
from scheduler_proc.request import Request, from_message
from scheduler_proc.stats import engine_stats
from scheduler_proc.trace import COLUMNS, TraceRing
from scheduler_proc.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class FromWorker:
    """Event: a message came out of a worker's pipe."""

    worker: int
    message: WorkerToScheduler


Event = FrontendToScheduler | FromWorker | WorkerLost


@dataclass(frozen=True, slots=True)
class ToWorker:
    """Command: send this step. The sender notes the time in `step.sent_ns`."""

    worker: int
    message: SchedulerOutput
    step: InFlightStep


@dataclass(frozen=True, slots=True)
class ToFrontend:
    """Command: send this message to the frontend."""

    message: SchedulerToFrontend


@dataclass(frozen=True, slots=True)
class ToLauncher:
    """Command: ask for the replacement of a worker."""

    message: WorkerHung


Command = ToWorker | ToFrontend | ToLauncher


class SchedulerState:
    """All requests, all lanes. `handle` is the only way in."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.lanes: dict[int, Lane] = {}  # live workers
        self.requests: dict[int, Request] = {}  # by id, until they end
        self.waiting = WaitingQueue()
        self.counters: Counter[str] = Counter()
        self.trace = TraceRing()
        self._arrivals = 0
        self._clock = ChargedClock(int(config.pulse_interval * 1e9), 0)  # the loop comes round as often as its pulse is due
        self._complete = False  # every worker has joined once
        self._capacity = EngineReady(0, 0, 0, 0, 0, "")  # as last announced
        self._given_up: dict[int, int] = {}  # worker -> epoch that is reported hung or broken, and awaits its replacement

    def handle(self, events: Iterable[Event], now_ns: int) -> list[Command]:
        """Takes in everything that is here, then plans whatever can be planned. With no events, looks for workers that hang."""
        self._clock.advance(now_ns)
        commands: list[Command] = []
        for event in events:
            match event:
                case FromWorker(worker, message):
                    self._on_worker(worker, message, now_ns, commands)
                case AddRequest():
                    self._on_add(event)
                case AbortRequest(request_id):
                    self._on_abort(request_id)
                case WorkerLost(worker, epoch):
                    self._on_worker_lost(worker, epoch, commands)
                case GetStats(query_id):
                    commands.append(
                        ToFrontend(engine_stats(query_id, self.lanes, self._config.workers, len(self.waiting), self.counters))
                    )
                case GetTrace(query_id):
                    commands.append(ToFrontend(TraceRecords(query_id, COLUMNS, self.trace.rows().astype("<i8").tobytes())))
        self._find_hung(commands)
        self._admit()
        for lane in self.lanes.values():
            self._plan(lane, now_ns, commands)
        return commands

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is in flight."""
        return not self.requests and not any(lane.in_flight for lane in self.lanes.values())

    def _on_add(self, message: AddRequest) -> None:
        if message.request_id in self.requests:
            self.counters["refused_duplicate_request"] += 1
            return
        request = from_message(message, self._arrivals, next(iter(self.lanes.values())).max_model_len if self.lanes else 2**31 - 1)
        self._arrivals += 1
        self.counters["requests"] += 1
        self.counters["prompt_tokens"] += request.num_prompt_tokens
        self.requests[request.request_id] = request
        self.waiting.push(request)

    def _on_abort(self, request_id: int) -> None:
        request = self.requests.pop(request_id, None)
        if request is None:
            return  # it ended while the abort was on its way
        request.finished = True
        self.counters["finished_abort"] += 1
        self.waiting.remove(request)
        for lane in self.lanes.values():
            for slot, holder in lane.running():
                if holder is request:
                    lane.release(slot)
                    return

    def _on_worker(self, worker: int, message: WorkerToScheduler, now_ns: int, commands: list[Command]) -> None:
        match message:
            case WorkerReady():
                self._on_worker_ready(message, commands)
            case ModelRunnerOutput():
                self._on_output(worker, message, now_ns, commands)
            case WorkerFailed(epoch, text):
                if worker in self.lanes and self.lanes[worker].ledger.epoch == epoch:
                    self._give_up(worker, text, commands)
                else:
                    self.counters[f"refused_{Verdict.WRONG_EPOCH.value}"] += 1

    def _on_worker_ready(self, ready: WorkerReady, commands: list[Command]) -> None:
        if ready.version != PROTOCOL_VERSION or ready.worker >= self._config.workers:
            self.counters["refused_hello"] += 1
            return
        lane = self.lanes.get(ready.worker)
        newest = max(lane.ledger.epoch if lane else -1, self._given_up.get(ready.worker, -1))
        if ready.epoch <= newest:
            self.counters[f"refused_{Verdict.WRONG_EPOCH.value}"] += 1
            return
        if lane is not None:
            self._drop_lane(lane)
        self.lanes[ready.worker] = Lane(
            ready,
            queue_depth=self._config.queue_depth,
            token_budget=self._config.max_num_batched_tokens,
            prefix_caching=self._config.enable_prefix_caching,
        )
        self._announce(commands)

    def _on_worker_lost(self, worker: int, epoch: int, commands: list[Command]) -> None:
        self._given_up[worker] = max(epoch, self._given_up.get(worker, -1))
        lane = self.lanes.get(worker)
        if lane is not None and lane.ledger.epoch <= epoch:
            self._drop_lane(lane)
            self._announce(commands)

    def _on_output(self, worker: int, output: ModelRunnerOutput, now_ns: int, commands: list[Command]) -> None:
        lane = self.lanes.get(worker)
        verdict = lane.ledger.judge(output.epoch, output.step_id) if lane is not None else Verdict.WRONG_EPOCH
        if lane is None or verdict is not Verdict.EXPECTED:
            self.counters[f"refused_{verdict.value}"] += 1
            return
        try:
            step, outcome = collect_step(lane, output)
        except ProtocolError as error:
            self.counters["refused_misfit"] += 1
            self._give_up(worker, str(error), commands)
            return
        lane.progress_ns = self._clock.now_ns
        self.trace.record(worker, step, output, now_ns)
        self.counters["steps"] += 1
        self.counters["generation_tokens"] += outcome.num_tokens
        self.counters["discarded_tokens"] += outcome.num_discarded
        for finished in outcome.finished:
            self._forget(finished)
        if len(outcome.token_ids) or outcome.finished:
            commands.append(
                ToFrontend(
                    TokenBatch(
                        worker=worker,
                        step_id=output.step_id,
                        request_ids_u64=outcome.request_ids.astype("<u8").tobytes(),
                        token_ids_i32=outcome.token_ids.astype("<i4").tobytes(),
                        finished=tuple(outcome.finished),
                        logprobs=outcome.logprobs,
                    )
                )
            )

    def _forget(self, finished: Finished) -> None:
        self.counters[f"finished_{finished.reason}"] += 1
        request = self.requests.pop(finished.request_id)
        self.waiting.remove(request)

    def _admit(self) -> None:
        """Hands waiting requests out, strictly in order: nobody overtakes a head that does not fit yet."""
        while (request := self.waiting.head()) is not None:
            lane = choose_lane(self.lanes.values(), request)
            if lane is None:
                return
            self.waiting.pop()
            request.target = min(request.target, lane.max_model_len)
            first = not request.admitted_before
            lane.admit(request)
            if first and self._config.enable_prefix_caching:
                self.counters["prefix_cache_queries"] += request.num_prompt_tokens
                self.counters["prefix_cache_hits"] += request.num_cached_tokens

    def _plan(self, lane: Lane, now_ns: int, commands: list[Command]) -> None:
        def on_preempt(slot: int) -> None:
            self.waiting.push(lane.preempt(slot))
            self.counters["preemptions"] += 1

        if not lane.in_flight:
            lane.progress_ns = self._clock.now_ns
        while (output := plan_step(lane, now_ns, on_preempt)) is not None:
            commands.append(ToWorker(lane.worker, output, lane.in_flight[-1]))

    def _find_hung(self, commands: list[Command]) -> None:
        """A worker hangs when its oldest step is out for longer than any step may take: liveness is progress.

        The device works on that step only since it answered the one before, however long ago it was sent.
        """
        since_ns = self._clock.now_ns - int(self._config.step_timeout * 1e9)
        hung = [lane for lane in self.lanes.values() if lane.in_flight and lane.progress_ns < since_ns]
        for lane in hung:
            text = f"worker {lane.worker} did not answer step {lane.in_flight[0].step_id} within {self._config.step_timeout:g} s"
            self.counters["hung_workers"] += 1
            self._give_up(lane.worker, text, commands)

    def _give_up(self, worker: int, text: str, commands: list[Command]) -> None:
        """Takes the work back from a worker that cannot be believed any more and asks for another."""
        lane = self.lanes[worker]
        self._given_up[worker] = lane.ledger.epoch
        self._drop_lane(lane)
        commands.append(ToLauncher(WorkerHung(worker, lane.ledger.epoch, text)))
        self._announce(commands)

    def _drop_lane(self, lane: Lane) -> None:
        """Puts the requests of a lane that is no more back in line. Known tokens stay; what was in flight is computed again."""
        del self.lanes[lane.worker]
        lane.in_flight.clear()
        for request in lane.detached.values():
            request.in_flight = 0
        for slot, _ in list(lane.running()):
            self.waiting.push(lane.preempt(slot))

    def _announce(self, commands: list[Command]) -> None:
        """Tells the frontend how many workers live; the first time, once all of them do."""
        self._complete = self._complete or len(self.lanes) == self._config.workers
        if not self._complete:
            return
        lanes = list(self.lanes.values())
        if lanes:
            self._capacity = EngineReady(
                workers=len(lanes),
                max_model_len=min(lane.max_model_len for lane in lanes),
                vocab_size=min(lane.vocab_size for lane in lanes),
                num_blocks=sum(lane.pool.num_blocks for lane in lanes),
                block_size=lanes[0].block_size,
                device=lanes[0].device,
            )
        else:  # requests that come now wait for a successor, and are checked against the limits that it will have
            self._capacity = msgspec.structs.replace(self._capacity, workers=0)
        commands.append(ToFrontend(self._capacity))
