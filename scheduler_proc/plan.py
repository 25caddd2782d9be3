"""Plans one step of one lane: every decoding request one token, what is left of the budget for prompts by rank."""

from collections.abc import Callable

import numpy as np

from protocol.codec import Int32Array, pack_int32, pack_uint64
from protocol.grammar_messages import WantMasks
from protocol.messages import NewRequest, SchedulerOutput
from scheduler_proc.cohort import Cohort
from scheduler_proc.forced import Chunk, choose_chunks, plan_chunks
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane
from scheduler_proc.policy import choose_victim
from scheduler_proc.request import RequestState
from scheduler_proc.sharing import leader_of, must_wait_for_scores, start

_NOBODY = np.empty(0, np.int32)


def plan_step(
    lane: Lane, now_ns: int, on_preempt: Callable[[int], None], on_known: Callable[[int], None]
) -> SchedulerOutput | None:
    """The next step of this lane, or None when it has no credit or no work.

    `on_preempt(slot)` takes the request out of its slot and puts it back in line; `on_known(slot)` takes in the forced tokens of a
    request that are known with this step.
    """
    if lane.ledger.available < 1 or not lane.has_work:
        return None
    joins, lane.joins = lane.joins, []
    if joins:
        lane.decoding = np.concatenate([lane.decoding, np.array(joins, np.int32)])
    if lane.tables.gives_back:
        _free_behind(lane, joins + lane.prefilling.started())
    growing = _grow(lane, on_preempt) if lane.cohort.quiet_steps == 0 else _NOBODY
    if lane.tables.gives_back:
        _extend_prompts(lane, on_preempt)
    if joins:
        joins = [slot for slot in joins if slot in lane.decoding]  # growth may have preempted some
    leaves, lane.leaves = lane.leaves, []
    forced: list[Chunk] = []
    if lane.forced:
        forced = choose_chunks(lane, growing, lane.token_budget - len(lane.decoding))
        _leave_for_chunks(lane, [chunk.slot for chunk in forced], joins, leaves)
    cohort = lane.cohort
    new: list[NewRequest] = []
    num_tokens = len(cohort.slots) + sum(chunk.count for chunk in forced)
    chunks = _choose_chunks(lane, num_tokens, new) if len(lane.prefilling) else {}
    prefill_slots = [chunk.slot for chunk in forced] + list(chunks)
    prefill_counts = [chunk.count for chunk in forced] + list(chunks.values())
    if not len(cohort.slots) and not prefill_slots:
        lane.leaves = leaves
        return None
    step = InFlightStep(
        step_id=lane.ledger.send(),
        slots=cohort.slots,
        tenancies=cohort.tenancies,
        ends=_advance_decodes(lane, cohort),
        samples=np.ones(len(cohort.slots), bool),
        num_decodes=len(cohort.slots),
        chunks=prefill_counts,
        scheduled_ns=now_ns,
        cohort=None if prefill_slots else cohort,
        releases=lane.releases,
    )
    known = plan_chunks(lane, forced) if forced else ()
    if prefill_slots:
        _add_chunks(lane, step, prefill_slots, chunks)
    if lane.num_constrained:
        _want_masks(lane, step)
    lane.in_flight.append(step)
    block_slots, block_ids, block_groups = lane.tables.take_appended()
    output = SchedulerOutput(
        epoch=lane.ledger.epoch,
        step_id=step.step_id,
        released_i32=pack_int32(lane.released) if lane.released else b"",
        new=tuple(new),
        block_slots_i32=block_slots,
        block_ids_i32=block_ids,
        leaves_i32=pack_int32(leaves) if leaves else b"",
        joins_i32=pack_int32(joins) if joins else b"",
        prefill_slots_i32=pack_int32(prefill_slots) if prefill_slots else b"",
        prefill_counts_i32=pack_int32(prefill_counts) if prefill_slots else b"",
        num_decodes=step.num_decodes,
        scheduled_ns=now_ns,
        extended_i32=pack_int32([chunk.slot for chunk in forced]) if forced else b"",
        extensions_i32=pack_int32(np.concatenate([chunk.token_ids for chunk in forced])) if forced else b"",
        block_groups_i32=block_groups,
    )
    lane.released = []
    for slot in known:
        on_known(slot)
    return output


def _grow(lane: Lane, on_preempt: Callable[[int], None]) -> Int32Array:
    """Gives each decoding slot the block that its next position needs, preempting while too few are free. Returns who grew."""
    while True:
        growing: Int32Array = lane.decoding[lane.scheduled[lane.decoding] == lane.tables.covered(lane.decoding)]
        lane.tables.free_behind(growing, lane.scheduled[growing])
        if len(growing) * lane.tables.num_groups <= lane.pool.num_free:
            break
        on_preempt(choose_victim(lane.running()))
    if len(growing):
        lane.tables.append(growing)
    return growing


def _free_behind(lane: Lane, slots: list[int]) -> None:
    """Gives back what the chunks of these slots that are planned have left behind their windows. Decode rows do so as they grow."""
    if slots:
        some = np.array(slots, np.int32)
        lane.tables.free_behind(some, lane.scheduled[some])


