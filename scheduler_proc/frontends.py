"""The frontends: who is told what, and whose requests have lost their frontend."""

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from protocol.codec import unpack_int32, unpack_uint64
from protocol.messages import SchedulerToFrontend, TokenBatch
from protocol.request_ids import FRONTEND_SHIFT, epoch_of, frontend_of
from scheduler_proc.events import ToFrontend


class Frontends:
    """`count` of them. An only one is told everything, as it is."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ended: dict[int, int] = {}  # frontend -> its newest epoch that ended

    def everyone(self, message: SchedulerToFrontend) -> Iterator[ToFrontend]:
        """Tells all."""
        return (ToFrontend(message, frontend) for frontend in range(self._count))

    def tokens(self, batch: TokenBatch) -> Iterable[ToFrontend]:
        """Tells each what came for its requests."""
        return (ToFrontend(batch),) if self._count == 1 else self._split(batch)

    def ended(self, frontend: int, epoch: int) -> None:
        """This frontend ended, up to this epoch."""
        self._ended[frontend] = max(epoch, self._ended.get(frontend, -1))

    def has_lost(self, request_id: int) -> bool:
        """Whether the frontend that gave this number has ended, so that nobody waits for the request."""
        return bool(self._ended) and epoch_of(request_id) <= self._ended.get(frontend_of(request_id), -1)

    def _split(self, batch: TokenBatch) -> Iterator[ToFrontend]:
        request_ids, token_ids = unpack_uint64(batch.request_ids_u64), unpack_int32(batch.token_ids_i32)
        lengths = unpack_int32(batch.lengths_i32)
        owners = (request_ids >> np.uint64(FRONTEND_SHIFT)).astype(np.int32)
        others = (*(finished.request_id for finished in batch.finished), *batch.prompt_scores)
        concerned = {*owners.tolist(), *map(frontend_of, others)}
        for frontend in sorted(concerned):
            mine = owners == frontend
            part = msgspec.structs.replace(
                batch,
                request_ids_u64=request_ids[mine].astype("<u8").tobytes(),
                token_ids_i32=token_ids[mine].astype("<i4").tobytes(),
                lengths_i32=lengths[mine].astype("<i4").tobytes(),
                finished=tuple(finished for finished in batch.finished if frontend_of(finished.request_id) == frontend),
                logprobs={key: value for key, value in batch.logprobs.items() if frontend_of(key) == frontend},
                num_cached_tokens={key: value for key, value in batch.num_cached_tokens.items() if frontend_of(key) == frontend},
                prompt_scores={key: value for key, value in batch.prompt_scores.items() if frontend_of(key) == frontend},
                queue_ns={key: value for key, value in batch.queue_ns.items() if frontend_of(key) == frontend},
            )
            yield ToFrontend(part, frontend)
