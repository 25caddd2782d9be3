"""Plans one step of one lane: every decoding request one token, what is left of the budget for prompts in order of admission."""

from collections.abc import Callable

import numpy as np

from protocol.codec import Int32Array, pack_int32
from protocol.messages import SchedulerOutput
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane
from scheduler_proc.policy import choose_victim

_EMPTY = np.empty(0, np.int32)


def plan_step(lane: Lane, now_ns: int, on_preempt: Callable[[int], None]) -> SchedulerOutput | None:
    """The next step of this lane, or None when it has no credit or no work.

    `on_preempt(slot)` takes the request out of its slot and puts it back in line.
    """
    if lane.ledger.available < 1 or not lane.has_work:
        return None
    lane.decoding = np.concatenate([lane.decoding, np.array(lane.joins, np.int32)]) if lane.joins else lane.decoding
    joins, lane.joins = lane.joins, []
    growing = _grow(lane, on_preempt)
    decoding = lane.decoding
    joins = [slot for slot in joins if slot in decoding] if joins else joins  # growth may have preempted some
    leaves, lane.leaves = lane.leaves, []
    prefill_slots, prefill_counts = _choose_chunks(lane, lane.token_budget - len(decoding))
    if not len(decoding) and not prefill_slots:
        lane.leaves = leaves
        return None
    step_id = lane.ledger.send()
    slots, samples, ends = decoding, np.ones(len(decoding), bool), lane.scheduled[decoding] + 1
    lane.scheduled[decoding] = ends
    _retire(lane, decoding, ends)
    if prefill_slots:
        slots = np.concatenate([decoding, np.array(prefill_slots, np.int32)])
        sampled = [_advance_prefill(lane, slot, count) for slot, count in zip(prefill_slots, prefill_counts, strict=True)]
        samples = np.concatenate([samples, np.array(sampled, bool)])
        ends = lane.scheduled[slots]
    generations = lane.generation[slots]
    lane.in_flight.append(InFlightStep(step_id, slots, generations, ends, samples, len(decoding), sum(prefill_counts), now_ns))
    output = SchedulerOutput(
        epoch=lane.ledger.epoch,
        step_id=step_id,
        released_i32=pack_int32(lane.released) if lane.released else b"",
        new=tuple(lane.new.values()),
        block_slots_i32=pack_int32(growing) if len(growing) else b"",
        block_ids_i32=pack_int32(lane.block_table[growing, lane.num_blocks[growing] - 1]) if len(growing) else b"",
        leaves_i32=pack_int32(leaves) if leaves else b"",
        joins_i32=pack_int32(joins) if joins else b"",
        prefill_slots_i32=pack_int32(prefill_slots) if prefill_slots else b"",
        prefill_counts_i32=pack_int32(prefill_counts) if prefill_slots else b"",
        num_decodes=len(decoding),
        scheduled_ns=now_ns,
    )
    lane.released, lane.new = [], {}
    return output


def _grow(lane: Lane, on_preempt: Callable[[int], None]) -> Int32Array:
    """Gives each decoding slot the block that its next position needs, preempting while too few are free. Returns who grew."""
    while True:
        full = lane.scheduled[lane.decoding] == lane.num_blocks[lane.decoding] * lane.block_size
        growing: Int32Array = lane.decoding[full]
        if len(growing) <= lane.pool.num_free:
            break
        on_preempt(choose_victim(lane.running()))
    if len(growing):
        lane.block_table[growing, lane.num_blocks[growing]] = lane.pool.allocate(len(growing))
        lane.num_blocks[growing] += 1
    return growing


def _choose_chunks(lane: Lane, budget: int) -> tuple[list[int], list[int]]:
    """Slots and token counts of the prompt chunks that fit into `budget` tokens."""
    slots, counts = [], []
    for slot, end in lane.prefilling.items():
        if budget <= 0:
            break
        count = min(end - int(lane.scheduled[slot]), budget)
        slots.append(slot)
        counts.append(count)
        budget -= count
    return slots, counts


def _advance_prefill(lane: Lane, slot: int, count: int) -> bool:
    """Counts a chunk as scheduled; returns whether it reaches the end of the known tokens, and so samples."""
    end = lane.prefilling[slot]
    lane.scheduled[slot] += count
    if lane.scheduled[slot] < end:
        return False
    del lane.prefilling[slot]
    if end + 1 < lane.target[slot]:  # the token sampled now is not the last one
        lane.joins.append(slot)
    return True


def _retire(lane: Lane, decoding: Int32Array, ends: Int32Array) -> None:
    """Takes out of the decode set whoever has its last token scheduled: lengths are known ahead, so no step goes past them."""
    last = ends + 1 >= lane.target[decoding]
    if last.any():
        lane.leaves.extend(decoding[last].tolist())
        lane.decoding = decoding[~last]
