"""The scheduler as a state machine: events in, commands out. No sockets, no clock, no randomness, no text."""

import logging
from collections import Counter
from collections.abc import Iterable

from protocol.clock import ChargedClock
from protocol.codec import unpack_int32
from protocol.config import PROTOCOL_VERSION, EngineConfig
from protocol.credit import Verdict
from protocol.errors import ProtocolError
from protocol.grammar_messages import ConstraintFailed, Forced, GrammarReady, GrammarToScheduler
from protocol.messages import (
    ANY_REQUEST,
    AbortRequest,
    AddRequest,
    EngineStats,
    Finished,
    FrontendJoined,
    FrontendLost,
    GetStats,
    GetStory,
    GetTrace,
    MasksMissing,
    ModelRunnerOutput,
    PrepareScores,
    ScoresReady,
    Story,
    TokenBatch,
    TraceRecords,
    WorkerFailed,
    WorkerHung,
    WorkerLost,
    WorkerReady,
    WorkerToScheduler,
)
from protocol.request_ids import frontend_of
from scheduler_proc.admission import Admission
from scheduler_proc.breaches import Breaches
from scheduler_proc.collect import NOT_FINITE, Outcome, believe_forced, collect_step, finished_message, nothing_yet
from scheduler_proc.constraints import Constraints, everything_allowed
from scheduler_proc.events import Command, Event, FromWorker, MasksToWorker, Prepare, ToFrontend, ToGrammar, ToLauncher, ToWorker
from scheduler_proc.explain import explain
from scheduler_proc.fleet import Fleet
from scheduler_proc.forced import note_forced
from scheduler_proc.frontends import Frontends
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane, Scores
from scheduler_proc.names import MOST_OF_ONE_NAME
from scheduler_proc.plan import plan_step
from scheduler_proc.probation import Culprit, in_flight_requests
from scheduler_proc.request import NOWHERE, Request, RequestState, from_message
from scheduler_proc.stats import StepSums, engine_stats
from scheduler_proc.story import StoryRing
from scheduler_proc.suspects import by_own_fault
from scheduler_proc.trace import COLUMNS, TraceRing

_LOG = logging.getLogger(__name__)


