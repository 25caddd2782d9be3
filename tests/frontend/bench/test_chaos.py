"""`engine-bench chaos`: what it takes for lost, repeated and changed tokens, and a short run of it."""

import json
from collections.abc import Sequence

import pytest

from frontend.bench.__main__ import main
from frontend.bench.chaos import Blow, compare, stalls
from frontend.bench.chaos_requests import Answer, Question, make_questions
from frontend.client import SamplingParams
from protocol.errors import ExitCode

QUESTION = Question("stream", (1, 2), SamplingParams(max_tokens=8, seed=1))
WANTED = [11, 12, 13, 14, 15, 16, 17, 18]


def answer(token_ids: Sequence[int], outcome: str = "complete", reason: str = "length", times: Sequence[float] = ()) -> Answer:
    return Answer(0, 0.0, 1.0, outcome, "", {0: list(token_ids)}, {0: reason}, list(times))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("came", "wrong"),
    [
        (WANTED, ""),
        ([11, 12, 13, 14, 13, 14, 15, 16, 17, 18], "duplicated"),
        ([11, 12, 15, 16, 17, 18], "missing"),
        ([11, 12, 13, 14, 15, 16], "missing"),
        ([11, 12, 13, 99, 15, 16, 17, 18], "changed"),
        ([], "missing"),
    ],
)
def test_what_is_wrong_with_an_answer(came: list[int], wrong: str) -> None:
    assert compare(QUESTION, answer(came), answer(WANTED)) == wrong


def test_an_answer_that_was_left_has_to_be_the_beginning_of_the_whole() -> None:
    assert compare(QUESTION, answer(WANTED[:3], "aborted"), answer(WANTED)) == ""
    assert compare(QUESTION, answer([11, 13], "aborted"), answer(WANTED)) == "missing"
    assert compare(QUESTION, answer([11, 12, 11, 12], "broken"), answer(WANTED)) == "duplicated"


def test_an_end_for_another_reason_is_a_change() -> None:
    assert compare(QUESTION, answer(WANTED, reason="stop"), answer(WANTED)) != ""


def test_how_long_streams_wait_after_a_blow() -> None:
    blows = [Blow(10.0, ("tpu_worker-1",), "SIGKILL"), Blow(20.0, ("frontend", "grammar"), "SIGKILL")]
    answers = [
        answer(WANTED, times=[9.0, 9.5, 10.5, 11.0]),
        answer(WANTED, times=[9.0, 12.0]),
        answer(WANTED, times=[10.1, 30.0]),
        answer(WANTED, times=[1.0, 2.0]),
    ]
    assert stalls(blows, answers) == {"several, SIGKILL": (1, 10.0, 10.0), "tpu_worker, SIGKILL": (1, 2.0, 2.0)}


def test_the_questions_are_the_same_for_the_same_seed_and_of_every_kind() -> None:
    questions = make_questions(56, 5)
    assert questions == make_questions(56, 5) != make_questions(56, 6)
    assert {question.kind for question in questions} == {"stream", "whole", "http"}
    assert any(question.params.structured for question in questions)
    assert max(question.params.n for question in questions) == 3


@pytest.mark.slow
def test_a_short_run_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["chaos", "--kills", "25", "--seed", "7", "--questions", "28", "--concurrency", "12", "--json"]
    code = main(flags)
    report = json.loads(capsys.readouterr().out)
    assert code == ExitCode.OK, report
    assert sum(report["blows"].values()) >= 25
    assert report["requests"]["complete"] > 0
    assert report["differences"] == {} and report["leaks"] == [] and "lost" not in report["requests"]
