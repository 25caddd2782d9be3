"""Who is taken in next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import AbortRequest, AddRequest, GetStats
from protocol.params import EngineParams
from scheduler_proc.intake import Intake


def add(request_id: int, line: int = 0) -> AddRequest:
    return AddRequest(request_id, b"\0\0\0\0", 1, EngineParams(1), line=line)


def ids(messages: list[AddRequest]) -> list[int]:
    return [message.request_id for message in messages]


def test_a_flood_of_one_client_is_passed_by_others() -> None:
    intake = Intake()
    assert intake.put([add(number, line=7) for number in range(1000)]) == []
    assert ids(intake.take(64)) == list(range(64))
    intake.put([add(5000), add(6000, line=8)])
    assert {5000, 6000} <= set(ids(intake.take(3)))


def test_what_is_no_request_does_not_wait_and_who_is_aborted_never_was() -> None:
    intake = Intake()
    question, late = GetStats(3), AbortRequest(77)
    assert intake.put([add(1, line=1), add(2, line=1), question, AbortRequest(1), late]) == [question, late]
    assert len(intake) == 1 and ids(intake.take(9)) == [2]
    assert intake.put([AbortRequest(2)]) == [AbortRequest(2)], "it was taken in, so that its abort concerns the state"


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["add", "add", "add", "abort", "take"])), max_size=60))
def test_everybody_comes_once_in_the_order_of_the_line_and_the_lines_take_turns(steps: list[tuple[int, str]]) -> None:
    intake, lines, number = Intake(), {line: list[int]() for line in range(4)}, 0
    for line, what in steps:
        if what == "add":
            intake.put([add(number, line)])
            lines[line].append(number)
            number += 1
        elif what == "abort" and lines[line]:
            assert intake.put([AbortRequest(lines[line].pop())]) == []
        elif what == "take":
            waiting = Counter({each: len(those) for each, those in lines.items() if those})
            taken = intake.take(1 + line)
            assert len(taken) == min(1 + line, waiting.total())
            assert ids(taken) == [lines[message.line].pop(0) for message in taken]
            counts = Counter(message.line for message in taken)
            if len(taken) >= len(waiting):
                assert set(counts) == set(waiting), "a line was left out, and another came twice"
            else:
                assert max(counts.values(), default=0) <= 1
        assert len(intake) == sum(map(len, lines.values()))
