"""Nobody is refused while an engine restarts behind a socket that is held."""

import json

import pytest

from frontend.bench.__main__ import main


@pytest.mark.slow
def test_of_a_thousand_requests_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restart", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["requests"], found["answered"], found["refused"], found["failed"]) == (1000, 1000, 0, {})
    assert found["restarts"] == 3 and found["longest_wait"] > 0
