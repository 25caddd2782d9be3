"""Requests with a common prefix that are prefilled at the same time: one computes it, the others wait a step and share the blocks.

A block of known tokens is named in the prefix cache when the step that computes it is planned. The device runs steps in order, so
whoever reads the block in a later step finds it written, whatever becomes of the request that wrote it.
"""

from protocol.codec import pack_int32
from protocol.messages import NewRequest
from scheduler_proc.lane import Lane, Scores
from scheduler_proc.prefix_cache import extend_hashes


def leader_of(lane: Lane, slot: int) -> int:
    """The slot that is to compute what this prefilling slot needs next: itself, or one under way with the same prefix."""
    if lane.prefilling.has_started(slot) or not lane.prefix_caching:
        return slot
    request = lane.requests[slot]
    assert request is not None
    shareable = request.shareable_blocks(lane.block_size)
    if shareable and (leader := lane.prefilling.computing(request.block_hashes[shareable - 1])) is not None:
        return leader
    lane.share_more(slot)
    held = int(lane.committed_blocks[slot])
    leader = lane.prefilling.computing(request.block_hashes[held]) if held < shareable else None
    return slot if leader is None else leader


def must_wait_for_scores(lane: Lane, slot: int) -> bool:
    """Whether the worker cannot yet score the prompt of this slot, and notes that it should."""
    request = lane.requests[slot]
    assert request is not None
    if lane.scores is Scores.READY or not request.needs_scores:
        return False
    lane.want_scores()
    return True


def start(lane: Lane, slot: int) -> NewRequest:
    """The first chunk of this slot is being planned: what the worker must know of its request."""
    request = lane.requests[slot]
    assert request is not None
    computed, length = int(lane.scheduled[slot]), int(lane.known[slot])
    if not request.computed_before:
        request.computed_before = True
        request.num_cached_tokens = min(computed, request.num_prompt_tokens)
    names: list[bytes] = []
    if lane.prefix_caching:
        full = length // lane.block_size
        extend_hashes(request.block_hashes, request.cache_salt, request.tokens, full, lane.block_size)
        names = request.block_hashes[computed // lane.block_size : full]
    lane.prefilling.start(slot, names)
    block_ids, block_counts = lane.tables.table(slot)
    return NewRequest(
        slot=slot,
        token_ids_i32=pack_int32(request.tokens),
        num_prompt_tokens=request.num_prompt_tokens,
        num_computed=computed,
        block_ids_i32=block_ids,
        params=request.params,
        scores=request.needs_scores,
        block_counts_i32=block_counts,
    )
