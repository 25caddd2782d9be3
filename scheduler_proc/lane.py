"""One worker as the scheduler sees it: slots, blocks, positions and the steps in flight.

Per-slot facts are arrays, so that a steady decode step of 256 requests costs a few vector operations instead of a Python loop.

Lengths of a slot's sequence, in tokens:
    scheduled    positions whose keys and values are computed when the steps in flight have run
    known        tokens whose values are here; at most target, the length at which the request ends
A token that is scheduled and not known is a placeholder: it counts for blocks, positions and limits; its value stays on the device.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum

import numpy as np

from protocol.cache_groups import CacheGroups
from protocol.codec import Int32Array
from protocol.credit import CreditLedger
from protocol.messages import WorkerReady
from scheduler_proc.block_tables import BlockTables
from scheduler_proc.blocks import BlockPool
from scheduler_proc.cohort import Cohort
from scheduler_proc.constraints import Constraints
from scheduler_proc.headroom import Headroom
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.prefill import PrefillQueue
from scheduler_proc.prefix_cache import extend_hashes
from scheduler_proc.request import NOWHERE, Request, RequestState, Run
from scheduler_proc.story import StoryRing

_NO_STOP = -1  # no token has this id
_EMPTY = np.empty(0, np.int32)


class Scores(Enum):
    """Whether the worker's steps can score prompts, and pool them."""

    UNPREPARED = "unprepared"
    WANTED = "wanted"  # by a request that waits for it
    ASKED = "asked"  # the worker prepares
    READY = "ready"