def _extend_prompts(lane: Lane, on_preempt: Callable[[int], None]) -> None:
    """Gives prompts under way, by rank, blocks for their next chunks, in place of those that they have left behind.

    As a rule they get back what they gave. Not if others hold it, too: then a chunk is shorter, or waits. But the first prompt gets
    on: if it has to, others give way to it, as they do to rows that decode.
    """
    for index, slot in enumerate(lane.prefilling.started()):
        if slot not in lane.prefilling:
            continue  # it gave way
        start, end = int(lane.scheduled[slot]), lane.prefilling.end(slot)
        lane.tables.extend(slot, start, end)
        while index == 0 and lane.tables.room(slot, start) < 1:
            on_preempt(choose_victim(lane.running()))
            if slot not in lane.prefilling:
                break
            lane.tables.extend(slot, start, end)


def _leave_for_chunks(lane: Lane, slots: list[int], joins: list[int], leaves: list[int]) -> None:
    """Takes slots that compute a chunk out of the decode set, for this step. `joins` and `leaves`: of its message."""
    for slot in slots:
        if slot in joins:
            joins.remove(slot)
        else:
            leaves.append(slot)
    if slots:
        lane.decoding = lane.decoding[~np.isin(lane.decoding, slots)]


def _choose_chunks(lane: Lane, num_tokens: int, new: list[NewRequest]) -> dict[int, int]:
    """Slot -> token count of the prompt chunks that fit into the budget beside `num_tokens` decode tokens, by rank.

    Once the step saturates the device, another prompt would only delay the first token of the ones before it: it waits for the
    next step. So does one whose next block this step, or a later one, computes for another: that one takes its place meanwhile.
    """
    chunks: dict[int, int] = {}
    for follower in lane.prefilling:
        if num_tokens >= lane.token_budget or (chunks and num_tokens >= lane.saturating_tokens):
            break
        slot = leader_of(lane, follower)
        room = lane.tables.room(slot, int(lane.scheduled[slot]))
        if slot in chunks or must_wait_for_scores(lane, slot) or room < 1:
            continue
        if not lane.prefilling.has_started(slot):
            new.append(start(lane, slot))
        chunks[slot] = min(lane.prefilling.end(slot) - int(lane.scheduled[slot]), lane.token_budget - num_tokens, room)
        num_tokens += chunks[slot]
    return chunks


def _advance_prefill(lane: Lane, slot: int, count: int) -> bool:
    """Counts a chunk as scheduled, and names the blocks that it fills; returns whether it reaches the end of the known tokens, and
    so samples."""
    request, end = lane.requests[slot], lane.prefilling.end(slot)
    assert request is not None
    lane.scheduled[slot] += count
    if lane.prefix_caching:
        lane.commit_blocks(slot, int(lane.scheduled[slot]) // lane.block_size)
    if lane.scheduled[slot] < end:
        return False
    lane.prefilling.remove(slot, request.rank)
    lane.story.move(request, RequestState.DECODING, "every known token is planned")
    if end + 1 < lane.target[slot]:  # the token sampled now is not the last one
        lane.joins.append(slot)
    return True


def _add_chunks(lane: Lane, step: InFlightStep, slots: list[int], prompts: dict[int, int]) -> None:
    """Puts the rows of chunks behind the decode rows. `slots`: of all chunks; prompts: sizes of those that are of prompts. The
    others are forced, planned already, and sample."""
    sampled = [slot not in prompts or _advance_prefill(lane, slot, prompts[slot]) for slot in slots]
    step.slots = np.concatenate([step.slots, np.array(slots, np.int32)])
    step.tenancies = lane.tenancy[step.slots]
    step.samples = np.concatenate([step.samples, np.array(sampled, bool)])
    step.ends = lane.scheduled[step.slots]


def _want_masks(lane: Lane, step: InFlightStep) -> None:
    """Asks for the masks of the rows that cannot be sampled without."""
    slots = step.sampled_slots
    rows = step.cohort.constrained if step.cohort is not None else lane.gather(slots).constrained
    if rows is None:
        return
    ends = step.ends if step.cohort is not None else step.ends[step.samples]
    slots = slots[rows]
    positions = ends[rows] - lane.num_prompt[slots]
    step.masked = rows
    step.wants = WantMasks(
        lane.worker, lane.ledger.epoch, step.step_id, pack_int32(rows), pack_uint64(lane.request_id[slots]), pack_int32(positions)
    )
    lane.constraints.want(step.wants)


def _advance_decodes(lane: Lane, cohort: Cohort) -> Int32Array:
    """Counts one position of each decode row as scheduled; returns where they end.

    Whoever has its last token scheduled leaves the decode set: lengths are known ahead, so no step goes past them.
    """
    ends: Int32Array = lane.scheduled[cohort.slots]
    ends += 1
    lane.scheduled[cohort.slots] = ends
    if cohort.quiet_steps > 0:
        cohort.quiet_steps -= 1
        return ends
    last = ends + 1 >= cohort.target
    if last.any():
        lane.leaves.extend(cohort.slots[last].tolist())
        lane.decoding = cohort.slots[~last]
    elif len(ends):
        room = lane.tables.covered(cohort.slots) - ends
        cohort.quiet_steps = int(min(room.min(), (cohort.target - ends).min() - 2))
    return ends