class SchedulerState:
    """All requests, all lanes. `handle` is the only way in."""

    def __init__(self, config: EngineConfig, *, session: int = 0, strict: bool = False) -> None:
        """`session`: which life of the scheduler this is. `strict`: what must never happen is raised as a Breach, and not only
        counted."""
        self._config = config
        self.counters: Counter[str] = Counter()
        self._steps = StepSums()
        self.breaches = Breaches(self.counters, strict=strict)
        self.story = StoryRing(self.breaches)
        self.trace = TraceRing()
        self.constraints = Constraints()
        self.fleet = Fleet(config, self.story, self.constraints, resumed=session > 0)
        self.lanes = self.fleet.lanes  # live workers
        self.requests: dict[int, Request] = {}  # by id, until they end
        self.frontends = Frontends(config.frontends)
        self.admission = Admission(self.lanes, self.requests, config.workers)
        self._arrivals = 0
        self._clock = ChargedClock(int(config.pulse_interval * 1e9), 0)  # the loop comes round as often as its pulse is due
        self._commands: list[Command] = []

    def handle(self, events: Iterable[Event], now_ns: int) -> list[Command]:
        """Takes in everything that is here, then plans whatever can be planned. With no events, looks for workers that hang."""
        self._clock.advance(now_ns)
        self.story.now_ns = now_ns
        for event in events:
            match event:
                case FromWorker(worker, message):
                    self._on_worker(worker, message, now_ns)
                case AddRequest():
                    self._on_add(event)
                case AbortRequest(request_id):
                    self._on_abort(request_id)
                case WorkerLost():
                    self._on_worker_lost(event)
                case GetStats() | GetTrace() | GetStory():
                    self._commands.append(ToFrontend(self._answer(event), frontend_of(event.query_id)))
                case GrammarReady() | Forced() | ConstraintFailed():
                    self._on_grammar(event)
                case FrontendJoined():
                    self._on_frontend_joined(event)
                case FrontendLost(frontend, epoch):
                    self._on_frontend_ended(frontend, epoch)
        self._find_hung()
        self.admission.admit(self._clock.now_ns)
        for lane in self.lanes.values():
            self._plan(lane, now_ns)
        self._commands.extend(map(ToGrammar, self.constraints.take()))
        commands, self._commands = self._commands, []
        return commands

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits or is in flight."""
        return not self.requests and not any(lane.in_flight for lane in self.lanes.values())

    def stats(self, query_id: int = 0) -> EngineStats:
        """The queue, the workers and all counters, as they are now."""
        waiting, now_ns = len(self.admission), self.story.now_ns
        return engine_stats(query_id, self.lanes, self._config.workers, waiting, self.counters, self._steps, now_ns)

    def _on_add(self, message: AddRequest) -> None:
        if message.request_id in self.requests:
            if not message.again:
                self.counters["refused_duplicate_request"] += 1
                return
            self._on_abort(message.request_id)
        if self.frontends.has_lost(message.request_id):
            self.counters["refused_frontend_lost"] += 1
            return
        tokens = message.num_prompt_tokens + message.params.max_tokens
        request = from_message(message, self._arrivals, self.admission.rounds.place(message.line, tokens))
        self._arrivals += 1
        if not message.again:  # else it was counted when it came first
            self.counters["requests"] += 1
            self.counters["prompt_tokens"] += request.num_prompt_tokens
        self.requests[request.request_id] = request
        self.story.move(request, RequestState.WAITING, "came back with its tokens" if request.begun else "arrived")
        self.admission.enqueue((request,))
        if request.begun:
            self.counters["resumed_requests"] += 1
            self._end_if_complete(request)

    def _end_if_complete(self, request: Request) -> None:
        """Ends a request that came back with all of its tokens: only the word that it has ended was lost."""
        length = len(request.tokens)
        stops = request.stops_at(int(request.tokens[-1]), length)
        if stops or length >= request.target:
            self.story.move(request, RequestState.FINISHED, "it was complete")
            finished = finished_message(request, "stop" if stops else "length", request.tokens)
            self._forget(finished)
            self._commands.extend(self.frontends.tokens(TokenBatch(0, -1, b"", b"", (finished,))))

    def _on_abort(self, request_id: int) -> None:
        request = self.requests.pop(request_id, None)
        if request is None:
            return  # it ended while the abort was on its way
        self.counters["finished_abort"] += 1
        self.admission.leave(request)
        self.constraints.forget(request_id)
        if request.slot != NOWHERE:
            self.lanes[request.worker].release(request.slot)
        self.story.move(request, RequestState.FINISHED, "aborted")

    def _on_frontend_joined(self, joined: FrontendJoined) -> None:
        if joined.version != PROTOCOL_VERSION:
            self.counters["refused_hello"] += 1
            return
        self._on_frontend_ended(joined.frontend, joined.epoch - 1)
        if (capacity := self.fleet.announced) is not None:
            self._commands.append(ToFrontend(capacity, joined.frontend))

    def _on_frontend_ended(self, frontend: int, epoch: int) -> None:
        """Nobody waits any more for the requests of this frontend's incarnations up to this one."""
        if epoch >= 0:
            self.frontends.ended(frontend, epoch)
            for request_id in [request_id for request_id in self.requests if self.frontends.has_lost(request_id)]:
                self._on_abort(request_id)

    def _answer(self, query: GetStats | GetTrace | GetStory) -> EngineStats | TraceRecords | Story:
        match query:
            case GetStats(query_id):
                return self.stats(query_id)
            case GetTrace(query_id, since, most):
                rows = self.trace.rows(since, most)
                return TraceRecords(query_id, COLUMNS, rows.astype("<i8", copy=False).tobytes(), self.trace.count)
            case GetStory():
                return self._tell(query)

    def _tell(self, query: GetStory) -> Story:
        story, request_id = self.story, query.request_id
        found: tuple[int, ...] = (request_id,)
        if request_id == ANY_REQUEST:
            found = story.names.find(query.name) if query.name else story.latest(MOST_OF_ONE_NAME)
            request_id = found[-1] if found else ANY_REQUEST
        now = explain(self.requests.get(request_id), self.lanes, self.admission)
        name, now_ns = story.names.of(request_id), story.now_ns
        return Story(query.query_id, request_id, story.of(request_id), now, name, request_ids=found, now_ns=now_ns)

    def _on_worker(self, worker: int, message: WorkerToScheduler, now_ns: int) -> None:
        match message:
            case WorkerReady():
                self._on_worker_ready(message)
            case ModelRunnerOutput():
                self._on_output(worker, message, now_ns)
            case MasksMissing():
                self._on_masks_missing(worker, message)
            case ScoresReady():
                self._on_scores_ready(worker, message)
            case WorkerFailed(epoch, text):
                if worker in self.lanes and self.lanes[worker].ledger.epoch == epoch:
                    self._give_up(self.lanes[worker], text)
                else:
                    self.counters[f"refused_{Verdict.WRONG_EPOCH.value}"] += 1

    def _on_worker_ready(self, ready: WorkerReady) -> None:
        if cause := self.fleet.refusal(ready):
            self.counters[f"refused_{cause}"] += 1
            return
        self._retire(ready.worker, ready.epoch - 1, "was replaced", own_fault=False)
        self.fleet.join(ready)
        self._announce()

    def _on_scores_ready(self, worker: int, ready: ScoresReady) -> None:
        lane = self.lanes.get(worker)
        if lane is None or lane.ledger.epoch != ready.epoch:
            self.counters[f"refused_{Verdict.WRONG_EPOCH.value}"] += 1
            return
        lane.scores = Scores.UNPREPARED if ready.error else Scores.READY
        if ready.error:
            for request in (*self.admission.unscored, *(request for _, request in lane.running())):
                if request.needs_scores:
                    self._end_early(request, f"prompts can be neither scored nor pooled: {ready.error}", worker)

    def _on_worker_lost(self, lost: WorkerLost) -> None:
        own_fault = None if not lost.returncode else bool(lost.killed_for) or by_own_fault(lost.returncode)
        if self._retire(lost.worker, lost.epoch, "died", own_fault=own_fault):
            self._announce()

    def _on_output(self, worker: int, output: ModelRunnerOutput, now_ns: int) -> None:
        lane = self.lanes.get(worker)
        verdict = lane.ledger.judge(output.epoch, output.step_id) if lane is not None else Verdict.WRONG_EPOCH
        if lane is None or verdict is not Verdict.EXPECTED:
            self.counters[f"refused_{verdict.value}"] += 1
            return
        try:
            step, outcome = collect_step(lane, output)
        except ProtocolError as error:
            self.counters["refused_misfit"] += 1
            self._give_up(lane, str(error))
            return
        lane.progress_ns = self._clock.now_ns
        if not output.more:
            self._count_step(worker, step, output, now_ns)
        if outcome.begun and self._config.enable_prefix_caching:
            self.counters["prefix_cache_queries"] += sum(request.num_prompt_tokens for request in outcome.begun)
            self.counters["prefix_cache_hits"] += sum(request.num_cached_tokens for request in outcome.begun)
        self._publish(lane, output.step_id, outcome)

    def _count_step(self, worker: int, step: InFlightStep, output: ModelRunnerOutput, now_ns: int) -> None:
        self.trace.record(worker, step, output, now_ns)
        self.lanes[worker].count_device_time(*output.times_ns[3:5])
        self.counters["steps"] += 1
        whole = step.whole or step
        prefill = whole.num_prefill_tokens if whole.chunks else 0
        if prefill:
            self.counters["prefill_tokens"] += prefill
        self._steps.count(whole.num_decodes + prefill, step, output, now_ns)
        if output.failed_programs:
            self.counters["failed_programs"] += output.failed_programs

    def _publish(self, lane: Lane, step_id: int, outcome: Outcome) -> None:
        """Counts what became known and tells the frontend."""
        self.counters["generation_tokens"] += outcome.num_tokens
        self.counters["discarded_tokens"] += outcome.num_discarded
        if outcome.num_forced:
            self.counters["forced_tokens"] += outcome.num_forced
        for finished in outcome.finished:
            self._forget(finished)
            if finished.message == NOT_FINITE:
                self.counters["corrupted_requests"] += 1
        self.admission.probation.clear(lane)
        if len(outcome.token_ids) or outcome.finished or outcome.prompt_scores:
            self._commands.extend(self.frontends.tokens(_token_batch(lane.worker, step_id, outcome)))

    def _on_grammar(self, message: GrammarToScheduler) -> None:
        match message:
            case GrammarReady():
                if not self.constraints.begin(message, self.fleet):
                    self.counters["refused_grammar_hello"] += 1
            case Forced(request_id, position, token_ids_i32):
                request = self.requests.get(request_id)
                if request is not None and request.slot != NOWHERE:
                    lane = self.lanes[request.worker]
                    if note_forced(lane, request, position, unpack_int32(token_ids_i32)):
                        self._tell_forced(lane, request.slot)
            case ConstraintFailed(request_id, text):
                if (request := self.requests.get(request_id)) is not None:
                    self._end_early(request, text)

    def _on_masks_missing(self, worker: int, missing: MasksMissing) -> None:
        """The device is not to blame for the time that a step waits for its masks. But it does not wait for ever."""
        lane = self.lanes.get(worker)
        verdict = lane.ledger.judge(missing.epoch, missing.step_id) if lane is not None else Verdict.WRONG_EPOCH
        if lane is None or verdict is not Verdict.EXPECTED:
            return  # they came meanwhile
        lane.progress_ns = self._clock.now_ns
        overdue = lane.in_flight[0].overdue(unpack_int32(missing.rows_i32), self._clock.now_ns, self._config.step_timeout)
        if not overdue:
            return
        self.counters["masks_given_up"] += 1
        for request_id in overdue:
            if (request := self.requests.get(request_id)) is not None:
                self._end_early(request, f"its grammar was not worked out within {self._config.step_timeout:g} s", worker)
        self._commands.append(MasksToWorker(worker, everything_allowed(missing, lane.vocab_size)))

    def _end_early(self, request: Request, text: str, worker: int = 0) -> None:
        """Ends a request, wherever it stands, with an error. `worker`: whom the frontend hears it from."""
        finished = finished_message(request, "error", self.fleet.known_tokens(request), text)
        if request.slot != NOWHERE:
            self.lanes[request.worker].release(request.slot)
        self.story.move(request, RequestState.FINISHED, text)
        self._forget(finished)
        self._commands.extend(self.frontends.tokens(TokenBatch(worker, -1, b"", b"", (finished,))))

    def _forget(self, finished: Finished) -> None:
        self.counters[f"finished_{finished.reason}"] += 1
        self.admission.leave(self.requests.pop(finished.request_id))
        self.constraints.forget(finished.request_id)

    def _plan(self, lane: Lane, now_ns: int) -> None:
        def on_preempt(slot: int) -> None:
            self.admission.enqueue((lane.preempt(slot, f"worker {lane.worker} ran out of KV blocks"),))
            self.counters["preemptions"] += 1

        def on_known(slot: int) -> None:
            self._tell_forced(lane, slot)

        if not lane.in_flight:
            lane.progress_ns = self._clock.now_ns
        while (output := plan_step(lane, now_ns, on_preempt, on_known)) is not None:
            self._commands.append(ToWorker(lane.worker, output, lane.in_flight[-1]))
        if lane.scores is Scores.WANTED:
            lane.scores = Scores.ASKED
            self._commands.append(Prepare(lane.worker, PrepareScores(lane.ledger.epoch)))

    def _tell_forced(self, lane: Lane, slot: int) -> None:
        outcome = nothing_yet()
        believe_forced(lane, slot, outcome)
        self._publish(lane, -1, outcome)

    def _find_hung(self) -> None:
        for lane in self.fleet.hung(self._clock.now_ns):
            text = f"worker {lane.worker} did not answer step {lane.in_flight[0].step_id} within {self._config.step_timeout:g} s"
            self.counters["hung_workers"] += 1
            self._give_up(lane, text)

    def _give_up(self, lane: Lane, text: str) -> None:
        """Takes the work back from a worker that cannot be believed any more and asks for another."""
        self._retire(lane.worker, lane.ledger.epoch, "was given up", own_fault=True)
        self._commands.append(ToLauncher(WorkerHung(lane.worker, lane.ledger.epoch, text)))
        self._announce()

    def _retire(self, worker: int, epoch: int, cause: str, *, own_fault: bool | None) -> bool:
        """Nothing more is believed of this worker up to this epoch: its requests go back in line. Returns whether it lived.

        `own_fault`: whether it ended by itself, or was killed from outside; None: nothing was wrong.
        """
        lane = self.fleet.retire(worker, epoch)
        if lane is None:
            return False
        seen = in_flight_requests(lane)
        requests = lane.dissolve(f"worker {worker} {cause}")
        if requests:
            self.counters["replays"] += len(requests)
        culprit: Culprit | None = None
        if own_fault is not None:
            self.counters["worker_deaths"] += 1
            culprit = self.admission.probation.blame(seen, own_fault=own_fault, now_ns=self._clock.now_ns)
            requests += self.admission.probation.line  # those that are cleared leave it
        self.admission.enqueue(requests)
        if culprit is not None:
            _LOG.error("%s", culprit.text, extra={"request_id": culprit.request.name})
            self.counters["culprits"] += 1
            self._end_early(culprit.request, culprit.text, worker)
        return True

    def _announce(self) -> None:
        if (capacity := self.fleet.announcement()) is not None:
            self._commands.extend(self.frontends.everyone(capacity))


def _token_batch(worker: int, step_id: int, outcome: Outcome) -> TokenBatch:
    return TokenBatch(
        worker=worker,
        step_id=step_id,
        request_ids_u64=outcome.request_ids.astype("<u8").tobytes(),
        token_ids_i32=outcome.token_ids.astype("<i4").tobytes(),
        lengths_i32=outcome.lengths.astype("<i4").tobytes(),
        finished=tuple(outcome.finished),
        logprobs=outcome.logprobs,
        prompt_scores=outcome.prompt_scores,
        num_cached_tokens={request.request_id: request.num_cached_tokens for request in outcome.begun if request.stream},
        queue_ns={request.request_id: request.queue_ns for request in outcome.begun if request.stream},
    )
