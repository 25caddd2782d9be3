"""Unknown fields: ignored, counted, named once."""

import json
import logging
from collections import Counter

import httpx
import msgspec
import pytest

from frontend.server.api.decoding import BodyDecoder
from frontend.server.api.ignored_fields import IgnoredFields
from frontend.server.api.schemas import ChatRequest, CompletionRequest

ASK = {"prompt": "a", "max_tokens": 1}


def test_a_body_of_known_fields_is_decoded_once() -> None:
    body, unknown = BodyDecoder(CompletionRequest).decode(json.dumps(ASK | {"seed": 5}).encode())
    assert (body.prompt, body.max_tokens, body.seed, unknown) == ("a", 1, 5, [])
    assert isinstance(body, CompletionRequest)


def test_all_unknown_fields_of_a_small_body_are_named_and_the_first_of_a_large_one() -> None:
    decoder = BodyDecoder(CompletionRequest)
    fields = {"usr": 1, "prompt": "a", "metadata": {"seed": 1}, "max_tokens": 1, "stor e`": [1]}
    body, unknown = decoder.decode(json.dumps(fields).encode())
    assert (body.prompt, body.max_tokens, unknown) == ("a", 1, ["usr", "metadata", "stor e`"])
    body, unknown = decoder.decode(json.dumps(fields | {"prompt": "a" * 100_000}).encode())
    assert (len(str(body.prompt)), unknown) == (100_000, ["usr"])


def test_what_is_unknown_within_a_message_is_not_told() -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}], "id": 5}
    assert BodyDecoder(ChatRequest).decode(json.dumps({"messages": [message]}).encode())[1] == []


@pytest.mark.parametrize("fields", [{"unknown": 1, "max_tokens": "x"}, {"max_tokens": "x", "unknown": 1}, {"unknown": 1}])
def test_what_is_wrong_is_wrong_beside_unknown_fields(fields: dict[str, object]) -> None:
    if "max_tokens" not in fields:
        with pytest.raises(msgspec.ValidationError, match="missing required field `prompt`"):
            BodyDecoder(CompletionRequest).decode(json.dumps(fields).encode())
        return
    with pytest.raises(msgspec.ValidationError, match="max_tokens"):
        BodyDecoder(CompletionRequest).decode(json.dumps({"prompt": "a"} | fields).encode())


def test_names_are_bounded_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    counts: Counter[str] = Counter()
    ignored = IgnoredFields(counts)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ignored.note("/v1/completions", ["user", "metadata", "x" * 65, "line\nbreak", "ä"])
        for number in range(1000):
            ignored.note("/v1/completions", [f"field{number}"])
    assert (counts["user"], counts["metadata"]) == (3, 3)
    assert len(counts) <= 65
    assert counts["(others)"] == 9 + 1000 - (len(counts) - 3)
    assert len(caplog.records) <= 65
    assert (
        caplog.records[0].getMessage()
        == "/v1/completions: unknown fields are ignored: user, metadata, (others) (said once of each)"
    )


def test_over_http(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert http.post("/v1/completions", json=ASK | {"never_heard_of": "a secret"}).status_code == 200
    said = [record.getMessage() for record in caplog.records if "never_heard_of" in record.getMessage()]
    assert said == ["/v1/completions: unknown fields are ignored: never_heard_of (said once of each)"]
    assert "a secret" not in caplog.text
    assert [line for line in http.get("/metrics").text.splitlines() if "never_heard_of" in line and line.endswith(" 2.0")]
