"""One Python client: frames in, frames out, all that a tick of the loop has to say in one write."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from frontend.server.generation import TextEngine
from frontend.server.http.limits import body_limit
from frontend.server.ipc.embeds import Embeds
from frontend.server.ipc.inbox import Inbox
from frontend.server.ipc.questions import Questions
from frontend.server.ipc.reports import Reports
from frontend.server.ipc.requests import Requests
from frontend.server.turns import Turns
from frontend.wire import (
    WHOLE_CONNECTION,
    WIRE_VERSION,
    Ask,
    Cancel,
    ClientMessage,
    Detokenize,
    Embed,
    Hello,
    Refusal,
    Refused,
    ServerMessage,
    Submit,
    Tokenize,
    Welcome,
    frames,
)
from protocol.codec import encode
from protocol.errors import ProtocolError

_LOG = logging.getLogger(__name__)

_PAUSE_BYTES = 1 << 20  # unread by the client: deltas then merge in the router, where the requests' own length bounds them
_MOST_UNREAD = 1 << 26  # bytes; only refusals and reports can pile up so far, so the client asks and never reads


class Host(Protocol):
    """The server that a connection belongs to."""

    engine: TextEngine
    reports: Reports
    malformed_frames: int
    connections: "set[Connection]"
    turns: Turns  # of large frames


class Connection(asyncio.Protocol):
    """asyncio's callbacks for one client. When it leaves, its requests are aborted."""

    def __init__(self, host: Host, is_welcome: Callable[[asyncio.Transport], bool]) -> None:
        self._host = host
        self._is_welcome = is_welcome
        self._loop = asyncio.get_running_loop()
        self._inbox = Inbox(
            body_limit(host.engine.capacity.max_model_len),
            host.turns,
            handle=self._on_message,
            malformed=self._on_malformed,
            may_handle=self._may_handle,
            hold_back=self._hold_back,
            late=lambda: self._hang_up("malformed", "a large message did not come within the time that it has"),
        )
        self._held_back = False
        self._greeted = False
        self._requests = Requests(host.engine, self._say, self._inbox.go_on)
        self._questions = Questions(host.reports, self._say, self._requests.may_say)
        self._embeds = Embeds(host.engine, self._say, self._requests.may_say)
        self._outgoing: list[bytes] = []
        self._lost = asyncio.Event()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)
        if not self._is_welcome(self._transport):
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(_PAUSE_BYTES)
        self._host.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            self._inbox.feed(data)
        except ProtocolError as error:
            self._host.malformed_frames += 1
            self._hang_up("malformed", str(error))

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._requests.may_say.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._requests.may_say.set()
        self._inbox.go_on()

    def connection_lost(self, error: Exception | None) -> None:
        """The client left."""
        self._host.connections.discard(self)
        self._inbox.close()
        self._requests.abandon()
        self._embeds.cancel_all()
        self._questions.close()
        self._lost.set()

    # for the server

    async def finish(self, *, wait_for_requests: bool) -> None:
        """Delivers what is there and hangs up. Requests that still run are lost, unless they are about to end."""
        if wait_for_requests:
            await asyncio.gather(self._requests.wait(), self._embeds.wait())
        for request_id in self._requests.cancel_all() + self._embeds.cancel_all():
            self._say(Refused(request_id, "lost", "the engine was shut down before the answer was complete"))
        for request_id in self._questions.close():
            self._say(Refused(request_id, "unavailable", "the engine is shutting down"))
        self._flush()
        self._transport.close()  # after its buffer
        await self._lost.wait()

    def abort(self) -> None:
        """Hangs up now."""
        self._transport.abort()

    # messages

    def _may_handle(self) -> bool:
        return self._requests.has_room and self._requests.may_say.is_set()

    def _hold_back(self, hold: bool) -> None:
        if hold != self._held_back and not self._transport.is_closing():
            self._held_back = hold
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _on_malformed(self, error: ProtocolError) -> None:
        self._host.malformed_frames += 1
        if not self._greeted:
            self._hang_up("malformed", f"no Hello of this protocol, version {WIRE_VERSION}: {error}")
        else:
            self._say(Refused(WHOLE_CONNECTION, "malformed", str(error)))

    def _on_message(self, message: ClientMessage | Refused) -> None:
        if self._transport.is_closing():  # hung up on the message before
            return
        if isinstance(message, Refused):
            self._host.malformed_frames += 1
        if not self._greeted and not isinstance(message, Hello):
            reason = f": {message.message}" if isinstance(message, Refused) else ""
            self._hang_up("malformed", f"a connection begins with Hello, of this protocol's version {WIRE_VERSION}{reason}")
            return
        match message:
            case Refused():
                self._say(message)
            case Submit():
                self._requests.submit(message)
            case Cancel(request_id):
                self._requests.cancel(request_id)
                self._embeds.cancel(request_id)
            case Embed():
                self._embeds.embed(message)
            case Ask() | Tokenize() | Detokenize():
                self._questions.ask(message)
            case Hello(version):
                self._on_hello(version)

    def _on_hello(self, version: int) -> None:
        if version != WIRE_VERSION:
            text = (
                f"the client speaks version {version} of the protocol, the engine version {WIRE_VERSION}: install the same twodeep"
            )
            self._hang_up("version", text)
            return
        self._greeted = True
        engine = self._host.engine
        capacity = engine.capacity
        names, defaults = engine.config.served_model_names, engine.config.sampling_defaults
        self._say(Welcome(WIRE_VERSION, names, capacity.max_model_len, capacity.vocab_size, defaults))

    # out

    def _hang_up(self, kind: Refusal, text: str) -> None:
        self._say(Refused(WHOLE_CONNECTION, kind, text))
        self._flush()
        self._transport.close()

    def _say(self, message: ServerMessage) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(encode(message))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing or self._transport.is_closing():
            return
        self._transport.write(frames(outgoing))
        if self._transport.get_write_buffer_size() > _MOST_UNREAD:
            _LOG.warning("a Python client does not read its answers: disconnected")
            self._transport.abort()
