"""The end of a real engine while answers are under way."""

import asyncio
import json
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.integration.launching import SIMULATED, STOP_LIMIT, launch

_ENDLESS = {"prompt": "Hello", "ignore_eos": True, "max_tokens": 8000}


@pytest.mark.parametrize("ends", ["the time to drain", "a second signal", "the scheduler"])
def test_open_answers_end_as_answers_and_nobody_holds_up_the_end(tmp_path: Path, ends: str) -> None:
    drain = "0.3" if ends == "the time to drain" else "60"
    with launch(tmp_path, *SIMULATED, "--sim-decode-us", "3000", "--drain-timeout", drain, "--max-restarts", "0") as engine:

        async def clients() -> tuple[httpx.Response, str]:
            async with httpx.AsyncClient(base_url=engine.address, timeout=60) as client:
                plain = asyncio.ensure_future(client.post("/v1/completions", json=_ENDLESS))
                async with client.stream("POST", "/v1/completions", json=_ENDLESS | {"stream": True}) as streamed:
                    lines = streamed.aiter_lines()
                    text = await anext(lines)  # it runs
                    if ends == "the scheduler":
                        engine.child("scheduler_proc").kill()
                    else:
                        engine.process.send_signal(signal.SIGTERM)
                    if ends == "a second signal":
                        while (await client.post("/v1/completions", json=_ENDLESS | {"max_tokens": 1})).status_code != 503:
                            pass
                        engine.process.send_signal(signal.SIGTERM)
                    async for line in lines:
                        text += line + "\n"
                return await plain, text

        url = httpx.URL(engine.address)
        with socket.create_connection((url.host, url.port or 80)) as unread:
            body = json.dumps(_ENDLESS | {"stream": True, "n": 50, "logprobs": 20}).encode()
            unread.sendall(b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            plain, stream = asyncio.run(clients())
            assert engine.process.wait(STOP_LIMIT) == (1 if ends == "the scheduler" else 0)
        assert plain.status_code == 503
        assert plain.json()["error"]["code"] == "shutting_down"
        assert int(plain.headers["retry-after"]) > 0
        events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["error"]["code"] == "shutting_down"
        assert "Traceback" not in engine.said()
