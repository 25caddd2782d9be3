"""What must hold between two events, whatever happened. Run after each event in tests, and on idle in production."""

import numpy as np

from scheduler_proc.lane import Lane
from scheduler_proc.state import SchedulerState


def validate(state: SchedulerState) -> None:
    """Raises AssertionError when any part of the state contradicts another."""
    running = {}
    for lane in state.lanes.values():
        _validate_lane(lane)
        for slot, request in lane.running():
            assert request.request_id not in running, f"request {request.request_id} holds two slots"
            running[request.request_id] = slot
    for request in state.requests.values():
        assert not request.finished
        assert (request.request_id in running) != (request in state.waiting), f"request {request.request_id} must run or wait"
    assert len(state.requests) == len(running) + len(state.waiting)
    if state.idle:
        for lane in state.lanes.values():
            assert lane.pool.num_free == lane.pool.num_blocks, "blocks are missing while nothing runs"
            assert len(lane.free_slots) == len(lane.requests), "slots are missing while nothing runs"
            assert not lane.detached


def _validate_lane(lane: Lane) -> None:
    taken = [slot for slot, _ in lane.running()]
    assert sorted(lane.free_slots + taken) == list(range(len(lane.requests))), "a slot is lost, or free twice"
    lane.pool.validate(lane.blocks_of(slot) for slot in taken)
    assert 0 <= lane.ledger.available <= lane.ledger.depth
    assert lane.ledger.in_flight == len(lane.in_flight)
    decoding = lane.decoding.tolist() + lane.joins
    assert len(set(decoding)) == len(decoding), "a slot decodes twice"
    assert set(decoding) <= set(taken) and set(lane.prefilling) <= set(taken)
    assert not set(decoding) & set(lane.prefilling), "a slot decodes while its prompt is not computed"
    slots = np.array(taken, np.int32)
    assert (lane.known[slots] <= lane.target[slots]).all() and (lane.scheduled[slots] < lane.target[slots]).all()
    assert (lane.scheduled[slots] <= lane.num_blocks[slots] * lane.block_size).all(), "a position without a block is scheduled"
    named = lane.committed_blocks[slots] * lane.block_size
    assert (named < lane.known[slots]).all(), "a block is named before its tokens are known"
    for slot in taken:
        expected = lane.tokens_in_flight(slot)
        placeholders = int(lane.scheduled[slot]) + 1 - int(lane.known[slot]) if slot not in lane.prefilling else 0
        assert placeholders == expected, f"slot {slot} counts {placeholders} placeholders, {expected} are in flight"
    for (_, generation), request in lane.detached.items():
        assert request.in_flight > 0 and generation >= 0
