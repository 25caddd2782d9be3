"""Events of an output, put together for Python clients."""

from frontend.server.ipc.calls import CallsInMaking
from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Reasoning


def test_calls_are_told_when_they_are_complete_and_texts_at_once() -> None:
    making = CallsInMaking()
    assert making.take([Reasoning("I "), Reasoning("see"), Content("Let me "), Content("look")]) == ("Let me look", "I see", [])
    assert making.take([CallBegun(0, "weather"), Arguments(0, '{"place": ')]) == ("", "", [])
    piece = making.take([Arguments(0, '"here"}'), CallEnded(0), CallBegun(1, "time"), Content("!")])
    assert (piece.text, piece.reasoning) == ("!", "")
    assert [(call.name, call.arguments) for call in piece.calls] == [("weather", '{"place": "here"}')]
    (last,) = making.take([CallEnded(1)]).calls
    assert (last.name, last.arguments) == ("time", "")
    assert last.id != piece.calls[0].id
