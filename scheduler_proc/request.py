"""One request as the scheduler sees it: tokens, limits, and where it stands."""

from dataclasses import dataclass, field

import numpy as np

from protocol.codec import Int32Array, unpack_int32
from protocol.messages import AddRequest
from protocol.params import EngineParams


@dataclass(slots=True, eq=False)
class Request:
    """A request while the scheduler knows it.

    While it holds a slot, the lane owns its tokens and positions; `tokens` is then what was known at admission. While it waits,
    `tokens` is everything known.
    """

    request_id: int
    tokens: Int32Array  # [known tokens], prompt first
    num_prompt_tokens: int
    target: int  # total length at which it ends: prompt + max_tokens, within max_model_len
    params: EngineParams
    priority: int
    order: int  # arrival number: earlier first within a priority
    stream: bool
    cache_salt: str
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache held at the first admission
    admitted_before: bool = False
    block_hashes: list[bytes] = field(default_factory=list)  # chain over the full blocks of the known tokens, as far as needed
    in_flight: int = 0  # sampled tokens still to come from before its preemption; it is admitted again when they are here
    finished: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Sorts requests by who runs first."""
        return self.priority, self.order

    def append(self, token_id: int) -> None:
        """Adds a token that arrived while the request holds no slot."""
        self.tokens = np.append(self.tokens, np.int32(token_id))

    def stops_at(self, token_id: int, length: int) -> bool:
        """Whether this token, which makes the request `length` tokens long, is a stop id that counts."""
        return token_id in self.params.stop_token_ids and length - self.num_prompt_tokens > self.params.min_tokens


def from_message(message: AddRequest, order: int, max_model_len: int) -> Request:
    """The request that a frontend's message describes. `max_model_len` in tokens."""
    return Request(
        request_id=message.request_id,
        tokens=unpack_int32(message.token_ids_i32),
        num_prompt_tokens=message.num_prompt_tokens,
        target=min(message.num_prompt_tokens + message.params.max_tokens, max_model_len),
        params=message.params,
        priority=message.priority,
        order=order,
        stream=message.stream,
        cache_salt=message.cache_salt,
    )
