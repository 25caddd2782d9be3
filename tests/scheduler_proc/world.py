"""A whole engine in one process and in virtual time: real scheduler state, real mirror of the slots, the simulated device's tokens.

Pipes are queues that a test empties when it likes, so that every interleaving of sending, running and answering can be had.
"""

import signal
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec.structs import replace

from protocol.codec import pack_int32, unpack_float32, unpack_int32, unpack_uint64
from protocol.config import PROTOCOL_VERSION, EngineConfig, SimulatedTimes
from protocol.messages import (
    AbortRequest,
    AddRequest,
    Finished,
    MasksMissing,
    ModelRunnerOutput,
    PromptScores,
    SchedulerOutput,
    ScoresReady,
    StepMasks,
    TokenBatch,
    WorkerHung,
    WorkerLost,
    WorkerReady,
)
from protocol.params import EngineParams, Grammar
from protocol.request_ids import frontend_of
from scheduler_proc.events import Event, FromWorker, MasksToWorker, Prepare, ToFrontend, ToGrammar, ToLauncher, ToWorker
from scheduler_proc.invariants import validate
from scheduler_proc.probation import in_flight_requests
from scheduler_proc.state import SchedulerState
from tests.scheduler_proc.grammars import SimulatedGrammar, allowed_after
from tpu_worker.collector import Part
from tpu_worker.masks import Masks
from tpu_worker.simulator import SimulatedDevice, simulated_embedding, simulated_token
from tpu_worker.slots import Slots
from tpu_worker.steps import Steps

VOCAB = 50  # small, so that stop ids and repeated prefixes happen


@dataclass
class Sent:
    """A request as the test sent it, and what came back."""

    prompt: list[int]
    params: EngineParams
    max_model_len: int
    stream: bool = True
    windows: tuple[int, ...] = (0,)
    tokens: list[int] = field(default_factory=list)
    num_cached_tokens: int | None = None  # told with the first token
    end: Finished | None = None
    aborted: bool = False
    deaths: int = 0  # of workers that it had rows in flight on, from whatever cause
    scores: dict[int, tuple[int, ...]] = field(default_factory=dict)  # position of the prompt -> rank of its token, candidates
    embedding: list[float] | None = None  # of the prompt
    failed: bool = False  # the device said that its logits were not finite

    def expected(self) -> tuple[list[int], str]:
        """The output and finish reason that follow from prompt and parameters alone."""
        if self.params.pooling:
            return [], "stop"
        context, target = list(self.prompt), min(len(self.prompt) + self.params.max_tokens, self.max_model_len)
        while True:
            context.append(self._next(context))
            token = context[-1]
            if token in self.params.stop_token_ids and len(context) - len(self.prompt) > self.params.min_tokens:
                return context[len(self.prompt) :], "stop"
            if len(context) >= target:
                return context[len(self.prompt) :], "length"

    def _next(self, context: list[int]) -> int:
        params, output = self.params, context[len(self.prompt) :]
        early = params.stop_token_ids if len(output) < params.min_tokens else ()
        if params.structured is not None:
            allowed = allowed_after(params.structured.text, output, VOCAB)
            return simulated_token(
                context, params.seed, VOCAB, [token for token in allowed if token not in early] or allowed, self.windows
            )
        token = simulated_token(context, params.seed, VOCAB, None, self.windows)
        while token in early:
            token = (token + 1) % VOCAB
        return token

    def expected_scores(self) -> dict[int, tuple[int, ...]]:
        """What follows from the prompt alone."""
        if self.params.prompt_logprobs < 0 or self.params.pooling:
            return {}
        drawn = [simulated_token(self.prompt[:position], 0, VOCAB, None, self.windows) for position in range(1, len(self.prompt))]
        around = range(self.params.prompt_logprobs)
        return {
            position: ((token - first) % VOCAB + 1, *((first + one) % VOCAB for one in around))
            for position, (token, first) in enumerate(zip(self.prompt[1:], drawn, strict=True), 1)
        }


