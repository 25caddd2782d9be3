"""The workers that live, a lane for each, and what the frontend is told of them."""

import msgspec

from protocol.codec import Int32Array
from protocol.config import PROTOCOL_VERSION, EngineConfig
from protocol.credit import Verdict
from protocol.messages import EngineReady, WorkerReady
from scheduler_proc.constraints import Constraints
from scheduler_proc.lane import Lane
from scheduler_proc.request import NOWHERE, Request
from scheduler_proc.story import StoryRing


class Fleet:
    """Which incarnation of each worker is believed. The requests of a lane that leaves are its caller's business."""

    def __init__(self, config: EngineConfig, story: StoryRing, constraints: Constraints, *, resumed: bool = False) -> None:
        """`resumed`: requests of a session before may be waiting, so that one worker is enough to begin."""
        self._config = config
        self._story = story
        self._constraints = constraints
        self.lanes: dict[int, Lane] = {}  # by worker
        self._retired: dict[int, int] = {}  # worker -> its newest epoch that ended, or is given up and awaits its replacement
        self._complete = resumed  # every worker has joined once, in this session or one before
        self._capacity: EngineReady | None = None  # as last announced

    def refusal(self, ready: WorkerReady) -> str:
        """Why this hello is not believed; empty: it is."""
        if ready.version != PROTOCOL_VERSION or not 0 <= ready.worker < self._config.workers:
            return "hello"
        lane = self.lanes.get(ready.worker)
        newest = max(lane.ledger.epoch if lane else -1, self._retired.get(ready.worker, -1))
        return Verdict.WRONG_EPOCH.value if ready.epoch <= newest else ""

    def join(self, ready: WorkerReady) -> None:
        """An incarnation of a worker begins. Its predecessor is retired."""
        self.lanes[ready.worker] = Lane(
            ready,
            queue_depth=self._config.queue_depth,
            token_budget=self._config.max_num_batched_tokens,
            prefix_caching=self._config.enable_prefix_caching,
            story=self._story,
            constraints=self._constraints,
        )

    def retire(self, worker: int, epoch: int) -> Lane | None:
        """Nothing more is believed of this worker up to this epoch. Returns the lane that ends with that."""
        self._retired[worker] = max(epoch, self._retired.get(worker, -1))
        lane = self.lanes.get(worker)
        return self.lanes.pop(worker) if lane is not None and lane.ledger.epoch <= epoch else None

    def known_tokens(self, request: Request) -> Int32Array:
        """Every token that is known of this request, prompt first; to be read at once."""
        if request.slot == NOWHERE:
            return request.tokens
        lane = self.lanes[request.worker]
        return lane.tokens[request.slot, : lane.known[request.slot]]

    def hung(self, now_ns: int) -> list[Lane]:
        """Workers whose oldest step is out for longer than any step may take: liveness is progress.

        The device works on that step only since it answered the one before, however long ago it was sent.
        """
        since_ns = now_ns - int(self._config.step_timeout * 1e9)
        return [lane for lane in self.lanes.values() if lane.in_flight and lane.progress_ns < since_ns]

    @property
    def announced(self) -> EngineReady | None:
        """What the frontends were told last."""
        return self._capacity

    def announcement(self) -> EngineReady | None:
        """What the frontends should know by now; nothing before all workers were there at once."""
        self._complete = self._complete or len(self.lanes) == self._config.workers
        if not self._complete:
            return None
        lanes = list(self.lanes.values())
        if lanes:
            self._capacity = EngineReady(
                workers=len(lanes),
                max_model_len=min(lane.max_model_len for lane in lanes),
                vocab_size=min(lane.vocab_size for lane in lanes),
                num_blocks=sum(lane.pool.num_blocks for lane in lanes),
                block_size=lanes[0].block_size,
                device=lanes[0].device,
                weights=lanes[0].weights,
                embedding_size=lanes[0].embedding_size,
                kv_cache_tokens=sum(lane.kv_cache_tokens for lane in lanes),
                kv_cache_dtype=lanes[0].kv_cache_dtype,
            )
        elif self._capacity is not None:  # requests that come now wait for a successor, and are checked against its limits
            self._capacity = msgspec.structs.replace(self._capacity, workers=0)
        return self._capacity
