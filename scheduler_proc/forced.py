"""Tokens that a request's grammar leaves no choice about: they are computed together as a chunk, not sampled one after the other.

A slot's sequence while that goes on, S = positions scheduled:

    … known tokens, tokens in flight … S | forced tokens S + 1 … E - 1 | E
                                          computed as one chunk S … E - 1, which samples the token at E

The forced tokens count as known when the one at S is here: then everything before them is. Those that the steps in flight sample
before the chunk is planned are sampled: their masks allow nothing else, so that it is all the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from protocol.codec import Int32Array
from scheduler_proc.lane import Lane
from scheduler_proc.request import Request, Run

_FEWEST = 2  # positions of a chunk; one is a decode row


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions that a slot computes in this step, the first of a token that an earlier one sampled."""

    slot: int
    token_ids: Int32Array  # [positions - 1], the tokens behind the first

    @property
    def count(self) -> int:
        """Positions."""
        return len(self.token_ids) + 1


def note_forced(lane: Lane, request: Request, position: int, token_ids: Int32Array) -> bool:
    """The grammar leaves no choice for these tokens, from output position `position` on.

    Returns whether the request has come to its end with that: nothing more of it is to be planned, and the tokens are all known.
    """
    slot = request.slot
    start, next_length = request.num_prompt_tokens + position, int(lane.scheduled[slot]) + 1
    if request.runs or slot in lane.forced or slot in lane.prefilling:
        return False  # a second telling, after the grammar process was replaced; or not worth it
    if request.params.logprobs >= 0 or request.params.has_rules:
        return False  # what it wants of each token, or rules out, only sampling can tell
    if start > int(lane.known[slot]) or not (token_ids.view(np.uint32) < lane.vocab_size).all():
        return False
    end, ends = _end_of(request, start, token_ids, int(lane.target[slot]))
    if end <= next_length:
        return False
    run = Run(next_length, token_ids[next_length - start : end - start])
    if not ends:
        lane.forced[slot] = run
        return False
    if slot not in lane.decoding and slot not in lane.joins:
        return False  # its last token is scheduled already
    lane.stop_decoding(slot)
    lane.expect(slot, run)
    return int(lane.known[slot]) == run.start


def _end_of(request: Request, start: int, token_ids: Int32Array, target: int) -> tuple[int, bool]:
    """The length that a request has with these tokens from `start` on, and whether it ends there."""
    for length, token_id in enumerate(token_ids.tolist(), start + 1):
        if length >= target or request.stops_at(token_id, length):
            return length, True
    return start + len(token_ids), False


def choose_chunks(lane: Lane, growing: Int32Array, budget: int) -> list[Chunk]:
    """What decoding slots compute in this step instead of their next token. They may get a block for it.

    `growing`: slots that got a block in this step already: it brings one to each at most. budget: tokens beside the decode rows.
    """
    chunks: list[Chunk] = []
    for slot, run in list(lane.forced.items()):
        start = int(lane.scheduled[slot])
        token_ids = run.token_ids[max(0, start + 1 - run.start) :]
        if not len(token_ids):
            del lane.forced[slot]
            continue
        if slot not in lane.decoding:
            continue
        room = lane.tables.room(slot, start)
        # A block that is free beside those that the next step's rows may need.
        spare = lane.pool.num_free >= (len(lane.decoding) + 1) * lane.tables.num_groups
        if room <= len(token_ids) and slot not in growing and spare:
            room += lane.block_size
        count = min(len(token_ids) + 1, room, budget + 1)
        if count < _FEWEST:
            continue
        if count > lane.tables.room(slot, start):
            lane.tables.append(np.array([slot], np.int32))
        budget -= count - 1
        chunks.append(Chunk(slot, token_ids[: count - 1]))
    return chunks


def plan_chunks(lane: Lane, chunks: Iterable[Chunk]) -> list[int]:
    """Counts the chunks as scheduled. Returns the slots whose known tokens reach these, so that they are known now."""
    known = []
    for chunk in chunks:
        start = int(lane.scheduled[chunk.slot])
        lane.expect(chunk.slot, Run(start + 1, chunk.token_ids, computed=True))
        lane.scheduled[chunk.slot] = end = start + chunk.count
        if end + 1 < lane.target[chunk.slot]:  # the token sampled now is not the last one
            lane.joins.append(chunk.slot)
        if lane.known[chunk.slot] == start + 1:
            known.append(chunk.slot)
    return known


def take_runs(request: Request, length: int) -> Int32Array:
    """The forced tokens of a request that are known now that it is `length` tokens long."""
    parts: list[Int32Array] = []
    while request.runs and request.runs[0].start == length:
        run = request.runs.pop(0)
        parts.append(run.token_ids)
        length = run.end
    return np.concatenate(parts) if parts else np.empty(0, np.int32)
