"""The mirror spells standing orders out, and refuses to guess."""

import pytest
from msgspec.structs import replace

from protocol.codec import pack_int32
from protocol.errors import ProtocolError
from protocol.messages import NewRequest, SchedulerOutput
from protocol.params import EngineParams
from tpu_worker.needs import DRAWS, EDITS, LOGPROBS
from tpu_worker.slots import Slots


def new(slot: int, known: int, computed: int = 0) -> NewRequest:
    blocks = pack_int32(range(-(-known // 4)))
    return NewRequest(slot, pack_int32(range(known)), known, computed, blocks, EngineParams(max_tokens=9))


def test_prefill_in_chunks_then_decode() -> None:
    mirror = Slots(8)
    step = SchedulerOutput(0, 0, new=(new(5, 6),), prefill_slots_i32=pack_int32([5]), prefill_counts_i32=pack_int32([4]))
    plan = mirror.apply(step)
    assert (plan.slots.tolist(), plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist()) == ([5], [0], [4], [False])
    assert plan.admissions[0].token_ids.tolist() == list(range(6)) and [
        table.tolist() for table in plan.admissions[0].block_tables
    ] == [[0, 1]]
    plan = mirror.apply(SchedulerOutput(0, 1, prefill_slots_i32=pack_int32([5]), prefill_counts_i32=pack_int32([2])))
    assert (plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist()) == ([4], [2], [True])
    plan = mirror.apply(SchedulerOutput(0, 2, joins_i32=pack_int32([5]), num_decodes=1))
    assert (plan.starts.tolist(), plan.counts.tolist(), plan.samples.tolist(), plan.num_decodes) == ([6], [1], [True], 1)
    plan = mirror.apply(SchedulerOutput(0, 3, block_slots_i32=pack_int32([5]), block_ids_i32=pack_int32([77]), num_decodes=1))
    assert plan.starts.tolist() == [7]
    assert (plan.block_slots.tolist(), plan.block_indices.tolist(), plan.block_ids.tolist()) == ([5], [2], [77])


def test_cached_tokens_are_not_computed_again() -> None:
    plan = Slots(2).apply(
        SchedulerOutput(0, 0, new=(new(1, 6, computed=4),), prefill_slots_i32=pack_int32([1]), prefill_counts_i32=pack_int32([2]))
    )
    assert (plan.starts.tolist(), plan.samples.tolist()) == ([4], [True])


def test_rows_keep_the_order_of_the_decode_set() -> None:
    mirror = Slots(8)
    slots = [6, 1, 3]
    mirror.apply(
        SchedulerOutput(
            0, 0, new=tuple(new(s, 2) for s in slots), prefill_slots_i32=pack_int32(slots), prefill_counts_i32=pack_int32([2, 2, 2])
        )
    )
    assert mirror.apply(SchedulerOutput(0, 1, joins_i32=pack_int32(slots), num_decodes=3)).slots.tolist() == slots
    plan = mirror.apply(
        SchedulerOutput(
            0, 2, released_i32=pack_int32([1]), new=(new(1, 3),), leaves_i32=pack_int32([6]), num_decodes=1,
            prefill_slots_i32=pack_int32([1]), prefill_counts_i32=pack_int32([3]),
        )
    )  # fmt: skip
    assert plan.slots.tolist() == [3, 1] and plan.samples.tolist() == [True, True] and plan.num_decodes == 1
    assert mirror.apply(SchedulerOutput(0, 3, joins_i32=pack_int32([1]), num_decodes=2)).slots.tolist() == [3, 1]


def test_disagreement_about_the_batch_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="decodes 2 slots, but 0 are here"):
        Slots(4).apply(SchedulerOutput(0, 0, num_decodes=2))


def test_what_rows_need_is_known_of_those_that_sample() -> None:
    mirror = Slots(8)
    drawing = NewRequest(2, pack_int32(range(5)), 5, 0, pack_int32([0, 1]), EngineParams(9, temperature=1.0, frequency_penalty=1.0))
    asking = NewRequest(3, pack_int32(range(3)), 3, 0, pack_int32([2]), EngineParams(9, logprobs=4))
    chunks = {"prefill_slots_i32": pack_int32([2, 1]), "prefill_counts_i32": pack_int32([4, 2])}
    plan = mirror.apply(replace(SchedulerOutput(0, 0, new=(drawing, asking, new(1, 2))), **chunks))
    assert (plan.needs, plan.num_logprobs) == (0, None)  # slot 2 has one token of its prompt to go, slot 3 does not run yet
    chunks = {"prefill_slots_i32": pack_int32([2, 3]), "prefill_counts_i32": pack_int32([1, 3])}
    plan = mirror.apply(replace(SchedulerOutput(0, 1, joins_i32=pack_int32([1]), num_decodes=1), **chunks))
    assert plan.needs == DRAWS | EDITS | LOGPROBS
    assert plan.num_logprobs is not None and plan.num_logprobs.tolist() == [-1, -1, 4]
    plan = mirror.apply(SchedulerOutput(0, 2, released_i32=pack_int32([3]), joins_i32=pack_int32([2]), num_decodes=2))
    assert (plan.needs, plan.num_logprobs) == (DRAWS | EDITS, None)
    plan = mirror.apply(SchedulerOutput(0, 3, released_i32=pack_int32([2]), num_decodes=1))
    assert (plan.needs, plan.num_logprobs) == (0, None)
