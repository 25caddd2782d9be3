"""Takes in the answer to one step: which values are believed, which requests end, what may be cached."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from protocol.codec import BoolArray, Int32Array, UInt64Array, unpack_int32
from protocol.errors import ProtocolError
from protocol.messages import Finished, FinishReason, ModelRunnerOutput, PromptScores, TopLogprobs
from scheduler_proc.cohort import Cohort
from scheduler_proc.forced import take_runs
from scheduler_proc.in_flight import InFlightStep
from scheduler_proc.lane import Lane
from scheduler_proc.request import Request, RequestState

_EMPTY = np.empty(0, np.int32)
_EMPTY_IDS = np.empty(0, np.uint64)
NOT_FINITE = "the model's output was not finite"
_NOT_ALLOWED = "no token was left that the grammar and the request's other parameters permit, or the model's output was not finite"
_NONE_LEFT = "no token was left that allowed_token_ids, bad_words and logit_bias permit, or the model's output was not finite"


@dataclass(slots=True)
class Outcome:
    """What one returned step brought. Token i belongs to request i."""

    request_ids: UInt64Array  # [streamed tokens]
    token_ids: Int32Array  # [streamed tokens]
    lengths: Int32Array  # [streamed tokens]: of their requests, with each
    finished: list[Finished] = field(default_factory=list)
    logprobs: dict[int, TopLogprobs] = field(default_factory=dict)
    prompt_scores: dict[int, PromptScores] = field(default_factory=dict)
    begun: list[Request] = field(default_factory=list)  # whose first token this is
    num_tokens: int = 0  # believed tokens, streamed or not
    num_forced: int = 0  # of these, tokens that a grammar forced and that were not sampled
    num_discarded: int = 0  # tokens of requests that had ended before that position


def nothing_yet() -> Outcome:
    """An outcome to add to."""
    return Outcome(_EMPTY_IDS, _EMPTY, _EMPTY)


def collect_step(lane: Lane, output: ModelRunnerOutput) -> tuple[InFlightStep, Outcome]:
    """Applies the answer to the lane's oldest step in flight, or to a part of it. The ledger must have judged it EXPECTED.

    Raises ProtocolError when the answer does not fit the step.
    """
    step, rest = lane.in_flight[0], None
    _check_part(step, output)
    scores = _take_scores(lane, step, output)
    if output.more:
        step, rest = step.split()
    token_ids, failed_rows = _unpack(lane, step, output)
    if rest is not None:
        lane.in_flight[0] = rest
    else:
        lane.in_flight.popleft()
        lane.ledger.answer()
    if failed_rows or step.releases != lane.releases:
        alive = lane.tenancy[step.slots] == step.tenancies
        if failed_rows or not alive.all():
            outcome = _collect_some(lane, step, output, alive, token_ids, failed_rows)
            outcome.prompt_scores = scores
            return step, outcome
    # Every decode row ends a position further than the step before, so it fills a block only when it ends on a boundary.
    if step.cohort is None or not (step.ends % lane.block_size).all():
        _commit(lane, step.slots, step.ends)
    cohort = lane.gather(step.sampled_slots) if step.cohort is None else step.cohort
    logprobs = {int(cohort.request_ids[entry.row]): entry.logprobs for entry in output.logprobs}
    outcome = Outcome(_EMPTY_IDS, _EMPTY, _EMPTY, logprobs=logprobs, prompt_scores=scores)
    if step.chunks:
        _begin(lane, (lane.requests[slot] for slot in step.sampled_slots[step.num_decodes :].tolist()), outcome)
    _believe(lane, cohort, token_ids, outcome)
    return step, outcome


def believe_forced(lane: Lane, slot: int, outcome: Outcome) -> None:
    """Takes in the forced tokens of this slot's request that are known, now that all before them are."""
    request = lane.requests[slot]
    assert request is not None
    length = int(lane.known[slot])
    token_ids = take_runs(request, length)
    if not len(token_ids):
        return
    if not request.runs:
        lane.expecting.discard(slot)
    lane.tokens[slot, length : length + len(token_ids)] = token_ids
    lane.known[slot] = length = length + len(token_ids)
    _note_tokens(lane, request, token_ids, length, outcome)
    outcome.num_forced += len(token_ids)
    last = int(token_ids[-1])
    if request.stops_at(last, length) or length >= request.target:
        _end(lane, request, outcome, "stop" if request.stops_at(last, length) else "length", lane.tokens[slot, :length])
        lane.release(slot)


def finished_message(request: Request, reason: FinishReason, tokens: Int32Array, message: str = "") -> Finished:
    """The end of a request whose tokens, prompt first, are `tokens`."""
    last, pooled = int(tokens[-1]), bool(request.params.pooling)
    return Finished(
        request_id=request.request_id,
        reason=reason,
        stop_token_id=last if reason == "stop" and not pooled else -1,
        token_ids_i32=b"" if request.stream or pooled else tokens[request.num_prompt_tokens :].astype("<i4").tobytes(),
        message=message,
        unsatisfiable=request.params.has_rules and message in (_NONE_LEFT, _NOT_ALLOWED),
        num_cached_tokens=request.num_cached_tokens,
        queue_ns=request.queue_ns,
        prefill_ns=request.prefill_ns,
    )


