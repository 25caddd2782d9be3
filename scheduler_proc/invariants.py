"""What must hold between two events, whatever happened. Tests check it after each event; production checks a part of it on idle."""

import numpy as np

from scheduler_proc.breaches import must
from scheduler_proc.lane import Lane
from scheduler_proc.request import NOWHERE, Request, RequestState
from scheduler_proc.state import SchedulerState


def validate(state: SchedulerState) -> None:
    """Raises Breach when any part of the state contradicts another."""
    running: set[int] = set()
    for lane in state.lanes.values():
        _validate_lane(lane)
        for slot, request in lane.running():
            must(request.request_id not in running, "slots", f"request {request.request_id} holds two slots")
            must((request.worker, request.slot) == (lane.worker, slot), "slots", f"the holder of slot {slot} does not know")
            running.add(request.request_id)
    for request in state.requests.values():
        _validate_request(state, request, runs=request.request_id in running)
    admission = state.admission
    must(len(state.requests) == len(running) + len(admission), "requests", "a request runs or waits that is not known")
    followed = state.constraints.followed
    must(all(request_id in state.requests for request_id in followed), "constraints", "a request that has ended is followed")
    suspects = admission.probation.suspects
    must(all(request_id in state.requests for request_id in suspects), "suspects", "a request that has ended is a suspect")
    if state.idle:
        validate_idle(state)


def validate_idle(state: SchedulerState) -> None:
    """Raises Breach when something is left of the requests that ran, while none does. Costs next to nothing: somebody may come."""
    must(not len(state.admission) and not len(state.admission.probation.suspects), "idle", "somebody waits whom nobody knows")
    must(not state.constraints.followed, "idle", "the grammar process follows somebody who has ended")
    for lane in state.lanes.values():
        must(
            len(set(lane.free_slots)) == len(lane.free_slots) == len(lane.requests), "idle", "slots are missing while nothing runs"
        )
        must(not lane.detached, "idle", "a preempted request is remembered while nothing runs")
        must(not lane.has_work, "idle", "a slot without a holder has rows")
        must(lane.ledger.in_flight == 0, "idle", "the ledger counts steps while none is in flight")
        lane.pool.validate_idle()


def _validate_request(state: SchedulerState, request: Request, *, runs: bool) -> None:
    admission = state.admission
    waits, waits_apart = request in admission.waiting or request in admission.unscored, request in admission.probation.line
    must(runs + waits + waits_apart == 1, "requests", f"request {request.request_id} must run or wait")
    apart = state.admission.probation.takes(request)
    must(runs or apart == waits_apart, "suspects", f"request {request.request_id} waits in the wrong line")
    must(runs == (request.slot != NOWHERE), "slots", f"request {request.request_id} does not know where it runs")
    if runs:
        prefills = request.slot in state.lanes[request.worker].prefilling
        expected = RequestState.PREFILLING if prefills else RequestState.DECODING
    else:
        expected = RequestState.SETTLING if request.in_flight else RequestState.WAITING
    must(request.state is expected, "requests", f"request {request.request_id} is {request.state}, not {expected}")


def _validate_lane(lane: Lane) -> None:
    taken = [slot for slot, _ in lane.running()]
    must(sorted(lane.free_slots + taken) == list(range(len(lane.requests))), "slots", "a slot is lost, or free twice")
    must(0 <= lane.ledger.available <= lane.ledger.depth, "credits", "more steps are in flight than there are credits")
    must(lane.ledger.in_flight == len(lane.in_flight), "credits", "the ledger counts other steps than are in flight")
    decoding = lane.decoding.tolist() + lane.joins
    must(len(set(decoding)) == len(decoding), "rows", "a slot decodes twice")
    must(set(decoding) <= set(taken) and set(lane.prefilling) <= set(taken), "rows", "a slot without a holder has rows")
    must(not set(decoding) & set(lane.prefilling), "rows", "a slot decodes while its prompt is not computed")
    slots = np.array(taken, np.int32)
    known, scheduled, target = lane.known[slots], lane.scheduled[slots], lane.target[slots]
    must((known <= target).all() and (scheduled < target).all(), "positions", "a request goes past its end")
    lane.tables.validate(slots, scheduled)
    named = lane.committed_blocks[slots] * lane.block_size
    must((named <= np.minimum(known, scheduled)).all(), "names", "a block is named before its tokens are known and planned")
    lane.prefilling.validate()
    constrained = sum(bool(lane.constrained[slot]) for slot in taken)
    must(lane.num_constrained == constrained == lane.constrained.sum(), "constraints", "constrained slots are miscounted")
    expecting = {slot for slot, request in lane.running() if request.runs}
    must(lane.expecting == expecting, "forced", "forced tokens are expected of the wrong slots")
    must(set(lane.forced) <= set(taken), "forced", "a slot without a holder has tokens forced on it")
    for slot in taken:
        expected = lane.tokens_in_flight(slot)
        request = lane.requests[slot]
        assert request is not None
        forced = sum(len(run.token_ids) for run in request.runs if run.computed)
        placeholders = int(lane.scheduled[slot]) + 1 - int(lane.known[slot]) if slot not in lane.prefilling else 0
        must(
            placeholders - forced == expected,
            "placeholders",
            f"slot {slot} counts {placeholders} placeholders, {forced} of them forced, and {expected} are in flight",
        )
        must(all(run.start > lane.known[slot] for run in request.runs), "forced", f"slot {slot} does not believe what is known")
    must(all(request.in_flight > 0 for request in lane.detached.values()), "placeholders", "a settled request is detached")
