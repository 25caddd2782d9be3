"""Steps arrive on the other hosts as they left."""

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocol.codec import encode
from protocol.errors import ProtocolError
from protocol.host_messages import FROM_LEADER, PlayForward
from protocol.params import EngineParams, Grammar
from tpu_worker.device import Admission, Extension, PooledRow, ScoredRow, StepPlan
from tpu_worker.hosts.plans import pack_plan, unpack_plan

_INT32 = st.integers(-(2**31), 2**31 - 1)


def ints(size: int | st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return arrays(np.int32, size, elements=_INT32)


_SIZES = st.integers(0, 5)
_PARAMS = st.builds(
    EngineParams,
    st.integers(1, 100),
    temperature=st.floats(0.0, 2.0),
    seed=st.integers(0, 2**63 - 1),
    structured=st.none() | st.just(Grammar("json_object")),
)
_ADMISSIONS = st.builds(
    Admission,
    slot=_INT32,
    token_ids=ints(_SIZES),
    block_tables=st.lists(ints(_SIZES), min_size=1, max_size=3).map(tuple),
    num_prompt_tokens=_INT32,
    params=_PARAMS,
)


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    blocks, rows = draw(_SIZES), draw(_SIZES)
    return StepPlan(
        draw(st.integers(0, 2**40)),
        tuple(draw(st.lists(_ADMISSIONS, max_size=3))),
        draw(ints(blocks)),
        draw(ints(blocks)),
        draw(ints(blocks)),
        draw(ints(rows)),
        draw(ints(rows)),
        draw(ints(rows)),
        draw(arrays(bool, rows)),
        draw(st.integers(0, rows)),
        draw(_INT32),
        draw(st.none() | ints(_SIZES)),
        draw(st.none() | ints(_SIZES)),
        draw(_INT32),
        tuple(draw(st.lists(st.builds(Extension, _INT32, _INT32, ints(_SIZES)), max_size=3))),
        tuple(draw(st.lists(st.builds(ScoredRow, _INT32, _INT32, _INT32, _INT32), max_size=3))),
        tuple(draw(st.lists(st.builds(PooledRow, _INT32, st.sampled_from(("last", "mean"))), max_size=3))),
        draw(st.none() | ints(blocks)),
    )


def comparable(value: Any) -> Any:
    """The same for equal values, types of arrays included."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.tolist()
    if isinstance(value, tuple):
        return tuple(map(comparable, value))
    if is_dataclass(value):
        return {field.name: comparable(getattr(value, field.name)) for field in fields(value)}
    return value


@given(plans(), st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_a_plan_arrives_as_it_left(plan: StepPlan, epoch: int, call: int) -> None:
    message = FROM_LEADER.decode(encode(pack_plan(epoch, call, plan)))
    assert isinstance(message, PlayForward)
    assert (message.epoch, message.call) == (epoch, call)
    assert comparable(unpack_plan(message)) == comparable(plan)


def test_rows_of_several_widths_are_refused() -> None:
    with pytest.raises(ProtocolError, match="5 packed integers are no 4 rows"):
        unpack_plan(PlayForward(0, 0, 0, b"", None, b"0" * 20, 0))
