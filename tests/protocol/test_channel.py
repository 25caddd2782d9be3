"""Pipes over real sockets."""

import asyncio
import tempfile
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import channel
from protocol.channel import Poller, Receiver, Sender
from protocol.codec import pack_int32
from protocol.errors import AddressError
from protocol.messages import FRONTEND_TO_SCHEDULER, AbortRequest, AddRequest, FrontendToScheduler
from protocol.params import EngineParams


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


def test_a_flood_is_taken_in_a_little_at_a_turn(tmp_path: Path) -> None:
    address, most = f"ipc://{tmp_path}/a.sock", channel._MOST_PER_TURN
    receiver, sender, poller = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True), Sender(address, bind=False), Poller()
    poller.watch(receiver)
    for i in range(10 * most):
        sender.send(AbortRequest(i))
    got: list[FrontendToScheduler] = []
    while len(got) < 10 * most:
        assert poller.wait(10.0) == [receiver], "what is left makes it ready again"
        some = receiver.receive_some()
        assert len(some) <= most
        got += some
    assert got == [AbortRequest(i) for i in range(10 * most)]
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


@settings(max_examples=40)
@given(bursts=st.lists(st.tuples(st.integers(0, 200), st.booleans()), min_size=1, max_size=6), faulty=st.sets(st.integers(0, 400)))
def test_whatever_calls_raise_each_message_is_delivered_once_and_in_order(bursts: list[tuple[int, bool]], faulty: set[int]) -> None:
    """Each burst: so many messages, and whether the loop gets a turn before the next burst."""

    async def scenario(directory: str) -> None:
        address, got, reported = f"ipc://{directory}/a.sock", list[int](), list[BaseException]()
        total = sum(count for count, _ in bursts)
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        receiver: Receiver[FrontendToScheduler] = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True)
        sender = Sender(address, bind=False)

        def on_message(message: FrontendToScheduler) -> None:
            assert isinstance(message, AbortRequest)
            if message.request_id == total:
                done.set()
                return
            got.append(message.request_id)
            if message.request_id in faulty:
                raise LookupError(message.request_id)

        receiver.watch(loop, on_message)
        ids = iter(range(total))
        for count, turn in bursts:
            for _ in range(count):
                sender.send(AbortRequest(next(ids)))
            if turn:
                await asyncio.sleep(0)
        sender.send(AbortRequest(total))
        await asyncio.wait_for(done.wait(), 30)
        receiver.unwatch(loop)
        sender.close()
        receiver.close()
        assert got == list(range(total))
        assert [error.args for error in reported] == [(i,) for i in got if i in faulty]

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


def test_a_flood_leaves_other_work_its_turn(tmp_path: Path) -> None:
    async def scenario() -> int:
        address, most = f"ipc://{tmp_path}/a.sock", 0
        since, left = 0, 2000
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        receiver: Receiver[FrontendToScheduler] = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True)
        sender = Sender(address, bind=False)
        for i in range(left):
            sender.send(AbortRequest(i))
        poller = Poller()
        poller.watch(receiver)
        poller.wait(10)

        def on_message(_: FrontendToScheduler) -> None:
            nonlocal since, most, left
            since, left = since + 1, left - 1
            most = max(most, since)
            if not left:
                done.set()

        def other_work() -> None:
            nonlocal since
            since = 0
            if left:
                loop.call_soon(other_work)

        loop.call_soon(other_work)
        receiver.watch(loop, on_message)
        await asyncio.wait_for(done.wait(), 30)
        receiver.unwatch(loop)
        sender.close()
        receiver.close()
        return most

    assert asyncio.run(scenario()) <= 2 * channel._MOST_PER_TURN  # a signal may come beside a turn that is due


def test_large_messages_are_fewer_at_a_turn(tmp_path: Path) -> None:
    address, size = f"ipc://{tmp_path}/a.sock", channel._MOST_PER_TURN * channel._BYTES_PER_WORK // 4

    async def scenario() -> None:
        receiver, sender = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True), Sender(address, bind=False)
        for i in range(40):
            sender.send(AddRequest(i, bytes(size), size // 4, EngineParams(1)))
        turn, got = 0, list[int]()
        receiver.watch(asyncio.get_running_loop(), lambda _: got.append(turn))
        while len(got) < 40:
            await asyncio.sleep(0)
            turn += 1
        assert max(got.count(one) for one in got) <= 4
        receiver.unwatch(asyncio.get_running_loop())
        receiver.close()
        sender.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_nothing_is_delivered_after_unwatch(tmp_path: Path) -> None:
    async def scenario() -> None:
        address, got, loop = f"ipc://{tmp_path}/a.sock", list[FrontendToScheduler](), asyncio.get_running_loop()
        receiver: Receiver[FrontendToScheduler] = Receiver(address, FRONTEND_TO_SCHEDULER, bind=True)
        sender = Sender(address, bind=False)
        for i in range(200):
            sender.send(AbortRequest(i))
        stopped = asyncio.Event()

        def on_message(message: FrontendToScheduler) -> None:
            got.append(message)
            receiver.unwatch(loop)
            receiver.close()
            stopped.set()

        receiver.watch(loop, on_message)
        await asyncio.wait_for(stopped.wait(), 30)
        await asyncio.sleep(0)
        sender.close()
        assert got == [AbortRequest(0)]

    asyncio.run(scenario())


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="nowhere"):
        Receiver(f"ipc://{tmp_path}/nowhere/a.sock", FRONTEND_TO_SCHEDULER, bind=True)
