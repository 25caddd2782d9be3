"""The core without a socket: whatever comes in whatever order, everything that was asked ends, once, with what belongs to it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frontend.client.requests import StreamedRequest, WholeRequest
from frontend.client.session import Session
from frontend.errors import EngineUnavailable, InvalidRequest, RequestLost
from frontend.wire import (
    CLIENT_MESSAGES,
    WIRE_VERSION,
    Accepted,
    Ask,
    Cancel,
    Delta,
    FrameReader,
    Hello,
    Refused,
    Resumed,
    ResumedOutput,
    StatsReport,
    Submit,
    TraceReport,
    Welcome,
    frames,
)
from protocol.codec import encode, pack_int32, unpack_int32
from protocol.errors import EngineError, ProtocolError
from protocol.messages import EngineStats, TraceRecords
from protocol.params import SamplingParams

WELCOME = Welcome(WIRE_VERSION, ("demo",), 100, 50)


def connected(reconnect: float = 1.0) -> Session:
    session = Session("/engine.sock", reconnect)
    feed(session, WELCOME)
    session.take_outgoing()
    return session


def feed(session: Session, *messages: object) -> None:
    session.feed(frames(map(encode, messages)))


def sent(session: Session) -> list[object]:
    return [message for frame in FrameReader().feed(session.take_outgoing()) for message in CLIENT_MESSAGES.decode(frame)]


def read(stream: StreamedRequest) -> list[Delta]:
    """All pieces that are there."""
    pieces = []
    while stream.ready and (piece := stream.result()) is not None:
        pieces.append(piece)
    return pieces


def test_nothing_is_asked_before_the_welcome() -> None:
    session = Session(Path("/engine.sock"))
    for ask in (lambda: session.submit("a", None, ""), session.stats):
        with pytest.raises(EngineUnavailable, match="not connected"):
            ask()
    assert not session.broke()
    with pytest.raises(EngineUnavailable, match="before it was ready"):
        session.greeting.result()


def test_what_came_before_the_loss_is_read_before_the_error() -> None:
    session = connected(reconnect=0)
    stream = session.stream("a", None, "")
    feed(session, Delta(1, 0, "x", [5]), Delta(1, 0, "y", [6]))
    assert not session.broke()
    assert [stream.result(), stream.result()] == [Delta(1, 0, "x", [5]), Delta(1, 0, "y", [6])]
    with pytest.raises(RequestLost):
        stream.result()
    assert stream.result() is None


def test_a_report_of_another_kind_is_no_answer() -> None:
    session = connected()
    question = session.health()
    feed(session, StatsReport(1, EngineStats(0, 0, (), {})))
    with pytest.raises(EngineError, match="EngineStats where Health"):
        question.result()


@pytest.mark.parametrize(
    "nonsense", [Delta(1, 7, "", []), Accepted(1, b"abc"), TraceReport(2, TraceRecords(0, ("a",), b"abc"), b"")]
)
def test_an_answer_that_makes_no_sense_ends_the_connection(nonsense: object) -> None:
    session = connected()
    request, question = session.submit("a", None, ""), session.trace()
    feed(session, nonsense)
    for result in (request.result, question.result):
        with pytest.raises(ProtocolError):
            result()


class Asked:
    """A request, and what it must come to."""

    def __init__(self, request: WholeRequest | StreamedRequest, n: int) -> None:
        self.request = request
        self.tokens: dict[int, list[int]] = {index: [] for index in range(n)}
        self.open = set(range(n))
        self.end: type[EngineError] | None = None
        self.closed = False  # by its user: nothing is to be read then
        self.read: list[Delta] = []

    @property
    def over(self) -> bool:
        return not self.open or self.end is not None


class Conversation(RuleBasedStateMachine):
    """An engine that says anything about any request, and users who ask, read, and leave at any time."""

    @initialize()
    def connect(self) -> None:
        self.session = connected()
        self.asked: list[Asked] = []
        self.cancelled: set[int] = set()

    def pick(self, data: st.DataObject, condition: Callable[[Asked], bool] = lambda _: True) -> Asked | None:
        able = [asked for asked in self.asked if condition(asked)]
        return data.draw(st.sampled_from(able)) if able else None

    @precondition(lambda self: self.session.lost is None)
    @rule(n=st.integers(1, 3), streamed=st.booleans())
    def ask(self, n: int, streamed: bool) -> None:
        params = SamplingParams(n=n)
        request = self.session.stream([1], params, "") if streamed else self.session.submit([1], params, "")
        self.asked.append(Asked(request, n))

    @rule(data=st.data(), last=st.booleans())
    def say(self, data: st.DataObject, last: bool) -> None:
        asked = self.pick(data, lambda one: bool(one.open))
        if asked is None:
            return
        index = data.draw(st.sampled_from(sorted(asked.open)))
        ends = last or isinstance(asked.request, WholeRequest)
        token = data.draw(st.integers(0, 49))
        if not asked.over and self.session.lost is None:
            asked.tokens[index].append(token)
            if ends:
                asked.open.discard(index)
        feed(self.session, Delta(asked.request.request_id, index, "", [token], "length" if ends else None))

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        if (asked := self.pick(data)) is not None:
            if not asked.over and self.session.lost is None:
                asked.end = InvalidRequest
            feed(self.session, Refused(asked.request.request_id, "invalid", "no"))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if (asked := self.pick(data)) is not None:
            if not asked.over:
                asked.end = RequestLost
                self.cancelled.add(asked.request.request_id)
            asked.closed = True
            asked.request.close()

    @rule(data=st.data())
    def read_some(self, data: st.DataObject) -> None:
        asked = self.pick(data, lambda one: isinstance(one.request, StreamedRequest) and not one.over)
        if asked is not None:
            assert isinstance(asked.request, StreamedRequest)
            asked.read += read(asked.request)

    @rule()
    def send(self) -> None:
        for message in sent(self.session):
            assert isinstance(message, Submit | Cancel)
            if isinstance(message, Cancel):
                self.cancelled.remove(message.request_id)
        assert not self.cancelled

    @rule()
    def hang_up(self) -> None:
        if self.session.lost is None:
            for asked in self.asked:
                if not asked.over:
                    asked.end = RequestLost
            self.cancelled.clear()
        self.session.reconnect = 0
        assert not self.session.broke()

    @precondition(lambda self: self.session.lost is None)
    @rule(more_than_once=st.booleans())
    def breaks(self, more_than_once: bool) -> None:
        """Another process answers, and is told what is under way, and what came of it."""
        for _ in range(1 + more_than_once):
            assert self.session.broke()
        assert sent(self.session) == [Hello(WIRE_VERSION)]
        self.cancelled.clear()  # it does not know what it should cancel
        feed(self.session, WELCOME)
        told = {message.request_id: message.resumed for message in sent(self.session) if isinstance(message, Submit)}
        assert list(told) == sorted(told)
        running = {asked.request.request_id: asked for asked in self.asked if not asked.over}
        assert told.keys() == running.keys()
        for request_id, resumed in told.items():
            assert resumed is not None
            asked = running[request_id]
            for index, output in enumerate(resumed.outputs):
                assert (output is not None) == (index in asked.open)
                if output is not None:
                    assert unpack_int32(output.token_ids_i32).tolist() == asked.tokens[index]

    @invariant()
    def everything_is_as_it_was_told(self) -> None:
        for asked in getattr(self, "asked", []):
            request = asked.request
            assert request.ended == asked.over
            if isinstance(request, WholeRequest) and request.ready:
                if asked.end is not None:
                    with pytest.raises(asked.end):
                        request.result()
                else:
                    assert [output.token_ids for output in request.result().outputs] == list(asked.tokens.values())

    def teardown(self) -> None:
        for asked in getattr(self, "asked", []):
            if not isinstance(asked.request, StreamedRequest) or not asked.over:
                continue
            error = None
            try:
                asked.read += iter(asked.request.result, None)
            except EngineError as raised:
                error = type(raised)
            if not asked.closed:
                told = {index: [piece.token_ids[0] for piece in asked.read if piece.index == index] for index in asked.tokens}
                assert (told, error) == (asked.tokens, asked.end)
            assert asked.request.result() is None


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=40)


def test_an_engine_that_comes_back_is_asked_again_and_told_of_what_came() -> None:
    session = connected()
    question = session.health()
    seen = session.stream("a", SamplingParams(n=2), "salt")
    sent(session)
    prompt = pack_int32([7, 8])
    feed(session, Accepted(2, prompt, None, 99), Delta(2, 0, "abc", [1, 2], reasoning="hm"), Delta(2, 1, "x", [3], "stop"))
    assert session.broke()
    late = session.submit("b", None, "")  # while nobody is there
    assert sent(session) == [Hello(WIRE_VERSION)]
    assert "waiting for the engine to come back" in session.describe()
    feed(session, WELCOME)
    again, new, asked = sent(session)
    assert isinstance(again, Submit) and isinstance(new, Submit)
    assert again.resumed == Resumed(prompt, 99, (ResumedOutput(pack_int32([1, 2]), 3, 2, 0), None))
    assert (again.cache_salt, again.stream, new.request_id) == ("salt", True, late.request_id)
    assert asked == Ask(1, "health")
    feed(session, Delta(2, 0, "d", [4], "length"))
    assert [piece.token_ids for piece in read(seen)] == [[1, 2], [3], [4]]
    assert not question.ready and not late.ready


def test_another_model_is_not_taken_for_the_same_engine() -> None:
    session = connected()
    stream = session.stream("a", None, "")
    assert session.broke()
    feed(session, Welcome(WIRE_VERSION, ("other",), 100, 50))
    with pytest.raises(RequestLost, match=r"another engine answers at /engine.sock than before: it serves other"):
        stream.result()
