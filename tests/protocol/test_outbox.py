"""What waits behind a peer that does not read: nothing that matters is lost, repeated or overtaken."""

from collections import deque

import hypothesis.strategies as st
from hypothesis import given

from protocol.outbox import Outbox


class Peer:
    """A socket with room for a few packets, which its reader takes when the test says so."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.held: deque[bytes] = deque()
        self.read: list[bytes] = []

    def write(self, packet: bytes) -> bool:
        if len(self.held) == self.room:
            return False
        self.held.append(packet)
        return True

    def take(self) -> None:
        if self.held:
            self.read.append(self.held.popleft())


@given(room=st.integers(0, 3), moves=st.lists(st.sampled_from(["must", "may", "take", "flush"]), max_size=60))
def test_what_must_be_said_arrives_once_and_in_order(room: int, moves: list[str]) -> None:
    peer = Peer(room)
    outbox = Outbox(peer.write, capacity=100)
    said = list[bytes]()
    for number, move in enumerate(moves):
        if move in ("must", "may"):
            said.append(f"{move} {number}".encode())
            assert outbox.push(said[-1], may_drop=move == "may")
        elif move == "take":
            peer.take()
        else:
            outbox.flush()
    peer.room = 1000
    outbox.flush()
    while peer.held:
        peer.take()
    assert len(outbox) == 0
    assert peer.read == [packet for packet in said if packet in peer.read]
    assert [packet for packet in said if packet.startswith(b"must")] == [p for p in peer.read if p.startswith(b"must")]


def test_what_may_be_dropped_does_not_pile_up_and_what_may_not_has_a_bound() -> None:
    outbox = Outbox(Peer(room=0).write, capacity=2)
    assert outbox.push(b"1", may_drop=False)
    for _ in range(10):
        assert outbox.push(b"progress", may_drop=True)
    assert outbox.push(b"2", may_drop=False)
    assert not outbox.push(b"3", may_drop=False)
    outbox.clear()
    assert len(outbox) == 0
