"""What the engine computes of one prompt besides an output, as it comes: log-probabilities of its tokens, or its embedding."""

import asyncio
from typing import Protocol

import numpy as np

from protocol.codec import Float32Array, Int32Array, unpack_float32, unpack_int32
from protocol.messages import PromptScores


class TakesScores(Protocol):
    """Whoever wants them."""

    def add(self, scores: PromptScores) -> None:
        """Some came; also those that came before, again, when a request was begun anew."""

    def end(self) -> None:
        """None follow."""


class PromptEmbedding:
    """Of one prompt, as the device pooled it: complete with the end of its request."""

    __slots__ = ("pooled",)

    def __init__(self) -> None:
        self.pooled: Float32Array | None = None  # [embedding size], not normalised

    def add(self, scores: PromptScores) -> None:
        """See TakesScores."""
        self.pooled = unpack_float32(scores.embedding_f32)

    def end(self) -> None:
        """See TakesScores: whoever waits for the request knows."""


class PromptLogprobs:
    """Of all tokens but the first, which nothing predicts; computed once for all outputs of the prompt."""

    __slots__ = ("_known", "_over", "candidates", "length", "logprobs", "ranks")

    def __init__(self, length: int, candidates: int) -> None:
        """`length`: tokens of the prompt. `candidates`: of the most likely ones, how many come with each."""
        self.length = length
        self.candidates = candidates
        # [length - 1, 1 + candidates]: of the token, then of the candidates in falling order.
        self.logprobs: Float32Array = np.empty((0, 1 + candidates), np.float32)
        self.ranks: Int32Array = np.empty((0, 1 + candidates), np.int32)  # rank of the token from 1, then the candidates' ids
        self._known = 1  # leading tokens
        self._over = asyncio.Event()
        if self.complete:
            self._over.set()

    @property
    def complete(self) -> bool:
        """Whether all are here."""
        return self._known >= self.length

    def add(self, scores: PromptScores) -> None:
        """Some more; also those that came before, again, when a request was begun anew."""
        if not len(self.ranks):  # no sooner than the engine has computed the first
            shape = self.length - 1, 1 + self.candidates
            self.logprobs, self.ranks = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
        ranks = unpack_int32(scores.ranks_i32).reshape(-1, 1 + self.candidates)
        where = slice(scores.start - 1, scores.start - 1 + len(ranks))
        self.ranks[where] = ranks
        self.logprobs[where] = unpack_float32(scores.logprobs_f32).reshape(ranks.shape)
        self._known = max(self._known, scores.start + len(ranks))
        if self.complete:
            self._over.set()

    def end(self) -> None:
        """None follow."""
        self._over.set()

    async def wait(self) -> None:
        """Until all are here, or none follow."""
        await self._over.wait()