class Lane:
    """State of one incarnation of a worker."""

    def __init__(
        self,
        ready: WorkerReady,
        *,
        queue_depth: int,
        token_budget: int,
        prefix_caching: bool,
        story: StoryRing,
        constraints: Constraints,
    ) -> None:
        self.worker = ready.worker
        self.device = ready.device
        self.weights = ready.weights
        self.kv_cache_dtype = ready.kv_cache_dtype
        self.embedding_size = ready.embedding_size
        self.block_size = ready.block_size
        self.max_model_len = ready.max_model_len
        self.vocab_size = ready.vocab_size
        self.token_budget = token_budget  # tokens a step may compute
        self.saturating_tokens = ready.saturating_tokens or token_budget
        self.prefix_caching = prefix_caching
        self.scores = Scores.READY if ready.scores_ready else Scores.UNPREPARED
        self.story = story
        self.constraints = constraints
        self.ledger = CreditLedger(queue_depth, ready.epoch)
        self.pool = BlockPool(ready.num_blocks)
        self.groups = CacheGroups(ready.windows, ready.block_size, chunk=token_budget)
        self._headroom = Headroom(self.pool, self.groups, prefix_caching=prefix_caching)
        self.in_flight: deque[InFlightStep] = deque()
        self.progress_ns = 0  # when the worker answered last, or got work after a rest; on the clock that limits are kept by
        self.device_busy_ns = 0  # time that the device took for the steps that were answered
        self._device_ended_ns = 0  # when it had done the latest of them
        num_slots = min(ready.max_num_seqs, token_budget)  # every decoding slot takes one token of each step's budget
        self.requests: list[Request | None] = [None] * num_slots
        self.free_slots = list(range(num_slots - 1, -1, -1))
        self.tenancy = np.zeros(num_slots, np.int64)  # of the slot's holder: a number that rises whenever the slot changes hands
        self.tokens = np.zeros((num_slots, ready.max_model_len + 1), np.int32)
        self.known = np.zeros(num_slots, np.int32)
        self.scheduled = np.zeros(num_slots, np.int32)
        self.target = np.zeros(num_slots, np.int32)
        self.committed_blocks = np.zeros(num_slots, np.int32)
        self.releases = 0  # rises whenever a request leaves its slot
        self.tables = BlockTables(self.pool, self.groups, num_slots, ready.max_model_len)
        self.request_id = np.zeros(num_slots, np.uint64)
        self.stream = np.zeros(num_slots, bool)
        self.first_stop = np.full(num_slots, _NO_STOP, np.int32)
        self.more_stops = np.zeros(num_slots, bool)  # has stop ids beyond the first
        self.num_prompt = np.zeros(num_slots, np.int32)
        self.constrained = np.zeros(num_slots, bool)  # its tokens wait for masks
        self.num_constrained = 0  # slots: mostly there are none, and then nobody need look
        self.forced: dict[int, Run] = {}  # slot -> tokens that its grammar forces, which no step computes yet
        self.expecting: set[int] = set()  # slots whose requests have runs of forced tokens that will be known
        self.decoding = _EMPTY  # slots of the standing decode set, in row order; replaced, never changed in place
        self._cohort = self.gather(_EMPTY)
        self.prefilling = PrefillQueue()
        self.detached: dict[tuple[int, int], Request] = {}  # (slot, tenancy) -> preempted request with tokens in flight
        self.released: list[int] = []  # these and the next two wait for the next step's message
        self.joins: list[int] = []
        self.leaves: list[int] = []

    def count_device_time(self, started_ns: int, finished_ns: int) -> None:
        """A step ran on the device. One that is said to have begun before the step ahead of it was done began then."""
        self.device_busy_ns += max(0, finished_ns - max(started_ns, self._device_ended_ns))
        self._device_ended_ns = max(self._device_ended_ns, finished_ns)

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self.requests) - len(self.free_slots)

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens of sequences as long as they may be for which there are blocks."""
        return self.pool.num_blocks * self.max_model_len // self.groups.demand(self.max_model_len)

    @property
    def prefill_backlog(self) -> int:
        """Prompt tokens of the running requests that no step computes yet."""
        return self._unplanned(self.prefilling)

    def prompts_before(self, request: Request) -> int:
        """Tokens of prompts that come first, if there are so many that they fill every step that may be in flight; else 0.

        The request would hold a slot and blocks meanwhile, which another that goes before it may want, and begin no earlier.
        """
        tokens = self._unplanned(self.prefilling.before(request.rank))
        return tokens if tokens >= self.ledger.depth * self.token_budget else 0

    def _unplanned(self, slots: Iterable[int]) -> int:
        return sum(self.prefilling.end(slot) - int(self.scheduled[slot]) for slot in slots)

    @property
    def has_work(self) -> bool:
        """Whether a step sent now would compute anything."""
        return bool(len(self.decoding) or len(self.prefilling) or self.joins)

    @property
    def cohort(self) -> Cohort:
        """The decode set with its facts."""
        if self._cohort.slots is not self.decoding:
            self._cohort = self.gather(self.decoding)
        return self._cohort

    def gather(self, slots: Int32Array) -> Cohort:
        """These slots with the facts of their holders."""
        more_stops, streamed = self.more_stops[slots], self.stream[slots]
        return Cohort(
            slots,
            self.tenancy[slots],
            self.request_id[slots],
            self.target[slots],
            self.first_stop[slots],
            more_stops if more_stops.any() else None,
            None if streamed.all() else streamed,
            self._constrained_rows(slots),
        )

    def _constrained_rows(self, slots: Int32Array) -> Int32Array | None:
        rows = np.flatnonzero(self.constrained[slots]) if self.num_constrained else _EMPTY
        return rows.astype(np.int32) if len(rows) else None

    def running(self) -> Iterator[tuple[int, Request]]:
        """Each slot that is taken, with its request."""
        return ((slot, request) for slot, request in enumerate(self.requests) if request is not None)

    def want_scores(self) -> None:
        """A prompt is to be scored or pooled: the worker will be asked to prepare, unless it was."""
        if self.scores is Scores.UNPREPARED:
            self.scores = Scores.WANTED

    def holder(self, slot: int, tenancy: int) -> Request | None:
        """The request that a row in flight was computed for, if it still is one: it holds the slot, or was preempted out of it."""
        return self.requests[slot] if self.tenancy[slot] == tenancy else self.detached.get((slot, tenancy))

    def can_admit(self, request: Request) -> bool:
        """Whether a slot and the blocks that it needs to begin are free now, and its prompt is wanted."""
        if not self.free_slots or request.in_flight or self.prompts_before(request):
            return False
        return self._headroom.fits(request, alone=not self.num_running)

    def blocks_short(self, request: Request) -> int:
        """How many blocks must become free before the request fits; none or fewer: it fits."""
        return self._headroom.short(request, alone=not self.num_running)

    def admit(self, request: Request, cause: str) -> None:
        """Gives the request a slot, and blocks for its known tokens, or as many as it holds at once. `can_admit` must hold.

        `cause`: for its story.
        """
        request.target = min(request.target, self.max_model_len + request.overhang)
        hit, length = self._headroom.hit(request), len(request.tokens)
        slot = self.free_slots.pop()
        self.tables.take(slot, hit, length)
        request.worker, request.slot = self.worker, slot
        self.story.move(request, RequestState.PREFILLING, cause)
        stop_ids = request.params.stop_token_ids
        self.requests[slot] = request
        self.tenancy[slot] += 1
        self.tokens[slot, :length] = request.tokens
        self.known[slot] = length
        self.scheduled[slot] = hit.num_blocks * self.block_size
        self.target[slot] = request.target
        self.committed_blocks[slot] = hit.num_blocks
        self.request_id[slot] = request.request_id
        self.stream[slot] = request.stream
        self.first_stop[slot] = stop_ids[0] if stop_ids else _NO_STOP
        self.more_stops[slot] = len(stop_ids) > 1
        self.num_prompt[slot] = request.num_prompt_tokens
        self.constrained[slot] = request.params.structured is not None
        if self.constrained[slot]:
            self.num_constrained += 1
            self.constraints.follow(request, request.tokens)
        self.prefilling.add(slot, request.rank, length)

    def release(self, slot: int) -> None:
        """Takes back slot and blocks of a request that ended or gives way."""
        request = self.requests[slot]
        assert request is not None
        request.worker = request.slot = NOWHERE
        self.requests[slot] = None
        self.tenancy[slot] += 1
        self.releases += 1
        self.tables.release(slot)
        self.num_constrained -= bool(self.constrained[slot])
        self.constrained[slot] = False
        self.forced.pop(slot, None)
        self.expecting.discard(slot)
        self.free_slots.append(slot)
        if slot in self.decoding:
            self.decoding = self.decoding[self.decoding != slot]
        if self.prefilling.has_started(slot):
            self.released.append(slot)
        if slot in self.prefilling:
            self.prefilling.remove(slot, request.rank)
        if slot in self.joins:
            self.joins.remove(slot)
        if slot in self.leaves:
            self.leaves.remove(slot)

    def stop_decoding(self, slot: int) -> None:
        """Everything that this slot's request may generate is scheduled, or known."""
        if slot in self.joins:
            self.joins.remove(slot)
        else:
            self.leaves.append(slot)
            self.decoding = self.decoding[self.decoding != slot]

    def expect(self, slot: int, run: Run) -> None:
        """Forced tokens will be known when those before them are."""
        request = self.requests[slot]
        assert request is not None
        request.runs.append(run)
        self.expecting.add(slot)

    def share_more(self, slot: int) -> None:
        """Puts blocks that were named since the admission into the place of those that this slot, whose worker has not heard of it,
        would have to compute."""
        request, computed = self.requests[slot], int(self.committed_blocks[slot])
        assert request is not None
        hit = self._headroom.hit(request, computed)
        if hit.num_blocks > computed:
            self.tables.adopt(slot, computed, hit, int(self.known[slot]))
            self.committed_blocks[slot] = hit.num_blocks
            self.scheduled[slot] = hit.num_blocks * self.block_size

    def preempt(self, slot: int, cause: str) -> Request:
        """Releases the slot of a request that will go on later. `cause`: for its story.

        Its tokens in flight were computed from valid state, so they are valid: they are kept when they arrive, and until then the
        request is not admitted again.
        """
        request = self.requests[slot]
        assert request is not None
        tenancy = int(self.tenancy[slot])
        request.tokens = self.tokens[slot, : self.known[slot]].copy()
        request.in_flight = self.tokens_in_flight(slot)
        if not request.in_flight:
            request.runs.clear()  # the worker is no more
        else:
            self.detached[slot, tenancy] = request
        self.release(slot)
        self.story.move(request, RequestState.SETTLING if request.in_flight else RequestState.WAITING, cause)
        return request

    def dissolve(self, cause: str) -> list[Request]:
        """The worker is no more: takes every request out. Known tokens stay; what was in flight is computed again.

        Returns those that held a slot, and those that were preempted and still had tokens to come.
        """
        self.in_flight.clear()
        settled = [request for request in self.detached.values() if not request.finished]
        for request in settled:
            request.in_flight = 0
            request.runs.clear()
            self.story.move(request, RequestState.WAITING, cause)
        self.detached.clear()
        return settled + [self.preempt(slot, cause) for slot, _ in list(self.running())]

    def tokens_in_flight(self, slot: int) -> int:
        """Sampled tokens of the slot's holder that are still to come."""
        tenancy = self.tenancy[slot]
        return sum(
            int(np.count_nonzero((step.sampled_slots == slot) & (step.sampled_tenancies == tenancy))) for step in self.in_flight
        )

    def commit_blocks(self, slot: int, count: int) -> None:
        """Names the first `count` blocks of this slot, whose keys and values are computed from known tokens, or are going to be by
        a step that is planned."""
        request = self.requests[slot]
        assert request is not None
        extend_hashes(request.block_hashes, request.cache_salt, self.tokens[slot], count, self.block_size)
        for index in range(int(self.committed_blocks[slot]), count):
            self.tables.commit(slot, index, request.block_hashes[index])
            self.prefilling.computed(slot, request.block_hashes[index])
        self.committed_blocks[slot] = count

    def distrust(self, request: Request) -> None:
        """What this request computed may not be finite: nobody finds it by its name any more."""
        self.tables.distrust(request.block_hashes)