class SimulatedWorker:
    """One incarnation of a worker: its inbox, its device, its outbox."""

    def __init__(
        self, config: EngineConfig, index: int, epoch: int, max_model_len: int, num_blocks: int, saturating_tokens: int = 0,
        *, scores_ready: bool = True, windows: tuple[int, ...] = (0,),
    ) -> None:  # fmt: skip
        self.index, self.epoch = index, epoch
        self.device = SimulatedDevice(config, vocab_size=VOCAB, max_model_len=max_model_len, windows=windows)
        self._dispatched: list[Part | MasksMissing | ScoresReady] = []
        masks = Masks(epoch, VOCAB, config.max_num_seqs, config.queue_depth)
        self.steps = Steps(epoch, Slots(config.max_num_seqs, len(windows)), masks, self.device, self._dispatched.append)
        self._scores: dict[int, PromptScores] = {}  # of a step all of whose tokens are still to come
        self.held = 0  # steps that were taken out of the inbox and are not answered to their end
        capacity = self.device.load(lambda *_: None)
        self.inbox: deque[SchedulerOutput] = deque()
        self.outbox: deque[ModelRunnerOutput] = deque()
        self.ready = WorkerReady(
            version=PROTOCOL_VERSION,
            worker=index,
            epoch=epoch,
            num_blocks=min(num_blocks, capacity.num_blocks),
            block_size=capacity.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=max_model_len,
            vocab_size=VOCAB,
            device="sim",
            saturating_tokens=saturating_tokens,
            scores_ready=scores_ready,
            windows=windows,
        )

    def run_step(self) -> None:
        """Runs the oldest step that was received."""
        message = self.inbox.popleft()
        assert message.epoch == self.epoch
        self.held += 1
        self.take_in(message)

    def take_in(self, message: SchedulerOutput | StepMasks) -> None:
        """A message comes; whatever can run with it runs, and is answered."""
        self.steps.take_in(message)
        for part in self._dispatched:
            assert isinstance(part, Part)
            result = self.device.collect(part.handle)
            tokens, scores = result.token_ids, result.prompt_scores
            assert self.ready.scores_ready or not scores, "a step scores prompts before the worker is ready for that"
            if part.more and not len(tokens):
                self._scores = scores
                continue
            self.held -= not part.more
            rows = b"" if part.rows is None else pack_int32(part.rows)
            output = ModelRunnerOutput(self.epoch, part.step_id, pack_int32(tokens), rows_i32=rows, more=part.more)
            self.outbox.append(msgspec.structs.replace(output, prompt_scores=self._scores | scores))
            self._scores = {}
        self._dispatched.clear()

    @property
    def unanswered(self) -> int:
        """Steps that are here, or whose last answer is."""
        return len(self.inbox) + self.held + sum(not output.more for output in self.outbox)


