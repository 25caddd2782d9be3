"""What one request waits for, in words."""

from collections.abc import Mapping

from scheduler_proc.admission import Admission
from scheduler_proc.lane import Lane, Scores
from scheduler_proc.request import Request, RequestState


def explain(request: Request | None, lanes: Mapping[int, Lane], admission: Admission) -> str:
    """Where this request stands now. None: one that is not here, since it ended or never came."""
    if request is None:
        return "not here"
    match request.state:
        case RequestState.SETTLING:
            return f"settling: {request.in_flight} tokens of before its preemption are in flight"
        case RequestState.WAITING if request in admission.probation.line:
            ahead = admission.probation.line.num_ahead(request)
            return f"waiting to run apart, as it ran when a worker died; {ahead} of that kind are before it"
        case RequestState.WAITING if request in admission.unscored:
            return "waiting until a worker has compiled what scores and pools prompts"
        case RequestState.WAITING:
            return _why_waiting(request, lanes, admission)
    lane, slot = lanes[request.worker], request.slot
    where = f"{request.state.value} on worker {lane.worker} in slot {slot}"
    if request.state is RequestState.PREFILLING and request.needs_scores and lane.scores is not Scores.READY:
        return f"{where}: the worker compiles what scores and pools prompts"
    if request.state is RequestState.PREFILLING:
        return f"{where}: {lane.scheduled[slot]} of {lane.known[slot]} tokens are planned"
    if any(slot in step.slots and step.waits_since_ns for step in lane.in_flight):
        return f"{where}: its step waits for what the grammars of some requests allow"
    return f"{where}: {lane.known[slot] - request.num_prompt_tokens} tokens are here, it ends at {_most_tokens(request)}"


def _why_waiting(request: Request, lanes: Mapping[int, Lane], admission: Admission) -> str:
    ahead, head = admission.waiting.num_ahead(request), admission.waiting.head()
    if ahead and head is not None:
        return f"waiting behind {ahead}; request {head.request_id} at the head: {_obstacles(head, lanes, admission)}"
    return f"waiting at the head: {_obstacles(request, lanes, admission)}"


def _obstacles(request: Request, lanes: Mapping[int, Lane], admission: Admission) -> str:
    if request.state is RequestState.SETTLING:
        return f"{request.in_flight} of its tokens are in flight"
    if not lanes:
        return "no worker lives"
    return "; ".join(f"worker {lane.worker} {_obstacle(request, lane, admission)}" for lane in lanes.values())


def _obstacle(request: Request, lane: Lane, admission: Admission) -> str:
    if lane.worker == admission.probation.worker:
        return "runs requests that are on probation"
    if not lane.free_slots:
        return f"has no slot, {lane.num_running} run"
    if before := lane.prompts_before(request):
        return f"has other prompts to read first: {before} tokens of them are not planned yet"
    short = lane.blocks_short(request)
    return f"lacks {short} KV blocks, {lane.pool.num_free} are free" if short > 0 else "has room"


def _most_tokens(request: Request) -> int:
    return request.target - request.num_prompt_tokens
