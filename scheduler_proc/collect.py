"""Takes in the answer to one step: which values are believed, which requests end, what may be cached."""

from dataclasses import dataclass, field

import numpy as np

from protocol.codec import BoolArray, Int32Array, UInt64Array, unpack_int32
from protocol.errors import ProtocolError
from protocol.messages import Finished, FinishReason, ModelRunnerOutput, TopLogprobs
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane
from scheduler_proc.request import Request


@dataclass(slots=True)
class Outcome:
    """What one returned step brought. Token i belongs to request i."""

    request_ids: UInt64Array  # [streamed tokens]
    token_ids: Int32Array  # [streamed tokens]
    finished: list[Finished] = field(default_factory=list)
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)
    num_tokens: int = 0  # believed tokens, streamed or not
    num_discarded: int = 0  # tokens of requests that had ended before that position


def collect_step(lane: Lane, output: ModelRunnerOutput) -> tuple[InFlightStep, Outcome]:
    """Applies the answer to the lane's oldest step in flight. The ledger must have judged it EXPECTED.

    Raises ProtocolError when the answer does not fit the step.
    """
    step = lane.in_flight[0]
    slots, generations = step.sampled_slots, step.sampled_generations
    token_ids = unpack_int32(output.token_ids_i32)
    if len(token_ids) != len(slots):
        raise ProtocolError(f"step {step.step_id} samples {len(slots)} rows, its answer has {len(token_ids)} tokens")
    if len(token_ids) and not (0 <= token_ids.min() and token_ids.max() < lane.vocab_size) and not output.failed_rows_i32:
        raise ProtocolError(f"the answer to step {step.step_id} has token ids outside the vocabulary of {lane.vocab_size}")
    lane.in_flight.popleft()
    lane.ledger.answer()
    alive = lane.generation[slots] == generations
    failed = np.zeros(len(slots), bool)
    failed[unpack_int32(output.failed_rows_i32)] = True
    outcome = _believe(lane, slots, token_ids, alive & ~failed)
    _commit(lane, step, slots[alive & failed])
    for row in np.flatnonzero(~alive | failed).tolist():
        _settle(lane, int(slots[row]), int(generations[row]), int(token_ids[row]), bool(failed[row]), outcome)
    for entry in output.logprobs:
        row = entry.row
        if alive[row] and not failed[row]:
            outcome.logprobs[int(lane.request_id[slots[row]])] = entry.logprobs
        elif (request := lane.detached.get((int(slots[row]), int(generations[row])))) is not None:
            outcome.logprobs[request.request_id] = entry.logprobs
    for slot in _ended(lane, slots[alive & ~failed]):
        outcome.finished.append(_finish_slot(lane, slot))
    lane.detached = {key: request for key, request in lane.detached.items() if request.in_flight}
    return step, outcome


def finished_message(request: Request, reason: FinishReason, tokens: Int32Array, message: str = "") -> Finished:
    """The end of a request whose tokens, prompt first, are `tokens`."""
    last = int(tokens[-1])
    return Finished(
        request_id=request.request_id,
        reason=reason,
        stop_token_id=last if reason == "stop" else -1,
        token_ids_i32=b"" if request.stream else tokens[request.num_prompt_tokens :].astype("<i4").tobytes(),
        message=message,
        num_cached_tokens=request.num_cached_tokens,
    )


def _believe(lane: Lane, slots: Int32Array, token_ids: Int32Array, rows: BoolArray) -> Outcome:
    """Appends the values of the rows whose request still holds its slot."""
    if not rows.all():
        slots, token_ids = slots[rows], token_ids[rows]
    lane.tokens[slots, lane.known[slots]] = token_ids
    lane.known[slots] += 1
    streamed = lane.stream[slots]
    return Outcome(lane.request_id[slots[streamed]], token_ids[streamed], num_tokens=len(slots))


def _commit(lane: Lane, step: InFlightStep, failed_slots: Int32Array) -> None:
    """Counts the step's keys and values as computed, and names the blocks that are full of them."""
    alive = lane.generation[step.slots] == step.generations
    slots, ends = (step.slots, step.ends) if alive.all() else (step.slots[alive], step.ends[alive])
    lane.confirmed[slots] = ends
    lane.commit_blocks(slots[~np.isin(slots, failed_slots)] if len(failed_slots) else slots)


def _settle(lane: Lane, slot: int, generation: int, token_id: int, failed: bool, outcome: Outcome) -> None:
    """One row that is not simply appended: a failed one, one of a preempted request, or one of a request that has ended."""
    if lane.generation[slot] == generation:
        request = lane.requests[slot]
        assert request is not None
        lane.pool.distrust(lane.blocks_of(slot))
        _end(request, outcome, "error", lane.tokens[slot, : lane.known[slot]], "the model's output was not finite")
        lane.release(slot)
        return
    preempted = lane.detached.get((slot, generation))
    if preempted is None or preempted.finished:
        outcome.num_discarded += 1
        if preempted is not None:
            preempted.in_flight -= 1
        return
    preempted.in_flight -= 1
    if failed:
        _end(preempted, outcome, "error", preempted.tokens, "the model's output was not finite")
        return
    preempted.append(token_id)
    outcome.num_tokens += 1
    if preempted.stream:
        outcome.request_ids = np.append(outcome.request_ids, np.uint64(preempted.request_id))
        outcome.token_ids = np.append(outcome.token_ids, np.int32(token_id))
    if preempted.stops_at(token_id, len(preempted.tokens)):
        _end(preempted, outcome, "stop", preempted.tokens)
    elif len(preempted.tokens) >= preempted.target:
        _end(preempted, outcome, "length", preempted.tokens)


def _ended(lane: Lane, slots: Int32Array) -> list[int]:
    """Slots whose newest token ends their request."""
    known = lane.known[slots]
    newest = lane.tokens[slots, known - 1]
    candidates = (newest == lane.first_stop[slots]) | lane.more_stops[slots] | (known >= lane.target[slots])
    ended = []
    for row in np.flatnonzero(candidates).tolist():
        request = lane.requests[slots[row]]
        assert request is not None
        if request.stops_at(int(newest[row]), int(known[row])) or known[row] >= request.target:
            ended.append(int(slots[row]))
    return ended


def _finish_slot(lane: Lane, slot: int) -> Finished:
    request = lane.requests[slot]
    assert request is not None
    request.finished = True
    tokens = lane.tokens[slot, : lane.known[slot]]
    reason: FinishReason = "stop" if request.stops_at(int(tokens[-1]), len(tokens)) else "length"
    message = finished_message(request, reason, tokens)
    lane.release(slot)
    return message


def _end(request: Request, outcome: Outcome, reason: FinishReason, tokens: Int32Array, message: str = "") -> None:
    request.finished = True
    outcome.finished.append(finished_message(request, reason, tokens, message))
