"""One HTTP connection: one exchange at a time, what is sent behind it waits as bytes, and all of it is bounded.

While an answer is under way the connection goes on reading, for that alone tells that the client is gone. Requests sent behind the
one under way are therefore kept, up to a bound, and parsed when their turn comes: nothing of them runs, or is to be ended, before.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

from frontend.errors import ShuttingDown
from frontend.server.api.errors import ApiError, from_engine
from frontend.server.http import http2
from frontend.server.http.exchange import Exchange, whole_answer
from frontend.server.http.host import Host
from frontend.server.http.intake import Intake
from frontend.server.visit import new_name

# Of the work on pending bytes, done before others get their turn: a millisecond or two, however small the chunks of a body. A piece
# is ten, each chunk in it is one.
_MOST_WORK = 1000
_PIECE_WORK = 10
_FIRST_PROBES = 2  # sent at the same distance: what the first provokes, the second meets


class _Phase(Enum):
    IDLE = auto()  # between requests
    HEAD = auto()  # within a head
    BODY = auto()  # within a body; the application may already run
    ANSWER = auto()  # the request is here, its answer is not complete
    LINGER = auto()  # all is said; what still comes is thrown away until the client hangs up


_AT_HEAD = (_Phase.IDLE, _Phase.HEAD)


class Connection(asyncio.Protocol):
    """asyncio's callbacks for one client."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._limits = host.limits
        self._loop = asyncio.get_running_loop()
        self._intake = Intake(host.limits)
        self._phase = self._timed = _Phase.IDLE  # and the phase that the timer is for
        self._held = 0  # bytes counted at the host
        self._exchange: Exchange | None = None
        self._due = False  # what is pending has a turn to come
        self._held_back = False  # and the client has to wait for it
        self._ended = False  # the client sends no more
        self._finishing = False  # the server ends
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.paused = False
        self.fresh = True  # no request has come yet

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class does not inherit from it
        if self._host.admit(self):
            self._set_timer(self._limits.head_seconds, self._late)
            self._host.rest(self)
        else:
            self._refuse(ApiError(503, "too many connections", code="overloaded", headers={"retry-after": "1"}))

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._phase is _Phase.LINGER or (self._phase is _Phase.ANSWER and not self._is_followed()):
            return
        self._intake.add(data)
        if not self._due:
            self._advance()
            self._mind_time()
        elif len(self._intake) > self._limits.pipelined:
            self._hold_back(True)
        self._count()

    def eof_received(self) -> bool:
        """The client sends no more: it may still read. See `Exchange.probe`."""
        self._ended = True
        if not self._due:
            self._after_end()
        return self._due or self._phase is _Phase.ANSWER  # else closed, once everything is written

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self.paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self.paused = False
        self._writable.set()

    def connection_lost(self, error: Exception | None) -> None:
        """The client is gone."""
        self._clear_timer()
        self._phase = _Phase.LINGER
        self._intake.clear()
        if self._exchange is not None:
            self._exchange.lose()
            self._exchange = None
        self._count()
        self._host.forget(self)
        self.resume_writing()

    # for the exchange

    def write(self, data: bytes) -> None:
        """See Peer."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def writable(self) -> None:
        """See Peer."""
        await self._writable.wait()

    def date(self) -> bytes:
        """See Peer."""
        return self._host.date()

    def is_last(self) -> bool:
        """See Peer."""
        return self._host.draining or (self._ended and not self._intake)

    async def turn(self, size: int) -> None:
        """See Peer. What is small does not wait."""
        if size > self._limits.small:
            await self._host.turns.take(size)

    def end_turn(self, size: int) -> None:
        """See Peer."""
        if size > self._limits.small:
            self._host.turns.give(size)

    def took_body(self) -> None:
        """See Peer."""
        self._count()

    def answered(self) -> None:
        """See Peer."""
        exchange, self._exchange = self._exchange, None
        if self._transport.is_closing():
            return
        ended = self._ended and not self._intake
        if exchange is None or self._phase is _Phase.BODY or not exchange.keep_alive or ended:
            self._linger()
        elif self._intake:
            self._phase = _Phase.HEAD
            self._go_on_later()
        else:
            self._rest()

    def abort(self) -> None:
        """See Peer; also for the server."""
        self._transport.abort()

    # for the server

    def finish(self) -> None:
        """Hangs up, once the answer under way is complete and written."""
        self._finishing = True
        if self._exchange is None:
            self._transport.close()
        elif self._phase is _Phase.BODY:
            self._refuse(from_engine(ShuttingDown("the engine is shutting down")))
        else:
            self._exchange.keep_alive = False

    # in

    def _advance(self) -> None:
        """Takes as much of what is pending as one exchange, and one turn of the loop, may have."""
        try:
            work = 0
            while work < _MOST_WORK:
                work += _PIECE_WORK
                if not self._intake or not (
                    self._take_head() if self._phase in _AT_HEAD else self._phase is _Phase.BODY and self._take_body()
                ):
                    return
                work += self._intake.chunks
            self._go_on_later()
        except ApiError as error:
            self._refuse(error)

    def _take_head(self) -> bool:
        """One head, if it is here: False if not."""
        head = self._intake.head()
        if head is None and not self._intake:  # there were empty lines
            if self._phase is _Phase.HEAD:
                self._rest()
            return False
        if self._phase is _Phase.IDLE:
            self._host.wake(self)
        if head is None:
            self._phase = _Phase.HEAD
            return False
        self.fresh = False
        head.scope["client"] = self._transport.get_extra_info("peername")
        self._exchange = Exchange(self, head)
        self._phase = _Phase.BODY
        self._end_request_if_complete()
        self._host.run(self._exchange)
        return True

    def _take_body(self) -> bool:
        """One piece of a body."""
        assert self._exchange is not None, "a body belongs to an exchange"
        self._exchange.feed(self._intake.body())
        if self._exchange.held > self._limits.body:
            raise self._intake.too_large()
        self._end_request_if_complete()
        return True

    def _end_request_if_complete(self) -> None:
        if self._intake.complete and self._exchange is not None:
            self._phase = _Phase.ANSWER
            self._exchange.feed_end()

    def _rest(self) -> None:
        self._phase = self._timed = _Phase.IDLE
        self._set_timer(self._limits.keep_alive_seconds, self._transport.close)
        self._host.rest(self)

    def _go_on_later(self) -> None:
        self._due = True
        self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """With what is pending still."""
        self._due = False
        if self._transport.is_closing():
            return
        self._advance()
        self._mind_time()
        if not self._due:
            self._hold_back(False)
            if self._ended:
                self._after_end()
        self._count()

    def _after_end(self) -> None:
        """Nothing more comes, and nothing is pending that can be parsed now."""
        if self._phase is _Phase.ANSWER:
            self._probe(_FIRST_PROBES, self._limits.probe_seconds)
        elif self._phase in (_Phase.HEAD, _Phase.BODY):
            self._refuse(ApiError(400, "the connection ended within the request", code="malformed_request"))
        elif self._phase is _Phase.IDLE:
            self._transport.close()

    def _hold_back(self, hold: bool) -> None:
        if hold != self._held_back and not self._transport.is_closing():
            self._held_back = hold
            if hold:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _is_followed(self) -> bool:
        return self._exchange is not None and self._exchange.keep_alive

    def _count(self) -> None:
        """Tells the host how many bytes are held here, and gives them up where they are too many."""
        size = len(self._intake) + (self._exchange.held if self._exchange is not None else 0)
        fits = self._host.hold(size - self._held)
        self._held = size
        if self._phase is _Phase.ANSWER and self._intake and not (fits and len(self._intake) <= self._limits.pipelined):
            self._intake.clear()
            if self._exchange is not None:
                self._exchange.keep_alive = False  # a client sends again what was not answered
            self._count()
        elif not fits and self._phase is not _Phase.LINGER:
            self._refuse(ApiError(503, "too many requests are being received", code="overloaded", headers={"retry-after": "1"}))

    # ends

    def _refuse(self, error: ApiError) -> None:
        """Answers here, and takes nothing more."""
        self._host.refused(error)
        self._intake.clear()
        if self._exchange is not None:
            self._exchange.refuse(error)
        else:
            name, body = new_name().encode(), error.body()
            self.write(http2.refusal(body, name) if self._intake.wants_http2 else whole_answer(error, self.date(), name))
            self._linger()
        self._count()

    def _linger(self) -> None:
        """Says that nothing follows, and lets the client read: to close on bytes that it still sends would reset the connection."""
        self._phase = _Phase.LINGER
        self._intake.clear()
        self._hold_back(False)
        if self._ended or self._finishing or self._transport.is_closing():
            self._transport.close()  # once everything is written
            return
        self._transport.write_eof()
        self._set_timer(self._limits.linger_seconds, self._hang_up)

    def _hang_up(self) -> None:
        if self._transport.get_write_buffer_size():  # a slow client; of one that reads nothing at all the kernel tells
            self._set_timer(self._limits.linger_seconds, self._hang_up)
        else:
            self._transport.close()

    def _mind_time(self) -> None:
        """Gives the phase its time, once."""
        if self._phase is self._timed:
            return
        self._timed = self._phase
        match self._phase:
            case _Phase.HEAD:
                self._set_timer(self._limits.head_seconds, self._late)
            case _Phase.BODY:
                self._set_timer(self._limits.body_seconds, self._late)
            case _Phase.ANSWER:
                self._clear_timer()

    def _late(self) -> None:
        if self._phase is _Phase.IDLE:
            self._transport.close()  # connected, and never said anything
        else:
            self._refuse(ApiError(408, "the request did not come within the time that it has", code="request_timeout"))

    def _probe(self, left: int, delay: float) -> None:
        """Looks from time to time whether the client is still there: twice, and then at growing intervals."""

        def look() -> None:
            if self._exchange is not None and not self._transport.is_closing() and self._exchange.probe():
                self._probe(max(0, left - 1), delay if left > 1 else 2 * delay)

        self._set_timer(delay, look)

    def _set_timer(self, delay: float, call: Callable[[], object]) -> None:
        self._clear_timer()
        self._timer = self._loop.call_later(delay, call)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