class World:
    """Scheduler, workers and everything in between."""

    def __init__(
        self, *, depth: int = 2, workers: int = 1, slots: int = 4, blocks: int = 64, block_size: int = 4, budget: int = 16,
        max_model_len: int = 64, prefix_caching: bool = True, validate_every: int = 1, saturating_tokens: int = 0,
        strict: bool = True, frontends: int = 1, forces: bool = True, pieces: bool = False, scores_ready: bool = True,
        windows: tuple[int, ...] = (0,),
    ) -> None:  # fmt: skip
        self.max_model_len, self.blocks, self.saturating_tokens = max_model_len, blocks, saturating_tokens
        self.scores_ready, self.windows = scores_ready, windows
        self.prepares: list[Prepare] = []
        self.config = EngineConfig(
            model_path="",
            model_format="gguf",
            served_model_names=("sim",),
            device="sim",
            workers=workers,
            queue_depth=depth,
            max_num_seqs=slots,
            max_num_batched_tokens=budget,
            block_size=block_size,
            kv_cache_memory=blocks * block_size * 8,
            enable_prefix_caching=prefix_caching,
            frontends=frontends,
            simulated=SimulatedTimes(0, 0, 0),
        )
        self.grammar = SimulatedGrammar(0, VOCAB, forces, deque())
        self._pieces = pieces
        self.now, self._events, self._validate_every = 0, 0, validate_every
        self.state = SchedulerState(self.config, strict=strict)
        self.workers: dict[int, SimulatedWorker] = {}
        self.epochs = [0] * workers
        self.sent: dict[int, Sent] = {}
        self.hung: list[WorkerHung] = []
        self.poison: dict[int, int] = {}  # request id -> a step that computes its tokens up to this length kills the worker
        self.poison_returncode = -signal.SIGSEGV
        self.deaths = 0
        self.without_grammar: set[int] = set()  # requests that the grammar process gave up
        self.first_tokens: list[int] = []  # requests in the order of their first token
        for index in range(workers):
            self.join(index, epoch=0)

    def feed(self, *events: Event) -> None:
        """Hands events to the scheduler, carries out its commands, checks every invariant."""
        self.now += 1000
        for command in self.state.handle(events, self.now):
            match command:
                case ToWorker(worker, message):
                    self.workers[worker].inbox.append(message)
                case ToFrontend(TokenBatch() as batch, frontend):
                    self._receive(batch, frontend)
                case Prepare() as order:
                    self.prepares.append(order)
                case ToLauncher(report):
                    self.hung.append(report)
                case ToGrammar(word):
                    self.grammar.inbox.append(word)
                case MasksToWorker(worker, masks):
                    self.workers[worker].take_in(masks)
        self._events += 1
        if self._events % self._validate_every == 0:
            validate(self.state)

    def wait(self, seconds: float) -> None:
        """Time passes in which nothing happens; the scheduler looks around once a tick, as its loop does."""
        end = self.now + int(seconds * 1e9)
        while self.now < end:
            self.now = min(end, self.now + int(self.config.pulse_interval * 1e9))
            self.feed()

    def hear_grammar(self, count: int = 10**9) -> None:
        """The scheduler reads what the grammar process said, and the workers the masks that it sent."""
        for _ in range(min(count, len(self.grammar.outbox))):
            self.feed(self.grammar.outbox.popleft())
        masks, self.grammar.masks[:] = self.grammar.masks[:count], self.grammar.masks[count:]
        for worker, message in masks:
            if worker in self.workers:
                self.workers[worker].take_in(message)

    def run_grammar(self, count: int = 10**9) -> None:
        """The grammar process reads messages; nobody has heard yet what it says."""
        for _ in range(min(count, len(self.grammar.inbox))):
            self.grammar.take_in(self._pieces)

    def replace_grammar(self) -> None:
        """The grammar process dies, and another one begins, which finds what its predecessor did not read."""
        self.grammar = SimulatedGrammar(self.grammar.epoch + 1, VOCAB, self.grammar.forces, self.grammar.inbox)

    def join(self, index: int, epoch: int) -> None:
        """A worker process starts."""
        self.workers[index] = SimulatedWorker(
            self.config, index, epoch, self.max_model_len, self.blocks, self.saturating_tokens,
            scores_ready=self.scores_ready, windows=self.windows,
        )  # fmt: skip
        self.feed(FromWorker(index, self.workers[index].ready))

    def lose(self, index: int, returncode: int = -9) -> None:
        """A worker process dies with everything it held: killed by somebody, unless `returncode` says otherwise."""
        worker = self.workers.pop(index)
        self.deaths += 1
        for request_id in in_flight_requests(self.state.lanes[index]):
            self.sent[request_id].deaths += 1
        self.feed(WorkerLost(index, worker.epoch, returncode))

    def turn(self, index: int) -> None:
        """A worker runs its oldest step, unless that kills it, and its oldest answer is read."""
        self.run_grammar()
        self.hear_grammar()
        if index not in self.workers:
            return
        worker, lane = self.workers[index], self.state.lanes[index]
        if worker.inbox:
            step = lane.in_flight[len(lane.in_flight) - len(worker.inbox)]
            for slot, tenancy, _, end in step.rows():
                request = lane.holder(slot, tenancy)
                if request is not None and end >= self.poison.get(request.request_id, end + 1):
                    self.lose(index, self.poison_returncode)
                    return
            worker.run_step()
        if worker.outbox:
            self.answer(index)

    def serve(self, rounds: int = 20_000, *, back_after: int = 5, replaces: bool = True) -> None:
        """Turns for all workers until everything has ended; a worker that died is replaced after some rounds."""
        gone: dict[int, int] = {}  # worker -> rounds until its replacement
        for _ in range(rounds):
            if self.state.idle:
                return
            for index in range(self.config.workers):
                if index in self.workers:
                    self.turn(index)
                elif replaces:
                    gone[index] = gone.get(index, back_after) - 1
                    if gone[index] < 0:
                        del gone[index]
                        self.epochs[index] += 1
                        self.join(index, self.epochs[index])
        raise AssertionError(f"not idle after {rounds} rounds: {len(self.state.requests)} requests are stuck")

    def add(self, request_id: int, prompt: Iterable[int], *, priority: int = 0, stream: bool = True, **params: object) -> None:
        """A request arrives."""
        self.feed(self.message(request_id, prompt, priority=priority, stream=stream, **params))

    def message(
        self, request_id: int, prompt: Iterable[int], *, priority: int = 0, stream: bool = True, **params: object
    ) -> AddRequest:
        """The message of a request; the test expects its answer from now on."""
        tokens = list(prompt)
        stream = stream and not params.get("pooling")
        its = EngineParams(**params)  # type: ignore[arg-type]
        self.sent[request_id] = Sent(tokens, its, self.max_model_len, stream, self.windows)
        return AddRequest(
            request_id, pack_int32(tokens), len(tokens), self.sent[request_id].params, priority=priority, stream=stream
        )

    def fail_grammar(self, request_id: int) -> None:
        """The grammar process cannot follow a request any more."""
        if self.grammar.fail(request_id):
            self.without_grammar.add(request_id)

    def abort(self, request_id: int) -> None:
        """The client leaves."""
        self.sent[request_id].aborted = True
        self.feed(AbortRequest(request_id))

    def answer(self, index: int) -> None:
        """The scheduler reads the oldest answer of a worker."""
        self.feed(FromWorker(index, self.workers[index].outbox.popleft()))

    def fail_row(self, index: int) -> None:
        """The oldest step of a worker runs and is answered; the logits of its first sampling row were not finite."""
        worker, step = self.workers[index], self.state.lanes[index].in_flight[0]
        if not worker.outbox and worker.inbox:
            worker.run_step()
        if not worker.outbox:
            return  # it waits for masks
        output = worker.outbox.popleft()
        if output.more:
            step, _ = step.split()
        failed = (0,) if step.num_tokens else ()
        for slot, tenancy in zip(step.sampled_slots[:1].tolist(), step.sampled_tenancies[:1].tolist(), strict=True):
            lane = self.state.lanes[index]
            request = lane.requests[slot] if lane.tenancy[slot] == tenancy else lane.detached.get((slot, tenancy))
            if request is not None:
                self.sent[request.request_id].failed = True
        self.feed(FromWorker(index, replace(output, failed_rows_i32=pack_int32(failed))))

    def drain(self, limit: int = 100_000, *, validated: bool = True) -> None:
        """Runs and answers everything."""
        self._validate_every = self._validate_every if validated else limit
        for _ in range(limit):
            if self.state.idle:
                return
            self.run_grammar()
            self.hear_grammar()
            for index, worker in list(self.workers.items()):
                if worker.inbox:
                    worker.run_step()
                if worker.outbox:
                    self.answer(index)
        raise AssertionError(f"not idle after {limit} rounds: {len(self.state.requests)} requests are stuck")

    def check(self) -> None:
        """Every request got exactly what follows from it alone."""
        for request_id, sent in self.sent.items():
            tokens, reason = sent.expected()
            if sent.aborted or (sent.failed and sent.end is not None and sent.end.reason == "error"):
                assert sent.tokens == tokens[: len(sent.tokens)], f"request {request_id}: wrong tokens before its end"
                continue
            assert sent.end is not None, f"request {request_id} never ended"
            if sent.end.reason == "error" and request_id in self.without_grammar:
                assert sent.tokens == tokens[: len(sent.tokens)], f"request {request_id}: wrong tokens before its grammar failed"
                continue
            if sent.end.reason == "error":
                assert sent.deaths > 1 or self.hung, f"request {request_id} failed for nothing"
                assert f"request {request_id} " in sent.end.message
                assert sent.tokens == tokens[: len(sent.tokens)], f"request {request_id}: wrong tokens before it was given up"
                continue
            assert sent.tokens == tokens, f"request {request_id}: wrong tokens"
            assert sent.scores == sent.expected_scores(), f"request {request_id}: wrong scores of its prompt"
            if sent.params.pooling:
                assert sent.embedding == simulated_embedding(sent.prompt, sent.params.pooling, self.windows).tolist()
            assert sent.end.reason == reason
            assert sent.end.stop_token_id == (tokens[-1] if reason == "stop" and tokens else -1)

    def _receive(self, batch: TokenBatch, frontend: int) -> None:
        told = {*unpack_uint64(batch.request_ids_u64).tolist(), *(finished.request_id for finished in batch.finished)}
        told |= batch.logprobs.keys() | batch.num_cached_tokens.keys() | batch.prompt_scores.keys()
        assert {frontend_of(request_id) for request_id in told} == {frontend}, "a frontend is told of another's requests"
        begun: set[int] = set()  # with this batch, which may bring several tokens of a request
        for request_id, scores in batch.prompt_scores.items():
            sent = self.sent[request_id]
            assert sent.end is None and not sent.tokens and not sent.aborted, "scores came too late"
            if sent.params.pooling:
                assert sent.embedding is None, "an embedding came twice"
                sent.embedding = unpack_float32(scores.embedding_f32).tolist()
                continue
            ranks = unpack_int32(scores.ranks_i32).reshape(-1, 1 + sent.params.prompt_logprobs).tolist()
            for position, entry in enumerate(map(tuple, ranks), scores.start):
                assert sent.scores.setdefault(position, entry) == entry, "a score changed"
        for request_id, token in zip(
            unpack_uint64(batch.request_ids_u64).tolist(), unpack_int32(batch.token_ids_i32).tolist(), strict=True
        ):
            sent = self.sent[request_id]
            assert sent.end is None and sent.stream, "a token came after the end"
            assert not sent.aborted, "a token came after the abort was taken in"
            if request_id in begun:
                sent.tokens.append(token)
                continue
            begun |= {request_id} & batch.num_cached_tokens.keys()
            assert (sent.num_cached_tokens is None) == (request_id in batch.num_cached_tokens), "told with the first token, once"
            if sent.num_cached_tokens is None:
                self.first_tokens.append(request_id)
            sent.num_cached_tokens = batch.num_cached_tokens.get(request_id, sent.num_cached_tokens)
            sent.tokens.append(token)
        for finished in batch.finished:
            sent = self.sent[finished.request_id]
            assert sent.end is None and not sent.aborted, "a request ended twice"
            sent.end = finished
            if sent.stream and sent.tokens:
                assert finished.num_cached_tokens == sent.num_cached_tokens
            if not sent.stream:
                sent.tokens = unpack_int32(finished.token_ids_i32).tolist()


