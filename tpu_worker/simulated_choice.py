"""How the simulated device chooses, by rules that can be worked out by hand.

It draws a token (`simulated_token`) and ranks the vocabulary from there, round and round: the drawn token has rank 1, the next id
rank 2, behind the last id comes 0. A token of rank r has probability 2^-r, so its log-probability is -r ln 2. Of the tokens that a
request does not rule out, the one of the largest log-probability plus bias is taken, the first of equals by rank.

Where a mask says what may come, the number drawn picks one of the first 16 tokens that are allowed and not ruled out. That lets
texts end: in a vocabulary the ends of sequence and the single characters, with those that close what is open among them, have the
lowest ids.
"""

import itertools
import math
from collections.abc import Sequence, Set

import numpy as np

from protocol.codec import Int32Array, UInt32Array, UInt64Array, pack_float32, pack_int32, unpack_bits
from protocol.messages import PromptScores, TopLogprobs
from protocol.params import BANNED, EngineParams

MOST_CHOICES = 16  # among the tokens that a mask allows
_HEAD = 8  # words of a mask that are looked at for many rows together
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
        kept = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
        kept[:vocab_size] = left
        kept[[token_id for token_id in params.logit_bias if token_id not in self._biases]] = 0
        self._left: UInt32Array = np.packbits(kept, bitorder="little").view("<u4")  # with those that have a bias
        left[list(params.logit_bias)] = False
        self._unbiased: Int32Array = np.flatnonzero(left).astype(np.int32)  # rising

    def among(self, mask: UInt32Array, history: Int32Array) -> list[int]:
        """`first_allowed` of what is not ruled out. A stop id that comes too early is taken only if there is nothing else."""
        bad, early = self._bad(history), self._early(history)
        mask = mask & self._left
        return first_allowed(mask, self._vocab_size, bad | early) or first_allowed(mask, self._vocab_size, bad)

    def choose(self, drawn: int, history: Int32Array) -> int:
        """The token behind `history`, the known tokens [length]; -1 when none is left."""
        out = self._bad(history) | self._early(history)

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

    def _early(self, history: Int32Array) -> Set[int]:
        return self._stop_ids if len(history) < self._min_length else frozenset()

    def _bad(self, history: Int32Array) -> Set[int]:
        out, output = set(), history[self._num_prompt_tokens :]
        for word in self._bad_words:
            begun = word[:-1]
            if len(begun) <= len(output) and output[len(output) - len(begun) :].tolist() == begun:
                out.add(word[-1])
        return out


def first_allowed(mask: UInt32Array, vocab_size: int, out: Set[int] = frozenset()) -> list[int]:
    """The lowest token ids, 16 at most, that a mask [ceil(V / 32)] allows and that are not out: rising."""
    found: list[int] = []
    for word in mask.nonzero()[0][: MOST_CHOICES + len(out)].tolist():  # each of them has one at least
        bits = int(mask[word])
        while bits and len(found) < MOST_CHOICES:
            token_id = 32 * word + (bits & -bits).bit_length() - 1
            bits &= bits - 1
            if token_id not in out and token_id < vocab_size:
                found.append(token_id)
    return found


def simulated_scores(start: int, drawn: Int32Array, token_ids: Int32Array, candidates: int, vocab_size: int) -> PromptScores:
    """Of the tokens of a prompt at the positions from `start` on, where `drawn` were drawn; both [tokens]."""
    ranks = np.concatenate([[0], np.arange(1, candidates + 1)])[None, :].repeat(len(drawn), 0)
    ranks[:, 0] = (token_ids - drawn) % vocab_size + 1
    ids = (drawn[:, None] + ranks - 1) % vocab_size
    ids[:, 0] = ranks[:, 0]
    return PromptScores(start, pack_float32(-_LN_2 * ranks), pack_int32(ids))


def pick_allowed(drawn: UInt64Array, bits: UInt32Array, vocab_size: int) -> Int32Array:
    """The token [rows] that each number drawn picks with its mask, [rows, ceil(V / 32)]; -1 where that allows none."""
    head = np.ascontiguousarray(bits[:, :_HEAD])
    flags = np.unpackbits(head.view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
    counts = np.cumsum(flags, axis=1, dtype=np.int32)
    nth = (drawn % np.uint64(MOST_CHOICES)).astype(np.int32)
    # Where the lowest ids hold all the choices, as where text is free.
    token_ids: Int32Array = (counts <= nth[:, None]).sum(axis=1).astype(np.int32)
    others = np.flatnonzero(counts[:, -1] < MOST_CHOICES)
    if len(others):
        token_ids[others] = _pick_among_few(drawn[others], bits[others], vocab_size)
    return token_ids


def _pick_among_few(drawn: UInt64Array, bits: UInt32Array, vocab_size: int) -> Int32Array:
    """The same for masks of which most words are zero: the nth bit of all that are set."""
    if vocab_size % 32:
        bits[:, -1] &= np.uint32((1 << vocab_size % 32) - 1)
    at = np.flatnonzero(bits != 0)  # several times faster than to look for the numbers themselves
    values, (rows, words) = bits.reshape(-1)[at], np.divmod(at, bits.shape[1])
    ends = np.cumsum(np.bitwise_count(values), dtype=np.int64)  # of each word's bits, among those of all rows
    last = np.searchsorted(rows, np.arange(len(bits)), side="right")
    totals = np.concatenate([[0], ends])[last]
    firsts = np.concatenate([[0], totals[:-1]])
    allowed = totals - firsts
    nth = firsts + (drawn % np.maximum(np.minimum(allowed, MOST_CHOICES), 1).astype(np.uint64)).astype(np.int64)
    found = np.minimum(np.searchsorted(ends, nth, side="right"), len(ends) - 1)
    token_ids = np.full(len(bits), -1, np.int32)
    for row in np.flatnonzero(allowed).tolist():
        word = found[row]
        value = int(values[word])
        for _ in range(int(nth[row] - ends[word]) + value.bit_count()):
            value &= value - 1  # takes the lowest bit away
        token_ids[row] = 32 * words[word] + (value & -value).bit_length() - 1
    return token_ids


def rank_of(drawn: int, token_id: int, vocab_size: int) -> int:
    """Rank of a token, from 1, where `drawn` was drawn."""
    return (token_id - drawn) % vocab_size + 1


def simulated_logprobs(drawn: int, token_id: int, count: int, vocab_size: int) -> TopLogprobs:
    """Of a token where `drawn` was drawn, with the `count` most likely ones."""
    rank = rank_of(drawn, token_id, vocab_size)
    ranks: Sequence[int] = range(1, min(count, vocab_size) + 1)
    ids = [(drawn + one - 1) % vocab_size for one in ranks]
    return TopLogprobs(-rank * _LN_2, rank, pack_int32(ids), pack_float32([-one * _LN_2 for one in ranks]))
