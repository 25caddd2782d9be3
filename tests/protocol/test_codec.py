"""Frames: what was sent arrives, anything else is refused with a typed error."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import Decoder, encode, pack_float32, pack_int32, pack_uint64, unpack_float32, unpack_int32, unpack_uint64
from protocol.errors import ProtocolError
from protocol.messages import (
    FRONTEND_TO_SCHEDULER,
    SCHEDULER_TO_FRONTEND,
    SCHEDULER_TO_WORKER,
    WORKER_TO_SCHEDULER,
    AddRequest,
    Finished,
    ModelRunnerOutput,
    NewRequest,
    SchedulerOutput,
    TokenBatch,
)
from protocol.params import EngineParams

LINKS = [FRONTEND_TO_SCHEDULER, SCHEDULER_TO_FRONTEND, SCHEDULER_TO_WORKER, WORKER_TO_SCHEDULER]


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_int32_round_trip(values: list[int]) -> None:
    assert unpack_int32(pack_int32(values)).tolist() == values


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_uint64_round_trip(values: list[int]) -> None:
    assert unpack_uint64(pack_uint64(np.array(values, np.uint64))).tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_float32_round_trip(values: list[float]) -> None:
    assert unpack_float32(pack_float32(values)).tolist() == values


@pytest.mark.parametrize("unpack", [unpack_int32, unpack_uint64, unpack_float32])
def test_a_packed_length_that_does_not_divide_is_refused(unpack: object) -> None:
    with pytest.raises(ProtocolError, match="3 packed bytes"):
        unpack(b"abc")  # type: ignore[operator]


def test_messages_round_trip() -> None:
    params = EngineParams(max_tokens=5, seed=2**63 - 1, stop_token_ids=(1, 2))
    new = NewRequest(3, pack_int32([1, 2]), 2, 0, pack_int32([7]), params)
    step = SchedulerOutput(1, 9, new=(new,), joins_i32=pack_int32([3]), num_decodes=4)
    assert SCHEDULER_TO_WORKER.decode(encode(step)) == step
    add = AddRequest(2**63, pack_int32([5]), 1, params, priority=-3, cache_salt="s")
    assert FRONTEND_TO_SCHEDULER.decode(encode(add)) == add
    batch = TokenBatch(0, 4, b"", b"", finished=(Finished(1, "stop", 2),))
    assert SCHEDULER_TO_FRONTEND.decode(encode(batch)) == batch


@pytest.mark.parametrize("decoder", LINKS)
@given(frame=st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_protocol_errors(decoder: Decoder[object], frame: bytes) -> None:
    try:
        decoder.decode(frame)
    except ProtocolError:
        pass


@pytest.mark.parametrize("decoder", LINKS)
@given(data=st.recursive(st.none() | st.integers(-9, 9) | st.text(max_size=5) | st.binary(max_size=9), st.lists, max_leaves=20))
def test_arbitrary_structures_raise_only_protocol_errors(decoder: Decoder[object], data: object) -> None:
    try:
        decoder.decode(msgspec.msgpack.encode(data))
    except ProtocolError:
        pass


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        WORKER_TO_SCHEDULER.decode(b"\x91" * 100_000)


def test_a_message_of_another_link_is_refused() -> None:
    with pytest.raises(ProtocolError, match="malformed frame"):
        SCHEDULER_TO_WORKER.decode(encode(ModelRunnerOutput(0, 0, b"")))


def test_a_steady_step_is_small() -> None:
    assert len(encode(SchedulerOutput(3, 1_000_000, num_decodes=256, scheduled_ns=2**62))) < 48
