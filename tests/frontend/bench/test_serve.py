"""`engine-bench serve` against small servers on real sockets, and its figures against figures worked out by hand."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.bench.__main__ import main
from frontend.bench.load import LoadSpec, plan_load
from frontend.bench.metrics import RequestResult, summarize
from frontend.bench.streams import CompletionReader

STREAMING = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

Handler = Callable[[str, bytes, asyncio.StreamWriter], Awaitable[None]]


def chunk(text: str) -> bytes:
    data = f"data: {text}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def answer(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
    """An OpenAI server that knows one word."""
    if path == "/v1/models":
        payload = b'{"object": "list", "data": [{"id": "parrot"}]}'
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(payload), payload))
        return
    request = json.loads(body)
    assert request["model"] == "parrot"
    assert request["ignore_eos"] is True
    writer.write(STREAMING)
    for _ in range(request["max_tokens"]):
        writer.write(chunk('{"choices": [{"text": "a"}]}'))
        await writer.drain()
    usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": request["max_tokens"]}
    writer.write(chunk(json.dumps({"choices": [], "usage": usage})) + chunk("[DONE]") + b"0\r\n\r\n")


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], str]]:
    """Starts a server with a handler in a thread of its own; returns its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[asyncio.Server] = []

    def start(handler: Handler) -> str:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                    length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
                    await handler(head.split()[1], await reader.readexactly(length), writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(connected, "127.0.0.1", 0), loop).result()
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def stop() -> None:
        for server in servers:
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    yield start
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_load_is_sent_and_counted(serve: Callable[[Handler], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bodies: list[dict[str, list[int]]] = []
    running, most = 0, 0

    async def watch(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal running, most
        bodies.append(json.loads(body or b"{}"))
        running += 1
        most = max(most, running)
        await answer(path, body, writer)
        running -= 1

    load = "--num-prompts 20 --random-input-len 7 --random-output-len 5 --max-concurrency 3 --ignore-eos"
    assert main(["serve", "--base-url", serve(watch), *load.split(), "--json", str(tmp_path / "out.json")]) == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    assert (figures["completed"], figures["failed"]) == (20, 0)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (140, 100)
    assert 0 < figures["median_ttft_ms"] <= figures["median_e2el_ms"] <= 1e3 * figures["duration"]
    assert figures["p99_itl_ms"] >= 0
    assert most <= 3
    prompts = [tuple(body["prompt"]) for body in bodies if "prompt" in body]
    assert len(set(prompts)) == len(prompts) == 21  # one more to warm up, none twice
    assert "20 answered, 0 failed" in capsys.readouterr().out


def test_failures_are_counted_and_named(serve: Callable[[Handler], str], capsys: pytest.CaptureFixture[str]) -> None:
    count = 0

    async def moody(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += path == "/v1/completions"
        if count == 2:
            writer.write(b'HTTP/1.1 429 Too Many\r\ncontent-length: 20\r\n\r\n{"error": "too many"}'[:-1])
        elif count == 3:
            writer.write(STREAMING + chunk('{"choices": [{}]}'))
            writer.transport.abort()
        elif count == 4:
            writer.write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunk('{"error": {"message": "lost"}}') + b"0\r\n\r\n"
            )
        else:
            await answer(path, body, writer)

    flags = "--num-prompts 5 --random-input-len 3 --random-output-len 2 --max-concurrency 1 --ignore-eos --json -"
    assert main(["serve", "--base-url", serve(moody), *flags.split()]) == 1
    captured = capsys.readouterr()
    figures = json.loads(captured.out)
    assert (figures["completed"], figures["failed"], figures["total_output_tokens"]) == (2, 3, 4)
    for reason in ("1 failed: status 429: ", "1 failed: the server closed the connection", "1 failed: lost"):
        assert reason in captured.err


def test_no_server_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--base-url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1 cannot be reached" in capsys.readouterr().err
    assert main(["serve", "--base-url", "127.0.0.1:1"]) == 1
    assert "http://HOST:PORT is wanted" in capsys.readouterr().err
    assert main(["serve", "--num-prompts", "0"]) == 64


def test_figures_by_hand() -> None:
    results = [
        RequestResult(sent=10.0, prompt_tokens=7, output_tokens=3, chunk_times=[10.1, 10.2, 10.4]),
        RequestResult(sent=11.0, prompt_tokens=9, output_tokens=1, chunk_times=[11.3]),
        RequestResult(sent=12.0, prompt_tokens=5, error="gone", chunk_times=[99.0]),
    ]
    figures = summarize(results, duration=2.0, percentiles=[50.0]).as_dict()
    assert (figures["completed"], figures["failed"], figures["total_input_tokens"], figures["total_output_tokens"]) == (2, 1, 16, 4)
    assert (figures["request_throughput"], figures["output_throughput"], figures["total_token_throughput"]) == (1.0, 2.0, 10.0)
    assert figures["mean_ttft_ms"] == pytest.approx(200)
    assert figures["mean_tpot_ms"] == pytest.approx(150)  # of the one request with more than one token
    assert figures["mean_itl_ms"] == pytest.approx(150)
    assert figures["p50_itl_ms"] == pytest.approx(150)
    assert figures["mean_e2el_ms"] == pytest.approx(350)
    assert figures["std_e2el_ms"] == pytest.approx(50)


STREAM = b"".join(
    (
        b": a comment to keep the line open\n\n",
        b'data: {"choices": [{"text": "\xc3\xa9\\n\\n"}], "usage": {"prompt_tokens": 4, "completion_tokens": 1}}\n\n',
        b'data: {"choices": [{"text": ""}]}\r\n\r\n',
        b'data:{"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 9}}\n\n',
        b"data: [DONE]\n\n",
    )
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    result = RequestResult(sent=0.0, prompt_tokens=0)
    heard: list[int] = []
    reader = CompletionReader(result, heard.append)
    bounds = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(bounds):
        reader.feed(STREAM[start:end])
    reader.finish(200)
    assert (result.error, result.prompt_tokens, result.output_tokens, len(result.chunk_times), heard) == ("", 4, 9, 2, [1, 1])


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 200, r"without \[DONE\]"),
        (b"data: [DONE]\n\n", 200, "held no choices"),
        (b"data: {\n\n", 200, "a chunk is no completion"),
        (b'{"error": "no"}', 500, 'status 500: {"error": "no"}'),
    ],
)
def test_bad_streams(body: bytes, status: int, error: str) -> None:
    result = RequestResult(sent=0.0, prompt_tokens=0)
    reader = CompletionReader(result, lambda _: None)
    reader.feed(body)
    reader.finish(status)
    with pytest.raises(RuntimeError, match=error):
        raise RuntimeError(result.error)


@given(st.integers(1, 50), st.integers(1, 40), st.floats(0, 0.9), st.integers(0, 3))
def test_a_load_keeps_to_its_specification_and_repeats(num_prompts: int, length: int, ratio: float, seed: int) -> None:
    spec = LoadSpec(num_prompts, length, length, range_ratio=ratio, request_rate=10.0, token_ids=(5, 9), seed=seed)
    plan = plan_load(spec)
    assert plan == plan_load(spec)
    assert len(plan) == num_prompts
    assert plan[0].at == 0.0
    assert all(before.at <= after.at for before, after in pairwise(plan))
    for planned in plan:
        assert length * (1 - ratio) - 1 <= len(planned.token_ids) <= length * (1 + ratio) + 1
        assert set(planned.token_ids) <= {5, 6, 7, 8}


def test_arrivals_come_at_the_rate_that_was_asked() -> None:
    plan = plan_load(LoadSpec(5000, 1, 1, request_rate=20.0))
    assert plan[-1].at == pytest.approx(5000 / 20.0, rel=0.05)
    assert {planned.at for planned in plan_load(LoadSpec(10, 1, 1))} == {0.0}
