"""Spans of requests, as a collector gets them over OTLP."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from frontend.client import Client
from protocol.clock import now
from tests.integration.launching import SIMULATED, launch, wait_for

_TRACE, _PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes spans, and keeps them."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    names = {one.key: one.value.string_value for one in resource.resource.attributes}
                    assert names["service.name"] == "twodeep"
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector")
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@contextmanager
def deaf_collector() -> Iterator[str]:
    """Lets everybody connect, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _value(attribute: Any) -> Any:
    return getattr(attribute.value, attribute.value.WhichOneof("value"))


def test_each_request_is_a_span_of_its_trace_with_its_stages_inside(tmp_path: Path, collector: Collector) -> None:
    with launch(tmp_path, *SIMULATED, "--otlp-traces-endpoint", collector.url) as engine:
        headers = {"traceparent": f"00-{_TRACE}-{_PARENT}-01", "x-request-id": "mine"}
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0.5, "ignore_eos": True}
        httpx.post(engine.address + "/v1/chat/completions", json=body, headers=headers, timeout=30).raise_for_status()
        httpx.get(engine.address + "/health")
        with Client(engine.socket) as client:
            client.generate("Hello", max_tokens=3, ignore_eos=True)
        assert httpx.post(engine.address + "/v1/completions", json={"prompt": "a", "n": 0}).status_code == 400
        assert engine.stop() == 0
    requests = collector.named("llm_request")
    assert len(requests) == 2, "nothing else generates, and what is left is sent at the end"
    chat, own = requests
    attributes = {one.key: _value(one) for one in chat.attributes}
    assert (chat.trace_id.hex(), chat.parent_span_id.hex()) == (_TRACE, _PARENT)
    assert own.trace_id.hex() != _TRACE and not own.parent_span_id
    assert attributes["gen_ai.request.id"] == "mine"
    assert (attributes["gen_ai.usage.completion_tokens"], attributes["gen_ai.request.temperature"]) == (12, 0.5)
    assert attributes["gen_ai.usage.prompt_tokens"] == attributes["gen_ai.usage.input_tokens"] > 1
    assert attributes["http.response.status_code"] == 200
    assert 0 < attributes["gen_ai.latency.time_to_first_token"] < attributes["gen_ai.latency.e2e"]
    inside = [span for span in collector.spans if span.parent_span_id == chat.span_id]
    assert [span.name for span in inside] == ["queue", "prefill", "decode"]
    times = [time for span in inside for time in (span.start_time_unix_nano, span.end_time_unix_nano)]
    assert times == sorted(times)
    assert chat.start_time_unix_nano <= times[0] and times[-1] <= chat.end_time_unix_nano


@pytest.mark.parametrize("kind", ["deaf", pytest.param("gone", marks=pytest.mark.slow)])
def test_a_collector_that_does_not_take_them_holds_up_nobody(tmp_path: Path, kind: str) -> None:
    with deaf_collector() as url:
        endpoint = url if kind == "deaf" else "http://127.0.0.1:9"
        with launch(tmp_path, *SIMULATED, "--otlp-traces-endpoint", endpoint) as engine, Client(engine.socket) as client:
            for _ in range(3):
                assert len(client.generate(["a"] * 50, max_tokens=2)) == 50
            if kind == "gone":
                wait_for(lambda: "spans are lost" in engine.said(), "the remark")
            began = now()
            assert engine.stop() == 0
            assert now() - began < 10
            assert "Traceback" not in engine.said()
            assert engine.said().count("spans are lost") <= 1