def _check_part(step: InFlightStep, output: ModelRunnerOutput) -> None:
    """Raises ProtocolError when an answer is of other rows than those that are due."""
    if step.masked is None:
        fits = not output.more and not output.rows_i32
    else:
        in_two = step.whole is None and step.num_tokens > len(step.masked)
        due = step.answered_first if in_two else step.masked
        fits = output.more == in_two and np.array_equal(unpack_int32(output.rows_i32), due)
    if not fits:
        raise ProtocolError(f"the answer to step {step.step_id} is of rows that are not due")


def _unpack(lane: Lane, step: InFlightStep, output: ModelRunnerOutput) -> tuple[Int32Array, list[int]]:
    """Token ids and failed rows of an answer. Raises ProtocolError when they do not fit the step."""
    token_ids = unpack_int32(output.token_ids_i32)
    failed_rows = unpack_int32(output.failed_rows_i32).tolist() if output.failed_rows_i32 else []
    if len(token_ids) != step.num_tokens:
        raise ProtocolError(f"step {step.step_id} samples {step.num_tokens} rows, its answer has {len(token_ids)} tokens")
    if any(not 0 <= row < len(token_ids) for row in failed_rows) or any(not 0 <= e.row < len(token_ids) for e in output.logprobs):
        raise ProtocolError(f"the answer to step {step.step_id} names rows that the step does not have")
    in_vocabulary = token_ids.view(np.uint32) < lane.vocab_size  # a negative id is a large one
    if not in_vocabulary.all() and not in_vocabulary[np.setdiff1d(np.arange(len(token_ids)), failed_rows)].all():
        raise ProtocolError(f"the answer to step {step.step_id} has token ids outside the vocabulary of {lane.vocab_size}")
    return token_ids, failed_rows


def _take_scores(lane: Lane, step: InFlightStep, output: ModelRunnerOutput) -> dict[int, PromptScores]:
    """By request, the scores of prompts whose requests want them still; of one that gave way they are computed again."""
    if not output.prompt_scores:
        return {}
    if not all(0 <= row < len((step.whole or step).slots) for row in output.prompt_scores):
        raise ProtocolError(f"the answer to step {step.step_id} scores rows that the step does not have")
    taken, whole = {}, step.whole or step
    for row, scores in output.prompt_scores.items():
        request = lane.holder(int(whole.slots[row]), int(whole.tenancies[row]))
        if request is not None and not request.finished:
            taken[request.request_id] = scores
            if request.params.pooling:
                continue
            count = len(scores.ranks_i32) // (4 * (1 + request.params.prompt_logprobs))
            request.num_scored = max(request.num_scored, scores.start + count)
    return taken


def _commit(lane: Lane, slots: Int32Array, ends: Int32Array) -> None:
    """The keys and values below `ends` are computed: names the blocks that are full of them."""
    if lane.prefix_caching:
        full = ends // lane.block_size
        for row in np.flatnonzero(full > lane.committed_blocks[slots]).tolist():
            lane.commit_blocks(int(slots[row]), int(full[row]))


def _begin(lane: Lane, requests: Iterable[Request | None], outcome: Outcome) -> None:
    """Notes who gets its first token."""
    for request in requests:
        if request is not None and not request.begun:
            request.begun, request.begun_ns = True, lane.story.now_ns
            outcome.begun.append(request)


def _believe(lane: Lane, cohort: Cohort, token_ids: Int32Array, outcome: Outcome) -> None:
    """Appends the values of rows whose request still holds its slot, and ends the requests whose last token they bring."""
    slots = cohort.slots
    lengths = lane.known[slots]
    lane.tokens[slots, lengths] = token_ids
    lengths += 1
    lane.known[slots] = lengths
    outcome.num_tokens += len(slots)
    if cohort.streamed is None:
        outcome.request_ids, outcome.token_ids, outcome.lengths = cohort.request_ids, token_ids, lengths
    elif cohort.streamed.any():
        rows = cohort.streamed
        outcome.request_ids, outcome.token_ids, outcome.lengths = cohort.request_ids[rows], token_ids[rows], lengths[rows]
    if cohort.constrained is not None:
        masked = cohort.constrained
        positions = lengths[masked] - 1 - lane.num_prompt[slots[masked]]
        lane.constraints.advance(cohort.request_ids[masked], positions, token_ids[masked])
    candidates = (token_ids == cohort.first_stop) | (lengths >= cohort.target)
    if cohort.more_stops is not None:
        candidates |= cohort.more_stops
    if candidates.any():
        _end_candidates(lane, slots, lengths, token_ids, candidates, outcome)
    if lane.expecting:
        for slot in lane.expecting.intersection(slots.tolist()):
            believe_forced(lane, slot, outcome)