def random_requests(
    count: int, seed: int, max_model_len: int, structured: float = 0.0
) -> list[tuple[list[int], dict[str, object]]]:
    """Prompts and parameters of mixed lengths, many with common prefixes, greedy and seeded, some with stop ids, some whose
    embeddings are wanted.

    `structured`: the share of those with a grammar.
    """
    rng = np.random.default_rng(seed)
    stems = [rng.integers(0, VOCAB, max_model_len).tolist() for _ in range(4)]
    requests = []
    for _ in range(count):
        length = int(rng.integers(1, max_model_len - 1))
        kept = int(rng.integers(0, length + 1)) if rng.random() < 0.6 else 0
        prompt = stems[rng.integers(4)][:kept] + rng.integers(0, VOCAB, length - kept).tolist()
        params: dict[str, object] = {
            "max_tokens": int(rng.choice([1, 2, 3, int(rng.integers(1, max_model_len))])),
            "seed": int(rng.choice([0, int(rng.integers(0, 2**62))])),
        }
        if rng.random() < 0.5:
            params["stop_token_ids"] = tuple(rng.integers(0, VOCAB, int(rng.integers(1, 5))).tolist())
            params["min_tokens"] = int(rng.integers(0, 4))
        if rng.random() < structured:
            params["structured"] = Grammar("regex", str(rng.integers(0, 100)))
        if rng.random() < 0.2:
            params["prompt_logprobs"] = int(rng.integers(0, 3))
        if rng.random() < 0.15:
            params = {"max_tokens": 1, "pooling": ("last", "mean")[int(rng.integers(2))]}
        requests.append((prompt, params))
    return requests
