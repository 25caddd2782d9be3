"""One request as the scheduler sees it: tokens, limits, and where it stands."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from protocol.codec import Int32Array, unpack_int32
from protocol.messages import AddRequest
from protocol.params import EngineParams

NOWHERE = -1  # worker and slot of a request that holds no slot


class RequestState(Enum):
    """Where a request stands. `StoryRing.move` alone changes it."""

    NEW = "new"  # read from the pipe, not yet in line
    WAITING = "waiting"  # in line for a slot
    SETTLING = "settling"  # preempted with tokens in flight: in line, and admitted no sooner than these are here
    PREFILLING = "prefilling"  # holds a slot; not all of its known tokens are planned
    DECODING = "decoding"  # holds a slot; every known token is planned, new ones come
    FINISHED = "finished"


_ENDS = (RequestState.FINISHED,)
TRANSITIONS: dict[RequestState, tuple[RequestState, ...]] = {
    RequestState.NEW: (RequestState.WAITING,),
    RequestState.WAITING: (RequestState.PREFILLING, *_ENDS),
    RequestState.SETTLING: (RequestState.WAITING, *_ENDS),
    RequestState.PREFILLING: (RequestState.DECODING, RequestState.WAITING, *_ENDS),
    RequestState.DECODING: (RequestState.WAITING, RequestState.SETTLING, *_ENDS),
    RequestState.FINISHED: (),
}


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens that a grammar forces, at positions that no step samples."""

    start: int  # position of the first
    token_ids: Int32Array
    computed: bool = False  # a step in flight computes them; else they are the end of the output

    @property
    def end(self) -> int:
        """The position behind the last."""
        return self.start + len(self.token_ids)


@dataclass(slots=True, eq=False)
class Request:
    """A request while the scheduler knows it.

    While it holds a slot, the lane owns its tokens and positions; `tokens` is then what was known at admission. While it waits,
    `tokens` is everything known.
    """

    request_id: int
    tokens: Int32Array  # [known tokens], prompt first
    num_prompt_tokens: int
    target: int  # total length at which it ends: prompt + max_tokens, and within the context once it was admitted
    params: EngineParams
    priority: int
    order: int  # arrival number: earlier first within a round
    stream: bool
    cache_salt: str
    name: str = ""  # what its client calls it
    round: int = 0  # of its client's turns, see Rounds: earlier first within a priority
    state: RequestState = RequestState.NEW
    worker: int = NOWHERE  # of the slot that it holds
    slot: int = NOWHERE
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache held when it was first computed
    computed_before: bool = False  # a chunk of it was planned
    begun: bool = False  # its first token is here
    arrived_ns: int = 0  # on the one clock, as the two below; 0: not yet
    admitted_ns: int = 0  # when it got its first slot
    begun_ns: int = 0  # when its first token was here
    num_scored: int = 1  # leading tokens of the prompt whose scores were sent, where asked; the first has none
    block_hashes: list[bytes] = field(default_factory=list)  # chain over the full blocks of the known tokens, as far as needed
    runs: list[Run] = field(default_factory=list)  # forced tokens that are known as soon as those before them are; rising
    in_flight: int = 0  # sampled tokens still to come from before its preemption; it is admitted again when they are here

    @property
    def rank(self) -> tuple[int, int, int]:
        """Sorts requests by who runs first."""
        return self.priority, self.round, self.order

    @property
    def queue_ns(self) -> int:
        """From its arrival to its first slot."""
        return max(0, self.admitted_ns - self.arrived_ns)

    @property
    def prefill_ns(self) -> int:
        """From its first slot to its first token."""
        return max(0, self.begun_ns - self.admitted_ns)

    @property
    def overhang(self) -> int:
        """Tokens beyond the context that it may have: the one that ends an embedding, which nobody sees or attends to."""
        return 1 if self.params.pooling else 0

    @property
    def needs_scores(self) -> bool:
        """Whether log-probabilities of its prompt are still to be computed, or its embedding, which its last chunk brings."""
        return bool(self.params.pooling) or (self.params.prompt_logprobs >= 0 and self.num_scored < self.num_prompt_tokens)

    def shareable_blocks(self, block_size: int) -> int:
        """How many leading blocks it need not compute if others have. The last known token is always computed: its row samples the
        next one. So is every token that predicts one whose score is wanted, and every one that an embedding is the mean over."""
        of_all = self.needs_scores and self.params.pooling != "last"
        return ((self.num_scored if of_all else len(self.tokens)) - 1) // block_size

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.state is RequestState.FINISHED

    def append(self, token_ids: Int32Array) -> None:
        """Adds tokens that became known while the request holds no slot."""
        self.tokens = np.concatenate([self.tokens, token_ids])

    def stops_at(self, token_id: int, length: int) -> bool:
        """Whether this token, which makes the request `length` tokens long, is a stop id that counts."""
        return token_id in self.params.stop_token_ids and length - self.num_prompt_tokens > self.params.min_tokens


def from_message(message: AddRequest, order: int, number: int = 0) -> Request:
    """The request that a frontend's message describes. `order`: its arrival number; `number`: of its round.

    One that has tokens already was begun under a scheduler that ended since.
    """
    begun = len(message.token_ids_i32) > 4 * message.num_prompt_tokens
    return Request(
        request_id=message.request_id,
        tokens=unpack_int32(message.token_ids_i32),
        num_prompt_tokens=message.num_prompt_tokens,
        target=message.num_prompt_tokens + message.params.max_tokens,
        params=message.params,
        priority=message.priority,
        order=order,
        stream=message.stream,
        cache_salt=message.cache_salt,
        name=message.name,
        round=number,
        begun=begun,
        num_scored=message.num_prompt_tokens if begun else 1,
    )