def _end_candidates(
    lane: Lane, slots: Int32Array, lengths: Int32Array, token_ids: Int32Array, candidates: BoolArray, outcome: Outcome
) -> None:
    """Ends the requests whose last token came, which are some of the candidates."""
    for row in np.flatnonzero(candidates).tolist():
        slot, length = int(slots[row]), int(lengths[row])
        request = lane.requests[slot]
        assert request is not None
        stops = request.stops_at(int(token_ids[row]), length)
        if stops or length >= request.target:
            _end(lane, request, outcome, "stop" if stops else "length", lane.tokens[slot, :length])
            lane.release(slot)


def _collect_some(
    lane: Lane, step: InFlightStep, output: ModelRunnerOutput, alive: BoolArray, token_ids: Int32Array, failed_rows: list[int]
) -> Outcome:
    """The same where some rows failed, or belong to requests that have ended or were preempted since."""
    sampled = np.flatnonzero(step.samples)
    failed = np.zeros(len(step.slots), bool)
    failed[sampled[failed_rows]] = True
    good = alive & ~failed
    _commit(lane, step.slots[good], step.ends[good])
    outcome = nothing_yet()
    holders = [lane.holder(int(step.slots[row]), int(step.tenancies[row])) for row in sampled.tolist()]
    for entry in output.logprobs:
        holder = holders[entry.row]
        if holder is not None and not holder.finished:
            outcome.logprobs[holder.request_id] = entry.logprobs
    believed = good[sampled]
    _begin(lane, (holders[index] for index in np.flatnonzero(believed & (sampled >= step.num_decodes)).tolist()), outcome)
    _believe(lane, lane.gather(step.slots[sampled[believed]]), token_ids[believed], outcome)
    for index in np.flatnonzero(~believed).tolist():
        row = sampled[index]
        if alive[row]:
            _fail(lane, int(step.slots[row]), outcome)
        else:
            _settle(lane, holders[index], int(token_ids[index]), bool(failed[row]), outcome)
    lane.detached = {key: request for key, request in lane.detached.items() if request.in_flight}
    return outcome


def _fail(lane: Lane, slot: int, outcome: Outcome) -> None:
    """Ends a running request whose logits were not finite; its blocks may hold what is not finite either."""
    request = lane.requests[slot]
    assert request is not None
    lane.distrust(request)
    _end(lane, request, outcome, "error", lane.tokens[slot, : lane.known[slot]], _why_failed(request))
    lane.release(slot)


def _settle(lane: Lane, request: Request | None, token_id: int, failed: bool, outcome: Outcome) -> None:
    """One row of a request that no longer holds its slot: a preempted one keeps the token, one that has ended does not."""
    if request is not None:
        request.in_flight -= 1
    if request is None or request.finished:
        outcome.num_discarded += 1
        return
    if failed:
        lane.distrust(request)
        _end(lane, request, outcome, "error", request.tokens, _why_failed(request))
        return
    _begin(lane, (request,), outcome)
    token_ids = np.array([token_id], np.int32)
    if request.runs and not request.stops_at(token_id, len(request.tokens) + 1):
        token_ids = np.concatenate([token_ids, take_runs(request, len(request.tokens) + 1)])
    request.append(token_ids)
    _note_tokens(lane, request, token_ids, len(request.tokens), outcome)
    outcome.num_forced += len(token_ids) - 1
    if request.stops_at(int(token_ids[-1]), len(request.tokens)):
        _end(lane, request, outcome, "stop", request.tokens)
    elif len(request.tokens) >= request.target:
        _end(lane, request, outcome, "length", request.tokens)
    elif not request.in_flight:
        lane.story.move(request, RequestState.WAITING, "its tokens in flight are here")


def _note_tokens(lane: Lane, request: Request, token_ids: Int32Array, length: int, outcome: Outcome) -> None:
    """Notes new tokens of one request, with which it is `length` tokens long."""
    request_ids = np.full(len(token_ids), request.request_id, np.uint64)
    lengths = np.arange(length - len(token_ids) + 1, length + 1, dtype=np.int32)
    outcome.num_tokens += len(token_ids)
    if request.stream:
        outcome.request_ids = np.concatenate([outcome.request_ids, request_ids])
        outcome.token_ids = np.concatenate([outcome.token_ids, token_ids])
        outcome.lengths = np.concatenate([outcome.lengths, lengths])
    if request.params.structured is not None:
        lane.constraints.advance(request_ids, lengths - 1 - request.num_prompt_tokens, token_ids)


def _why_failed(request: Request) -> str:
    if request.params.structured is not None:
        return _NOT_ALLOWED
    return _NONE_LEFT if request.params.has_rules else NOT_FINITE


def _end(lane: Lane, request: Request, outcome: Outcome, reason: FinishReason, tokens: Int32Array, message: str = "") -> None:
    if request.params.pooling and reason == "length":  # it has what it wanted, and its token is none of its answer
        reason = "stop"
        outcome.num_tokens -= 1
    lane.story.move(request, RequestState.FINISHED, message or reason)
    outcome.finished.append(finished_message(request, reason, tokens, message))
