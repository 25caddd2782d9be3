"""GET /metrics: what the engine counts, for Prometheus, under the names that vLLM's dashboards select.

Nobody is asked: the scheduler says where it stands with every pulse, and the frontend counts its own requests as they go.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from frontend.rates import rates
from frontend.server.generation import TextEngine
from frontend.server.measures import Histogram
from protocol.messages import STEP_SIZES, STEP_STAGES, EngineStats, FinishReason, WorkerStats

_LABELS = ("model_name", "engine")
# The label tells workers apart, and, for what frontends measure, these.
_SCHEDULER = "0"  # of what belongs to neither
_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")

# The scheduler's counters that have names of their own here. All others are told by their names there.
_COUNTERS = {
    "prompt_tokens": ("vllm:prompt_tokens", "Tokens of all prompts."),
    "generation_tokens": ("vllm:generation_tokens", "Tokens generated."),
    "preemptions": ("vllm:num_preemptions", "Requests that lost their slot to others."),
    "prefix_cache_queries": ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache."),
    "requests": ("twodeep:requests", "Requests that came to the scheduler."),
    "steps": ("twodeep:steps", "Steps that the devices answered."),
    "prefill_tokens": ("twodeep:prefill_tokens", "Prompt tokens computed."),
    "corrupted_requests": ("vllm:corrupted_requests", "Requests that failed since the model's output was not finite."),
    "discarded_tokens": ("twodeep:discarded_tokens", "Tokens computed behind the end of their requests, and thrown away."),
    "worker_deaths": ("twodeep:worker_deaths", "Workers that ended and were replaced."),
    "hung_workers": ("twodeep:hung_workers", "Workers that were given up since they made no progress."),
}
_BUSY = "scheduler_busy_ns"
_REPLAYS = "replays"


class EngineCollector(Collector):
    """The metrics of one engine, as they are when they are asked for."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._model = engine.config.served_model_names[0]

    def collect(self) -> Iterator[Metric]:
        """Every metric, with its samples."""
        yield from self._workers(self._engine.router.latest_stats.workers)
        yield from self._counters(self._engine.router.latest_stats.counters)
        yield from self._steps(self._engine.router.latest_stats)
        yield from self._restarts()
        yield from self._requests()

    def _workers(self, workers: Iterable[WorkerStats]) -> Iterator[Metric]:
        engine = self._engine
        alive = [worker for worker in workers if worker.alive]
        running = {str(worker.worker): worker.running for worker in workers}
        yield self._gauge("vllm:num_requests_running", "Requests that hold a slot.", running)
        yield self._gauge("vllm:num_requests_waiting", "Requests in line.", {_SCHEDULER: engine.router.latest_stats.waiting})
        yield self._labelled(
            GaugeMetricFamily,
            "vllm:num_requests_waiting_by_reason",
            "Requests in line, by what they wait for: capacity is slots, KV blocks or a worker.",
            "reason",
            {(_SCHEDULER, "capacity"): engine.router.latest_stats.waiting},
        )
        usage = {str(worker.worker): 1 - worker.blocks_free / worker.blocks for worker in alive if worker.blocks}
        yield self._gauge("vllm:kv_cache_usage_perc", "Part of the KV blocks that is held, from 0 to 1.", usage)
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "The KV cache.", labels=(*_LABELS, "block_size", "num_gpu_blocks", "enable_prefix_caching")
        )
        block_size, caches = str(engine.capacity.block_size), str(engine.config.enable_prefix_caching)
        for worker in alive:
            info.add_metric((self._model, str(worker.worker), block_size, str(worker.blocks), caches), 1)
        yield info
        busy = CounterMetricFamily(
            "twodeep:device_busy_seconds",
            "Time that the device took for all steps.",
            labels=_LABELS,
        )
        for worker in alive:
            busy.add_metric((self._model, str(worker.worker)), worker.device_busy_ns * 1e-9)
        yield busy
        between = rates(engine.router.stats_before, engine.router.latest_stats)
        idle = {str(worker.now.worker): worker.idle for worker in between.workers if worker.idle is not None}
        text = "Part of the last pulse's time in which the device had nothing to run, from 0 to 1."
        yield self._gauge("twodeep:device_idle_ratio", text, idle)
        in_flight = {str(worker.worker): worker.in_flight for worker in alive}
        yield self._gauge("twodeep:steps_in_flight", "Steps sent to a worker and not answered.", in_flight)
        yield self._gauge("twodeep:workers_alive", "Workers that serve.", {_SCHEDULER: engine.capacity.workers})
        yield self._gauge("twodeep:workers_wanted", "Workers that should serve.", {_SCHEDULER: engine.config.workers})

    def _counters(self, counters: dict[str, int]) -> Iterator[Metric]:
        for name, (shown, text) in _COUNTERS.items():
            yield self._counter(shown, text, counters.get(name, 0))
        yield self._counter("twodeep:scheduler_busy_seconds", "Time that the scheduler worked.", counters.get(_BUSY, 0) * 1e-9)
        others = CounterMetricFamily("twodeep:scheduler_events", "What else the scheduler counts.", labels=(*_LABELS, "event"))
        for name, value in sorted(counters.items()):
            if name not in _COUNTERS and name not in (_BUSY, _REPLAYS):
                others.add_metric((self._model, _SCHEDULER, name), value)
        yield others
        hits, prompt = counters.get("prefix_cache_hits", 0), counters.get("prompt_tokens", 0)
        yield self._counter("vllm:prompt_tokens_cached", "Prompt tokens found in the prefix cache.", hits)
        sources = {(_SCHEDULER, "local_cache_hit"): hits, (_SCHEDULER, "local_compute"): max(0, prompt - hits)}
        text = "Tokens of all prompts, by where their keys and values came from."
        yield self._labelled(CounterMetricFamily, "vllm:prompt_tokens_by_source", text, "source", sources)
        replays = {
            (_SCHEDULER, "worker lost"): counters.get(_REPLAYS, 0),
            (_SCHEDULER, "scheduler lost"): counters.get("resumed_requests", 0),
            (_SCHEDULER, "preempted"): counters.get("preemptions", 0),
        }
        text = "Requests that went back in line with the tokens that they had, to be computed again."
        yield self._labelled(CounterMetricFamily, "twodeep:replays", text, "cause", replays)

    def _steps(self, stats: EngineStats) -> Iterator[Metric]:
        text = "The host's time of all steps, by stage; divided by twodeep:steps_total: of one."
        stages = zip(STEP_STAGES, stats.stages_ns or (0,) * len(STEP_STAGES), strict=True)
        seconds = {(_SCHEDULER, stage): nanoseconds * 1e-9 for stage, nanoseconds in stages}
        yield self._labelled(CounterMetricFamily, "twodeep:step_stage_seconds", text, "stage", seconds)
        sizes = stats.steps_by_size or (0,) * (len(STEP_SIZES) + 1)
        steps = Histogram("iteration_tokens_total", "Tokens of a step.", tuple(map(float, STEP_SIZES)))
        yield self._histogram(steps, {_SCHEDULER: (list(sizes), stats.step_tokens)})

    def _restarts(self) -> Iterator[Metric]:
        text = "Processes that were started again, by what ended the one before."
        family = CounterMetricFamily("twodeep:process_restarts", text, labels=(*_LABELS, "process", "cause"))
        for process, causes in sorted(self._engine.router.restarts().items()):
            for cause, count in sorted(causes.items()):
                family.add_metric((self._model, _SCHEDULER, process, cause), count)
        yield family

    def _requests(self) -> Iterator[Metric]:
        measured = {str(index): snapshot for index, snapshot in self._engine.router.measured().items()}
        ended = CounterMetricFamily("vllm:request_success", "Requests that ended.", labels=(*_LABELS, "finished_reason"))
        for index, snapshot in measured.items():
            for reason in _REASONS:
                ended.add_metric((self._model, index, reason), snapshot.ended.get(reason, 0))
        yield ended
        ignored = CounterMetricFamily("twodeep:ignored_fields", "Unknown fields of requests.", labels=(*_LABELS, "field"))
        for index, snapshot in measured.items():
            for field, count in sorted(snapshot.ignored.items()):
                ignored.add_metric((self._model, index, field), count)
        yield ignored
        lost = 0 if self._engine.spans is None else self._engine.spans.lost
        yield self._counter("twodeep:spans_lost", "Spans of requests that the collector did not take, of this frontend.", lost)
        number = {index: snapshot.num_open for index, snapshot in measured.items()}
        yield self._gauge("twodeep:requests_open", "Requests accepted and not ended.", number)
        size = {index: snapshot.journal_bytes for index, snapshot in measured.items()}
        yield self._gauge("twodeep:journal_bytes", "Tokens of these requests, as frontends remember them for a replay.", size)
        for position, histogram in enumerate(self._engine.router.measures.histograms):
            yield self._histogram(histogram, {index: snapshot.histograms[position] for index, snapshot in measured.items()})

    def _gauge(self, name: str, text: str, values: dict[str, float] | dict[str, int]) -> Metric:
        family = GaugeMetricFamily(name, text, labels=_LABELS)
        for engine, value in values.items():
            family.add_metric((self._model, engine), value)
        return family

    def _labelled(
        self,
        kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
        name: str,
        text: str,
        label: str,
        values: Mapping[tuple[str, str], float],
    ) -> Metric:
        """With one label more. `values`: by engine and its value."""
        family = kind(name, text, labels=(*_LABELS, label))
        for (engine, value), number in values.items():
            family.add_metric((self._model, engine, value), number)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=_LABELS)
        family.add_metric((self._model, _SCHEDULER), value)
        return family

    def _histogram(self, histogram: Histogram, values: dict[str, tuple[list[int], float]]) -> Metric:
        family = HistogramMetricFamily(f"vllm:{histogram.name}", histogram.text, labels=_LABELS)
        bounds = (*map(str, histogram.bounds), "+Inf")
        for engine, (counts, total) in values.items():
            family.add_metric((self._model, engine), list(zip(bounds, accumulate(counts), strict=True)), total)
        return family


class MetricsRoute:
    """The route, of one engine."""

    def __init__(self, engine: TextEngine) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(EngineCollector(engine))

    async def show(self, request: Request) -> Response:
        """GET /metrics, as text or in OpenMetrics' format where that is asked for."""
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            # With the library's own choice of escaping, the colons in the names of samples are lost.
            text = openmetrics.generate_latest(self.registry, escaping=openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
            return Response(text, media_type=openmetrics.CONTENT_TYPE_LATEST)
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
