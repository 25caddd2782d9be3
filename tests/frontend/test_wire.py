"""Framing survives any cut of the byte stream and any garbage in it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.wire import (
    CLIENT_MESSAGES,
    MAX_FRAME,
    SERVER_MESSAGES,
    Cancel,
    Conversation,
    Delta,
    FrameReader,
    Hello,
    Submit,
    TextPrompt,
    TokenPrompt,
    frames,
)
from protocol.codec import encode, pack_int32
from protocol.errors import ProtocolError
from protocol.params import SamplingParams

prompts = st.one_of(
    st.builds(TextPrompt, st.text(max_size=20)),
    st.lists(st.integers(0, 2**31 - 1), max_size=5).map(lambda ids: TokenPrompt(pack_int32(ids))),
    st.builds(Conversation, st.just([])),
)
messages = st.lists(
    st.one_of(
        st.builds(Hello, st.integers(0, 100)),
        st.builds(Cancel, st.integers(0, 2**60)),
        st.builds(Submit, st.integers(0, 2**60), prompts, st.builds(SamplingParams, max_tokens=st.integers(1, 9))),
    ),
    max_size=8,
)


@given(batches=st.lists(messages, max_size=4), cuts=st.lists(st.integers(0, 2000), max_size=10))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(batches: list[list[object]], cuts: list[int]) -> None:
    stream = b"".join(frames(map(encode, batch)) for batch in batches)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader = FrameReader()
    received: list[object] = []
    for start, stop in itertools.pairwise(edges):
        for frame in reader.feed(stream[start:stop]):
            received += CLIENT_MESSAGES.decode(frame)
    assert received == [message for batch in batches for message in batch]


def test_long_batches_travel_in_several_frames_in_order() -> None:
    deltas = [Delta(1, index, "x" * 1000, [index]) for index in range(5000)]
    stream = frames(map(encode, deltas))
    received = FrameReader().feed(stream)
    assert len(received) == 5
    assert [delta for frame in received for delta in SERVER_MESSAGES.decode(frame)] == deltas


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    try:
        decoded = CLIENT_MESSAGES.decode(data)
    except ProtocolError:
        return
    assert isinstance(decoded, list)


@pytest.mark.parametrize(
    "data", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\x91\x92\xa5hello\xc0", b"\x92\x92\xa5hello\x01", b"", b"\xc1"]
)
def test_hostile_frames(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        CLIENT_MESSAGES.decode(data)


def test_a_length_beyond_the_bound_ends_the_stream_before_anything_is_buffered() -> None:
    reader = FrameReader()
    assert reader.feed(MAX_FRAME.to_bytes(4, "little")) == []
    with pytest.raises(ProtocolError, match=str(MAX_FRAME + 1)):
        FrameReader().feed((MAX_FRAME + 1).to_bytes(4, "little"))
