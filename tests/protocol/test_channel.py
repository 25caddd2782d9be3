"""Pipes over real sockets."""

import asyncio
from pathlib import Path

import pytest
import zmq

from protocol.channel import Poller, Receiver, Sender
from protocol.codec import pack_int32
from protocol.errors import AddressError
from protocol.messages import FRONTEND_TO_SCHEDULER, AbortRequest, FrontendToScheduler


def receive_one(receiver: Receiver[FrontendToScheduler]) -> FrontendToScheduler:
    poller = Poller()
    poller.watch(receiver)
    while (message := receiver.receive()) is None:
        poller.wait(10)
    return message


def test_messages_arrive_in_order_whoever_starts_first(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/a.sock"
    sender = Sender(address, bind=False)
    for i in range(100):
        sender.send(AbortRequest(i))
    receiver = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True)
    assert [receive_one(receiver) for _ in range(100)] == [AbortRequest(i) for i in range(100)]
    assert receiver.receive() is None
    sender.close()
    receiver.close()


def test_malformed_frames_are_dropped_and_counted(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/a.sock"
    receiver = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True)
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    stranger.connect(address)
    for frame in (b"", b"garbage", pack_int32([1, 2, 3]), b"\xc1", b"\x91" * 5000):
        stranger.send(frame)
    stranger.send_multipart([b"two", b"parts"])
    stranger.close()
    sender = Sender(address, bind=False)
    sender.send(AbortRequest(7))
    poller = Poller()
    poller.watch(receiver)
    seen = None
    while seen is None or receiver.malformed < 7:
        seen = receiver.receive() or seen
        poller.wait(0.05)
    assert seen == AbortRequest(7)
    assert receiver.malformed == 7
    sender.close()
    receiver.close()


def test_an_event_loop_is_called_for_each_message(tmp_path: Path) -> None:
    async def scenario() -> list[FrontendToScheduler]:
        address, got, done = f"ipc://{tmp_path}/a.sock", list[FrontendToScheduler](), asyncio.Event()
        receiver = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True)
        sender = Sender(address, bind=False)
        sender.send(AbortRequest(0))

        def on_message(message: FrontendToScheduler) -> None:
            got.append(message)
            if len(got) < 500:
                sender.send(AbortRequest(len(got)))
            else:
                done.set()

        receiver.watch(asyncio.get_running_loop(), on_message)
        await asyncio.wait_for(done.wait(), 30)
        receiver.unwatch(asyncio.get_running_loop())
        sender.close()
        receiver.close()
        return got

    assert asyncio.run(scenario()) == [AbortRequest(i) for i in range(500)]


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="nowhere"):
        Receiver(f"ipc://{tmp_path}/nowhere/a.sock", FRONTEND_TO_SCHEDULER, bind=True)
