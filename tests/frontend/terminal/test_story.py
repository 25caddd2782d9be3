"""Why a request waits, as its operator reads it."""

import httpx

from frontend.terminal.story import summary, tell
from protocol.errors import ExitCode
from protocol.messages import Move, Story
from tests.frontend.server.ipc.serving import Served
from tests.frontend.terminal.terminals import piped

STORY = "frontend.terminal.story"
_MS = 1_000_000  # nanoseconds

MOVES = (
    Move("new", "waiting", "arrived", 5_000 * _MS),
    Move("waiting", "prefilling", "admitted to worker 0", 5_250 * _MS),
    Move("prefilling", "decoding", "every known token is planned", 5_251 * _MS),
    Move("decoding", "finished", "length", 9_000 * _MS),
)


def test_a_story_says_when_what_and_why() -> None:
    assert tell(Story(1, 17, MOVES, "not here", "chat\x1b[2J", now_ns=10_000 * _MS)).splitlines() == [
        "request 17, chat␛[2J",
        "      0.000 s  waiting    arrived",
        "      0.250 s  prefilling admitted to worker 0",
        "      0.251 s  decoding   every known token is planned",
        "      4.000 s  finished   length",
        "  ended 1.000 s ago",
    ]
    lines = tell(Story(1, 17, MOVES[1:2], "prefilling: 3 of 9", now_ns=5_300 * _MS)).splitlines()
    assert lines[0] == "request 17"
    assert "forgotten" in lines[1]
    assert lines[-1] == "  now, for 0.050 s: prefilling: 3 of 9"


def test_a_list_has_a_line_for_each() -> None:
    waiting = Story(1, 18, MOVES[:1], "waiting at the head: worker 0 has no slot", "n" * 300, now_ns=6_000 * _MS)
    assert (
        summary(waiting).endswith("waiting        1.000 s  waiting at the head: worker 0 has no slot")
        and len(summary(waiting)) < 160
    )


def test_a_request_is_found_by_every_name_that_it_has(served: Served) -> None:
    url = served.running.url + "/v1/chat/completions"
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "n": 2}
    answer = httpx.post(url, json=body, headers={"x-request-id": "told-of"})
    whole = piped(STORY, "told-of", socket=served.path)
    assert (whole.returncode, whole.stderr) == (ExitCode.OK, "")
    assert whole.stdout.count("request ") == 2 and whole.stdout.count("finished   length") == 2
    number = whole.stdout.split()[1].rstrip(",")
    assert "told-of" in piped(STORY, number, socket=served.path).stdout
    by_answer = piped(STORY, answer.json()["id"], socket=served.path).stdout
    assert by_answer.count("request ") == 2
    ours = httpx.post(url, json=body | {"n": 1})
    assert ours.headers["x-request-id"] in piped(STORY, ours.json()["id"], socket=served.path).stdout
    listed = piped(STORY, socket=served.path).stdout.splitlines()
    assert 2 < len(listed) <= 16 and ours.headers["x-request-id"] in listed[-1]


def test_who_is_not_known_is_an_error(served: Served) -> None:
    done = piped(STORY, "no\x1b such", socket=served.path)
    assert done.returncode == ExitCode.CRASHED and done.stdout == ""
    assert done.stderr == "engine-story: no request is known as no␛ such: it never came, or that was too long ago\n"
