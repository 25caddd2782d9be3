"""The mirror spells standing orders out, and refuses to guess."""

import pytest

from protocol.codec import pack_int32
from protocol.errors import ProtocolError
from protocol.messages import NewRequest, SchedulerOutput
from protocol.params import EngineParams
from tpu_worker.batch import Batch


def new(slot: int, known: int, computed: int = 0) -> NewRequest:
    blocks = pack_int32(range(-(-known // 4)))
    return NewRequest(slot, pack_int32(range(known)), known, computed, blocks, EngineParams(max_tokens=9))


def test_prefill_in_chunks_then_decode() -> None:
    batch = Batch(8)
    step = SchedulerOutput(0, 0, new=(new(5, 6),), prefill_slots_i32=pack_int32([5]), prefill_counts_i32=pack_int32([4]))
    plan = batch.apply(step)
    assert (plan.slots.tolist(), plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist()) == ([5], [0], [4], [False])
    assert plan.admissions[0].token_ids.tolist() == list(range(6)) and plan.admissions[0].block_ids.tolist() == [0, 1]
    plan = batch.apply(SchedulerOutput(0, 1, prefill_slots_i32=pack_int32([5]), prefill_counts_i32=pack_int32([2])))
    assert (plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist()) == ([4], [2], [True])
    plan = batch.apply(SchedulerOutput(0, 2, joins_i32=pack_int32([5]), num_decodes=1))
    assert (plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist(), plan.num_decodes) == ([6], [1], [True], 1)
    plan = batch.apply(SchedulerOutput(0, 3, block_slots_i32=pack_int32([5]), block_ids_i32=pack_int32([77]), num_decodes=1))
    assert plan.starts.tolist() == [7]
    assert (plan.block_slots.tolist(), plan.block_indices.tolist(), plan.block_ids.tolist()) == ([5], [2], [77])


def test_cached_tokens_are_not_computed_again() -> None:
    plan = Batch(2).apply(
        SchedulerOutput(0, 0, new=(new(1, 6, computed=4),), prefill_slots_i32=pack_int32([1]), prefill_counts_i32=pack_int32([2]))
    )
    assert (plan.starts.tolist(), plan.samples.tolist()) == ([4], [True])


def test_rows_keep_the_order_of_the_decode_set() -> None:
    batch = Batch(8)
    slots = [6, 1, 3]
    batch.apply(
        SchedulerOutput(
            0, 0, new=tuple(new(s, 2) for s in slots), prefill_slots_i32=pack_int32(slots), prefill_counts_i32=pack_int32([2, 2, 2])
        )
    )
    assert batch.apply(SchedulerOutput(0, 1, joins_i32=pack_int32(slots), num_decodes=3)).slots.tolist() == slots
    plan = batch.apply(
        SchedulerOutput(
            0, 2, released_i32=pack_int32([1]), new=(new(1, 3),), leaves_i32=pack_int32([6]), num_decodes=1,
            prefill_slots_i32=pack_int32([1]), prefill_counts_i32=pack_int32([3]),
        )
    )  # fmt: skip
    assert plan.slots.tolist() == [3, 1] and plan.samples.tolist() == [True, True] and plan.num_decodes == 1
    assert batch.apply(SchedulerOutput(0, 3, joins_i32=pack_int32([1]), num_decodes=2)).slots.tolist() == [3, 1]


def test_disagreement_about_the_batch_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="decodes 2 slots, but 0 are here"):
        Batch(4).apply(SchedulerOutput(0, 0, num_decodes=2))
