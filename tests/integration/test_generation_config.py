"""Defaults of sampling, as every interface applies them."""

from pathlib import Path

import httpx

from frontend.client import Client, SamplingParams
from tests.integration.launching import SIMULATED, launch


def test_requests_that_say_nothing_get_the_defaults_and_others_what_they_ask_for(tmp_path: Path) -> None:
    flags = ("--override-generation-config", '{"max_new_tokens": 7, "temperature": 0.5}')
    with launch(tmp_path, *SIMULATED, *flags) as engine:
        assert "requests without sampling parameters of their own get temperature 0.5, max_tokens 7" in engine.said()

        def count(path: str, **fields: object) -> int:
            answer = httpx.post(engine.address + path, json={"ignore_eos": True, **fields}, timeout=30).raise_for_status().json()
            return int(answer["usage"]["completion_tokens"])

        chat = {"messages": [{"role": "user", "content": "Hello"}]}
        assert count("/v1/completions", prompt="a") == count("/v1/chat/completions", **chat) == 7
        assert count("/v1/completions", prompt="a", max_tokens=3) == 3
        assert count("/v1/completions", prompt="a", max_tokens=300) == 7, "no more than that over HTTP"
        with Client(engine.socket) as client:
            assert len(client.generate("a", ignore_eos=True)[0].token_ids) == 7
            assert len(client.generate("a", ignore_eos=True, max_tokens=20)[0].token_ids) == 20
            assert len(client.generate("a", SamplingParams(max_tokens=9, ignore_eos=True))[0].token_ids) == 9
            assert sum(len(delta.token_ids) for delta in client.stream("a", ignore_eos=True)) == 7
