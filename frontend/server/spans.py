"""OpenTelemetry: a span for each request of a client, sent to a collector over OTLP and HTTP. Needs the extra `twodeep[otel]`.

Names of attributes are those of vLLM's spans, and of OpenTelemetry's conventions for generative AI where these have others.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from frontend.server.measures import Timeline
from frontend.server.visit import Visit
from protocol.clock import now_ns

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_LOG = logging.getLogger(__name__)

_MOST_WAITING = 4096  # spans of requests that the collector has not taken; later ones are lost, and counted
_SEND_SECONDS = 5.0  # for the collector to take some of them
_GOODBYE_SECONDS = 1.0  # for what is left at the end
_MOST_OUTPUTS = 8  # of a request that have spans of their own
_SECONDS = 1e-9  # of a nanosecond
_FAULT = 500  # statuses from here on


class Spans:
    """Makes spans of requests that have ended, and sends them in batches, on a thread of the library's. It never waits for that."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: the URL that takes them. Raises ImportError without the library."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        owner = self

        class Exporter(SpanExporter):
            def __init__(self) -> None:
                self._inner = OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_SECONDS)

            def export(self, spans: "Sequence[ReadableSpan]") -> SpanExportResult:
                result = SpanExportResult.FAILURE
                try:
                    result = self._inner.export(spans)
                finally:
                    owner._handled += len(spans)
                    if result is not SpanExportResult.SUCCESS:
                        owner._lose(len(spans))
                return result

            def shutdown(self) -> None:
                self._inner.shutdown()  # type: ignore[no-untyped-call]

        for name in ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what they say at every attempt is said here once
        self._endpoint = endpoint
        self.lost = 0  # spans that no collector has
        self._made = self._handled = 0
        resource = Resource.create()  # as the standard variables say
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "twodeep"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(Exporter(), max_queue_size=4 * _MOST_WAITING))
        self._tracer = self._provider.get_tracer("twodeep")
        self._callers = TraceContextTextMapPropagator()

    def record(self, visit: Visit, status: int | None) -> None:
        """The request has ended. `status`: of the answer; None: none was begun."""
        if not visit.outputs:
            return  # nothing was generated
        if self._made - self._handled > _MOST_WAITING:
            self._lose(1)
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        began, now = visit.began_ns, now_ns()
        wall = time.time_ns() - now  # what spans are dated by; durations are those of the one clock
        context = self._callers.extract(visit.trace)
        span = self._tracer.start_span("llm_request", context, SpanKind.SERVER, _attributes(visit, status), start_time=began + wall)
        if span.is_recording():
            self._made += 1
            if (status or 0) >= _FAULT or any(output.reason == "error" for output in visit.outputs):
                span.set_status(Status(StatusCode.ERROR))
            inside = set_span_in_context(span)
            for output in visit.outputs[:_MOST_OUTPUTS]:
                for name, first, last in _stages(output):
                    self._made += 1
                    self._tracer.start_span(name, inside, start_time=first + wall).end(last + wall)
        span.end(now + wall)

    async def close(self) -> None:
        """Sends what is left, for a second at most."""
        done = asyncio.to_thread(self._provider.force_flush, int(_GOODBYE_SECONDS * 1e3))
        await asyncio.wait({asyncio.ensure_future(done)}, timeout=_GOODBYE_SECONDS)

    def _lose(self, count: int) -> None:
        if not self.lost:
            _LOG.warning("spans are lost: %s does not take them", self._endpoint)
        self.lost += count


def _stages(output: Timeline) -> list[tuple[str, int, int]]:
    """What happened to an output, from when to when."""
    if not output.first_ns:
        return []
    admitted = min(output.submitted_ns + output.queue_ns, output.first_ns)
    stages = [("queue", output.submitted_ns, admitted), ("prefill", admitted, output.first_ns)]
    return [*stages, ("decode", output.first_ns, output.last_ns)] if output.last_ns > output.first_ns else stages


def _attributes(visit: Visit, status: int | None) -> dict[str, str | int | float | tuple[str, ...]]:
    prompts = visit.outputs[:: max(1, visit.outputs_per_prompt)]
    prompt_tokens, output_tokens = (
        sum(output.num_prompt_tokens for output in prompts),
        sum(output.num_tokens for output in visit.outputs),
    )
    found: dict[str, str | int | float | tuple[str, ...]] = {
        "gen_ai.response.model": visit.model,
        "gen_ai.request.model": visit.model,
        "gen_ai.request.id": visit.name,
        "gen_ai.operation.name": _operation(visit.what),
        "gen_ai.request.max_tokens": max(output.max_tokens for output in visit.outputs),
        "gen_ai.request.n": visit.outputs_per_prompt,
        "gen_ai.usage.num_sequences": len(visit.outputs),
        "gen_ai.usage.prompt_tokens": prompt_tokens,
        "gen_ai.usage.input_tokens": prompt_tokens,
        "gen_ai.usage.completion_tokens": output_tokens,
        "gen_ai.usage.output_tokens": output_tokens,
        "gen_ai.usage.cache_read.input_tokens": sum(output.num_cached_tokens for output in prompts),
        "gen_ai.response.finish_reasons": tuple(output.reason or "abort" for output in visit.outputs[:_MOST_OUTPUTS]),
        "gen_ai.latency.e2e": (now_ns() - visit.began_ns) * _SECONDS,
        "url.path": visit.what.partition(" ")[2] or visit.what,
        "client.address": visit.client,
    }
    if status is not None:
        found["http.response.status_code"] = status
    if visit.params is not None:
        found |= {"gen_ai.request.temperature": visit.params.temperature, "gen_ai.request.top_p": visit.params.top_p}
    if first := [output for output in visit.outputs if output.first_ns]:
        output = min(first, key=lambda one: one.first_ns)
        queue = output.queue_ns * _SECONDS
        prefill = max(0, output.first_ns - output.submitted_ns - output.queue_ns) * _SECONDS
        decode = (max(one.last_ns for one in first) - output.first_ns) * _SECONDS
        found |= {
            "gen_ai.latency.time_to_first_token": (output.first_ns - visit.began_ns) * _SECONDS,
            "gen_ai.latency.time_in_queue": queue,
            "gen_ai.latency.time_in_model_prefill": prefill,
            "gen_ai.latency.time_in_model_decode": decode,
            "gen_ai.latency.time_in_model_inference": prefill + decode,
        }
    return found


def _operation(what: str) -> str:
    """By OpenTelemetry's names."""
    if "embed" in what:
        return "embeddings"
    return "chat" if "chat" in what or "messages" in what else "text_completion"
