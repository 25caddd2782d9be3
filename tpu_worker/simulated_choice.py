"""How the simulated device chooses, by rules that can be worked out by hand.

It draws a token (`simulated_token`) and ranks the vocabulary from there, round and round: the drawn token has rank 1, the next id
rank 2, behind the last id comes 0. A token of rank r has probability 2^-r, so its log-probability is -r ln 2. Of the tokens that a
request does not rule out, the one of the largest log-probability plus bias is taken, the first of equals by rank.
"""

import itertools
import math
from collections.abc import Sequence, Set

import numpy as np

from protocol.codec import Int32Array, pack_float32, pack_int32, unpack_bits
from protocol.messages import TopLogprobs
from protocol.params import BANNED, EngineParams

_LN_2 = math.log(2.0)


def has_choice(params: EngineParams) -> bool:
    """Whether a request may get another token than the drawn one."""
    return params.has_rules or bool(params.min_tokens and params.stop_token_ids)


class Choice:
    """What one request rules out or favours."""

    def __init__(self, params: EngineParams, num_prompt_tokens: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._num_prompt_tokens = num_prompt_tokens
        self._min_length = num_prompt_tokens + params.min_tokens
        self._stop_ids = frozenset(params.stop_token_ids)
        self._bad_words = [list(word) for word in params.bad_words]
        left = unpack_bits(params.allowed_bits, vocab_size) if params.allowed_bits else np.ones(vocab_size, bool)
        self._biases = {token_id: bias for token_id, bias in params.logit_bias.items() if bias > BANNED and left[token_id]}
        left[list(params.logit_bias)] = False
        self._unbiased: Int32Array = np.flatnonzero(left).astype(np.int32)  # rising

    def choose(self, drawn: int, history: Int32Array) -> int:
        """The token behind `history`, the known tokens [length]; -1 when none is left."""
        out = self._ruled_out(history)

        def worth(token_id: int) -> tuple[float, int]:
            rank = rank_of(drawn, token_id, self._vocab_size)
            return self._biases.get(token_id, 0.0) - rank * _LN_2, -rank

        biased = [token_id for token_id in self._biases if token_id not in out]
        return max((*biased, *self._first_unbiased(drawn, out)), key=worth, default=-1)

    def _first_unbiased(self, drawn: int, out: Set[int]) -> list[int]:
        """Of those without a bias, the one of the lowest rank, if there is any."""
        start, size = int(np.searchsorted(self._unbiased, drawn)), len(self._unbiased)
        ids = (int(self._unbiased[(start + offset) % size]) for offset in range(size))
        return list(itertools.islice((token_id for token_id in ids if token_id not in out), 1))

    def _ruled_out(self, history: Int32Array) -> Set[int]:
        out = set(self._stop_ids) if len(history) < self._min_length else set()
        output = history[self._num_prompt_tokens :]
        for word in self._bad_words:
            begun = word[:-1]
            if len(begun) <= len(output) and output[len(output) - len(begun) :].tolist() == begun:
                out.add(word[-1])
        return out


def rank_of(drawn: int, token_id: int, vocab_size: int) -> int:
    """Rank of a token, from 1, where `drawn` was drawn."""
    return (token_id - drawn) % vocab_size + 1


def simulated_logprobs(drawn: int, token_id: int, count: int, vocab_size: int) -> TopLogprobs:
    """Of a token where `drawn` was drawn, with the `count` most likely ones."""
    rank = rank_of(drawn, token_id, vocab_size)
    ranks: Sequence[int] = range(1, min(count, vocab_size) + 1)
    ids = [(drawn + one - 1) % vocab_size for one in ranks]
    return TopLogprobs(-rank * _LN_2, rank, pack_int32(ids), pack_float32([-one * _LN_2 for one in ranks]))
