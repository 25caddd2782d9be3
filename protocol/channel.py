"""One-way pipes between processes: ZeroMQ PUSH and PULL over Unix sockets, and between hosts over TCP.

Each direction is a socket of its own, so that one thread may send while another receives. A pipe never blocks its sender: what
may be in flight is bounded above it, by credits or by the number of requests.

The reading end binds and the writing end connects: a connecting socket queues for a peer that is not there yet, or not there again,
where a binding one refuses to send. Between hosts one of them binds all ends (`protocol.host_pipes`).
"""

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

import zmq

from protocol.codec import Decoder, encode
from protocol.errors import AddressError, ProtocolError

if TYPE_CHECKING:
    from protocol.host_pipes import Connections, Network

Message = TypeVar("Message")

_HIGH_WATER_MARK = 100_000  # messages; reached only when a peer is stuck, and then an error is right
_MAX_FRAME = 256 * 1024 * 1024  # bytes: above any batch of prompts, below what would exhaust memory
_RECONNECT_MS = 10  # children start in any order; the default of 100 ms would be felt at start
_LINGER_MS = 1000  # long enough to deliver a last word to a live peer, short enough for an exit
_MOST_PER_TURN = 64  # messages handled before the other work of a loop gets its turn: a few milliseconds at most
_BYTES_PER_WORK = 1024  # of a message that are as much work as one more: tokens with log-probabilities are large


class ChannelFullError(ProtocolError):
    """The peer has not read for so long that the pipe is full."""


class Sender:
    """The writing end. Not safe for use by two threads."""

    def __init__(
        self, address: str, *, bind: bool, own_context: bool = False, network: "Network | None" = None, to_all: bool = False
    ) -> None:
        """`own_context`: at the cost of two threads, `close` returns when everything is delivered, so that the process may end.
        `network`: over which the pipe leads. `to_all`: every reader that is connected gets every message, and no other does."""
        self._own = zmq.Context() if own_context else None
        try:
            self._socket = _open(zmq.PUB if to_all else zmq.PUSH, address, bind=bind, context=self._own, network=network)
        except AddressError:
            if self._own is not None:
                self._own.term()
            raise

    def send(self, message: object) -> int:
        """Queues one message and returns its size in bytes. Raises ChannelFullError instead of waiting."""
        frame = encode(message)
        try:
            self._socket.send(frame, zmq.NOBLOCK, copy=len(frame) < 65536)
        except zmq.Again as error:
            raise ChannelFullError(f"{_HIGH_WATER_MARK} messages are waiting for a peer that does not read") from error
        return len(frame)

    def close(self, *, deliver: bool = True) -> None:
        """Closes. What is queued is delivered before, for at most a second; without `deliver` nobody wants it any more."""
        self._socket.close(linger=_LINGER_MS if deliver else 0)
        if self._own is not None:
            self._own.term()


class Receiver(Generic[Message]):
    """The reading end of a pipe that carries `Message`. Frames that do not decode are dropped and counted in `malformed`."""

    def __init__(
        self, address: str, decoder: Decoder[Message], *, bind: bool, network: "Network | None" = None, to_all: bool = False
    ) -> None:
        """`network` and `to_all`: as the sender's."""
        self._socket = _open(zmq.SUB if to_all else zmq.PULL, address, bind=bind, network=network)
        self._decoder = decoder
        self._drain: asyncio.Handle | None = None  # the turn that is still to come, while the loop watches
        self.malformed = 0

    def receive(self) -> Message | None:
        """The next message that is here, or None. Never waits."""
        while (frame := self._frame()) is not None:
            if (message := self._decode(frame)) is not None:
                return message
        return None

    def receive_with_connection(self) -> tuple[Message, int] | None:
        """The same, with the number that `protocol.host_pipes.Connections` gives to the connection that it came over."""
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return None
            if (message := self._decode(frame.bytes)) is not None:
                return message, int(frame.get(zmq.SRCFD))

    def receive_some(self, most: int = _MOST_PER_TURN) -> list[Message]:
        """Messages that are here, as many as are handled at a turn. Those that are left make the receiver ready at the next."""
        return list(islice(iter(self.receive, None), most))

    def watch(self, loop: asyncio.AbstractEventLoop, on_message: Callable[[Message], None]) -> None:
        """Calls `on_message` on `loop` for each message, in order, until `unwatch`.

        ZeroMQ's descriptor signals edges, not levels, so after a signal the socket is drained: some messages at a turn of the
        loop, so that a flood does not hold up everything else. A call that raises is reported to the loop's exception handler; its
        message counts as delivered, and the next ones follow. What came before the watch began is drained without a signal.
        """

        def drain() -> None:
            if self._drain is not None:  # a signal came while a turn was due: this is that turn
                self._drain.cancel()
            self._drain = loop.call_soon(drain)  # first of all, so that nothing below can leave messages without a turn
            work = 0
            while work < _MOST_PER_TURN:
                if (frame := self._frame()) is None:
                    self._drain.cancel()
                    self._drain = None
                    return
                work += 1 + len(frame) // _BYTES_PER_WORK
                if (message := self._decode(frame)) is None:
                    continue
                try:
                    on_message(message)
                except Exception as error:  # noqa: BLE001 - whatever it is, it concerns one message
                    loop.call_exception_handler({"message": "a message could not be handled", "exception": error})
                if self._drain is None:  # unwatched meanwhile
                    return

        loop.add_reader(self._socket.FD, drain)
        self._drain = loop.call_soon(drain)

    def unwatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends `watch`."""
        loop.remove_reader(self._socket.FD)
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None

    def close(self) -> None:
        """Closes at once."""
        self._socket.close(linger=0)

    def _frame(self) -> bytes | None:
        try:
            return self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None

    def _decode(self, frame: bytes) -> Message | None:
        try:
            return self._decoder.decode(frame)
        except ProtocolError:
            self.malformed += 1
            return None


class Poller:
    """Waits until one of several receivers, or plain file descriptors, has something to read."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._sources: dict[object, object] = {}  # what ZeroMQ watches -> what was asked to be watched

    def watch(self, source: "Receiver[Message] | Connections | int") -> None:
        """Adds a receiver, the connections of a pipe, or a file descriptor."""
        watched = source if isinstance(source, int) else source._socket
        self._sources[watched] = source
        self._poller.register(watched, zmq.POLLIN)

    def forget(self, source: "Receiver[Message]") -> None:
        """Takes a receiver out, before it is closed."""
        del self._sources[source._socket]
        self._poller.unregister(source._socket)

    def wait(self, timeout: float | None) -> list[object]:
        """The sources that are readable, as soon as one is; none after `timeout` seconds; None waits for ever."""
        ready = self._poller.poll(None if timeout is None else max(0, int(timeout * 1e3)))
        return [self._sources[watched] for watched, _ in ready]


def _open(
    kind: int,
    address: str,
    *,
    bind: bool,
    context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    network: "Network | None" = None,
) -> "zmq.Socket[bytes]":
    socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
    socket.set_hwm(_HIGH_WATER_MARK)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_FRAME)
    socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    if kind == zmq.PUB:
        socket.setsockopt(zmq.XPUB_NODROP, 1)  # a full pipe is an error here too
    elif kind == zmq.SUB:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    if network is not None:
        network.apply(socket, bind=bind)
    try:
        if bind:
            socket.bind(address)
        else:
            socket.connect(address)
    except zmq.ZMQError as error:
        if network is not None:
            network.withdraw(socket)
        socket.close(linger=0)
        raise AddressError(f"cannot {'bind' if bind else 'connect to'} {address}: {error}") from error
    return socket
