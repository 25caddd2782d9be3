"""What a frontend has promised: every request that was accepted and has not ended, with the tokens that came. No pipes, no waiting.

It lives as long as its frontend. Another scheduler is told from it what to go on with. What clients have they know themselves
(`frontend.wire.Resumed`).
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from frontend.server.measures import Measures, Timeline
from frontend.server.prompt_scores import TakesScores
from frontend.server.token_stream import Generation
from frontend.server.turns import OneByOne
from protocol.clock import now_ns
from protocol.codec import Int32Array, pack_int32, unpack_int32, unpack_uint64
from protocol.messages import AbortRequest, AddRequest, Finished, FinishReason, TokenBatch
from protocol.params import EngineParams
from protocol.request_ids import request_ids

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Share:
    """Of one client: its requests that have not ended, and the tokens of their prompts."""

    requests: int = 0
    tokens: int = 0

    def add(self, requests: int, tokens: int) -> bool:
        """Returns whether nothing is left."""
        self.requests += requests
        self.tokens += tokens
        return not self.requests


_NOTHING = Share()


class Journal:
    """The requests of one incarnation of a frontend, in the order of their acceptance."""

    def __init__(
        self,
        index: int,
        epoch: int,
        say: Callable[[AddRequest | AbortRequest], object],
        on_empty: Callable[[], None] = lambda: None,
    ) -> None:
        """`index`, `epoch`: of the frontend. `say`: tells the scheduler. `on_empty`: the last request has ended."""
        self.ids = request_ids(index, epoch)
        self.measures = Measures()
        self.turns = OneByOne()
        self.num_tokens = 0  # of the prompts
        self.num_resumed = 0  # requests that another scheduler was told of
        self.num_misplaced = 0  # tokens that came a second time, or behind others that are missing: dropped
        self._say = say
        self._on_empty = on_empty
        self._generations: dict[int, Generation] = {}
        self._lines: dict[int, Share] = {}  # of clients with several requests

    def __len__(self) -> int:
        return len(self._generations)

    def accept(
        self,
        token_ids: Int32Array,
        params: EngineParams,
        *,
        priority: int = 0,
        stream: bool = True,
        cache_salt: str = "",
        name: str = "",
        line: int = 0,
        scores: TakesScores | None = None,
        known: Iterable[int] = (),
    ) -> Generation:
        """Numbers a request and hands it to the scheduler. `token_ids`: int32, shape [prompt]. `name`: what its client calls it.
        `line`: see AddRequest. `scores`: what takes those of the prompt. `known`: output of a request that is resumed."""
        request = AddRequest(
            request_id=next(self.ids),
            token_ids_i32=pack_int32(token_ids),
            num_prompt_tokens=len(token_ids),
            params=params,
            priority=priority,
            stream=stream,
            cache_salt=cache_salt,
            name=name,
            line=line,
        )
        timeline = Timeline(len(token_ids), 0 if params.pooling else params.max_tokens, now_ns())
        generation = Generation(self, request, timeline, scores, known)
        self._say(generation.resume() if known else request)
        self._generations[request.request_id] = generation
        self.num_tokens += len(token_ids)
        if line:
            self._lines.setdefault(line, Share()).add(1, len(token_ids))
        return generation

    def abort(self, generation: Generation, reason: FinishReason = "abort") -> None:
        """Forgets a request and tells the scheduler; late tokens are dropped. `reason`: why, in measures."""
        if self._generations.pop(generation.request_id, None) is not None:
            self._forget(generation)
            self.measures.request_ended(generation.count(), reason, now_ns())
            self._say(AbortRequest(generation.request_id))
            self._note_end()

    def share(self, line: int) -> "Share":
        """What one line has under way."""
        return self._lines.get(line, _NOTHING)

    def open(self) -> list[Generation]:
        """Those that have not ended."""
        return list(self._generations.values())

    def tell_again(self) -> None:
        """Tells a scheduler that knows nothing of what has not ended."""
        for generation in self._generations.values():
            self._say(generation.resume())
        self.num_resumed += len(self._generations)

    def take(self, batch: TokenBatch, came_ns: int) -> None:
        """Tokens came, and ends. Tokens that are not the next of their request are dropped."""
        woken = []
        generations, logprobs = self._generations, batch.logprobs
        for request_id, count in batch.num_cached_tokens.items():
            if (generation := generations.get(request_id)) is not None and not generation.resumed:
                generation.num_cached_tokens = count
                generation.timeline.queue_ns = batch.queue_ns.get(request_id, 0)
        waited: dict[int, int] = {}  # when a token before came in -> how many tokens of this batch follow one of that time
        for request_id, scores in batch.prompt_scores.items():
            if (generation := generations.get(request_id)) is not None and generation.scores is not None:
                generation.scores.add(scores)
        request_ids, token_ids = unpack_uint64(batch.request_ids_u64).tolist(), unpack_int32(batch.token_ids_i32).tolist()
        lengths = unpack_int32(batch.lengths_i32).tolist()
        for request_id, token_id, length in zip(request_ids, token_ids, lengths, strict=True):
            generation = generations.get(request_id)
            if generation is not None:
                if length != generation.length + 1:
                    self._on_misplaced(generation, length)
                    continue
                generation.lacks_tokens = False
                generation.push(token_id, logprobs.get(request_id) if logprobs else None)
                woken.append(generation)
                timeline = generation.timeline
                if previous := timeline.last_ns:
                    waited[previous] = waited.get(previous, 0) + 1
                else:
                    self.measures.first_came(timeline, came_ns)
                timeline.last_ns = came_ns
        self.measures.others_came(waited, came_ns)
        for finished in batch.finished:
            generation = generations.get(finished.request_id)
            if generation is not None and not generation.lacks_tokens:
                del generations[finished.request_id]
                self._forget(generation)
                generation.finish(finished)
                self._measure(generation.count(), finished, came_ns)
                woken.append(generation)
        for generation in woken:
            generation.wake()
        self._note_end()

    def _forget(self, generation: Generation) -> None:
        num_tokens = generation.timeline.num_prompt_tokens
        self.num_tokens -= num_tokens
        if (line := generation.line) and self._lines[line].add(-1, -num_tokens):
            del self._lines[line]

    def _on_misplaced(self, generation: Generation, length: int) -> None:
        """A token came that is not the next. One that came before is dropped; behind a gap, the request is told again, once."""
        self.num_misplaced += 1
        if length > generation.length and not generation.lacks_tokens:
            _LOG.error("tokens of request %d were lost on the way here: they are computed again", generation.request_id)
            generation.lacks_tokens = True
            self._say(generation.resume())

    def _measure(self, timeline: Timeline, finished: Finished, now_ns: int) -> None:
        if not timeline.first_ns:
            timeline.queue_ns = finished.queue_ns
        if timeline.num_tokens and not timeline.first_ns:
            self.measures.all_came(timeline, finished.prefill_ns, now_ns)
        self.measures.request_ended(timeline, finished.reason, now_ns)

    def _note_end(self) -> None:
        if not self._generations:
            self._on_empty()
