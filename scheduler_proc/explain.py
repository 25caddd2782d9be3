"""What one request waits for, in words."""

from collections.abc import Mapping

from scheduler_proc.lane import Lane
from scheduler_proc.request import Request, RequestState
from scheduler_proc.waiting import WaitingQueue


def explain(request: Request | None, lanes: Mapping[int, Lane], waiting: WaitingQueue) -> str:
    """Where this request stands now. None: one that is not here, since it ended or never came."""
    if request is None:
        return "not here"
    match request.state:
        case RequestState.SETTLING:
            return f"settling: {request.in_flight} tokens of before its preemption are in flight"
        case RequestState.WAITING:
            return _why_waiting(request, lanes, waiting)
    lane, slot = lanes[request.worker], request.slot
    where = f"{request.state.value} on worker {lane.worker} in slot {slot}"
    if request.state is RequestState.PREFILLING:
        return f"{where}: {lane.scheduled[slot]} of {lane.known[slot]} tokens are planned"
    return f"{where}: {lane.known[slot] - request.num_prompt_tokens} tokens are here, it ends at {_most_tokens(request)}"


def _why_waiting(request: Request, lanes: Mapping[int, Lane], waiting: WaitingQueue) -> str:
    ahead = waiting.num_ahead(request)
    head = waiting.head()
    if ahead and head is not None:
        return f"waiting behind {ahead}; request {head.request_id} at the head: {_obstacles(head, lanes)}"
    return f"waiting at the head: {_obstacles(request, lanes)}"


def _obstacles(request: Request, lanes: Mapping[int, Lane]) -> str:
    if request.state is RequestState.SETTLING:
        return f"{request.in_flight} of its tokens are in flight"
    if not lanes:
        return "no worker lives"
    return "; ".join(f"worker {lane.worker} {_obstacle(request, lane)}" for lane in lanes.values())


def _obstacle(request: Request, lane: Lane) -> str:
    if not lane.free_slots:
        return f"has no slot, {lane.num_running} run"
    short = lane.blocks_short(request)
    return f"lacks {short} KV blocks, {lane.pool.num_free} are free" if short > 0 else "has room"


def _most_tokens(request: Request) -> int:
    return request.target - request.num_prompt_tokens
