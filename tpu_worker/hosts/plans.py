"""Steps as they travel to the other hosts, and back to what a device takes."""

import numpy as np

from protocol.codec import Int32Array, pack_int32, unpack_int32
from protocol.errors import ProtocolError
from protocol.host_messages import PlannedAdmission, PlayForward
from tpu_worker.device import Admission, Extension, PooledRow, ScoredRow, StepPlan


def pack_plan(epoch: int, call: int, plan: StepPlan) -> PlayForward:
    """The plan as a message: call number `call` of `epoch`."""
    return PlayForward(
        epoch,
        call,
        plan.step_id,
        pack_int32(np.stack([plan.block_slots, plan.block_indices, plan.block_ids])),
        _pack(plan.block_groups),
        pack_int32(np.stack([plan.slots, plan.starts, plan.counts, plan.samples])),
        plan.num_decodes,
        tuple(
            PlannedAdmission(
                one.slot, pack_int32(one.token_ids), tuple(map(pack_int32, one.block_tables)), one.num_prompt_tokens, one.params
            )
            for one in plan.admissions
        ),
        plan.needs,
        _pack(plan.num_logprobs),
        _pack(plan.masked_rows),
        plan.masked_needs,
        tuple((one.slot, one.position, pack_int32(one.token_ids)) for one in plan.extensions),
        tuple((one.row, one.start, one.count, one.candidates) for one in plan.scored),
        tuple((one.row, one.pooling) for one in plan.pooled),
    )


def unpack_plan(message: PlayForward) -> StepPlan:
    """What `pack_plan` packed. Raises ProtocolError when it cannot have packed this."""
    block_slots, block_indices, block_ids = _unpack_rows(message.blocks_i32, 3)
    slots, starts, counts, samples = _unpack_rows(message.rows_i32, 4)
    return StepPlan(
        message.step_id,
        tuple(
            Admission(
                one.slot,
                unpack_int32(one.token_ids_i32),
                tuple(map(unpack_int32, one.tables_i32)),
                one.num_prompt_tokens,
                one.params,
            )
            for one in message.admissions
        ),
        block_slots,
        block_indices,
        block_ids,
        slots,
        starts,
        counts,
        samples.astype(bool),
        message.num_decodes,
        message.needs,
        _unpack(message.num_logprobs_i32),
        _unpack(message.masked_i32),
        message.masked_needs,
        tuple(Extension(slot, position, unpack_int32(token_ids)) for slot, position, token_ids in message.extensions),
        tuple(ScoredRow(*scored) for scored in message.scored),
        tuple(PooledRow(*pooled) for pooled in message.pooled),
        _unpack(message.groups_i32),
    )


def _unpack_rows(data: bytes, count: int) -> Int32Array:
    """[count, width]."""
    values = unpack_int32(data)
    if len(values) % count:
        raise ProtocolError(f"{len(values)} packed integers are no {count} rows of one width")
    rows: Int32Array = values.reshape(count, -1)
    return rows


def _pack(values: Int32Array | None) -> bytes | None:
    return None if values is None else pack_int32(values)


def _unpack(data: bytes | None) -> Int32Array | None:
    return None if data is None else unpack_int32(data)
