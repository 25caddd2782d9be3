"""GET /metrics, as Prometheus reads it."""

import asyncio
import json
import time

import httpx
import msgspec
import pytest
from prometheus_client import generate_latest, parser
from prometheus_client.openmetrics import parser as openmetrics_parser
from starlette.requests import Request

from frontend.server.api.metrics import MetricsRoute
from frontend.server.router import Router
from protocol.messages import STEP_STAGES, EngineStats, WorkerStats
from tests.frontend.server.api.running import RunningEngine

Samples = dict[tuple[str, str], float]  # (name, the label that is neither model nor engine) -> value

_OPENMETRICS = "application/openmetrics-text; version=1.0.0; q=0.9, text/plain; q=0.1"


def _samples(text: str, parse: object = parser.text_string_to_metric_families) -> Samples:
    families = parse(text)  # type: ignore[operator]
    samples: Samples = {}
    for family in families:
        for sample in family.samples:
            assert sample.labels["model_name"] == "demo"
            others = [value for name, value in sample.labels.items() if name not in ("model_name", "engine")]
            samples[sample.name, others[0] if others else ""] = sample.value
    return samples


def _up_to_date(running: RunningEngine) -> None:
    """Returns when the scheduler has said where it stands once more."""

    async def heard(router: Router) -> None:
        before = router.latest_stats
        async with asyncio.timeout(20):
            while router.latest_stats is before:
                await router.stats()  # something to wait for

    running.run(heard(running.engine.router))
    running.run(heard(running.engine.router))


@pytest.fixture
def scraped(http: httpx.Client, running: RunningEngine) -> tuple[Samples, Samples]:
    """Before and after a streamed request, one whole, one ended by a stop string, and one whose client left."""
    running.wait_until_idle()
    _up_to_date(running)
    before = _samples(http.get("/metrics").text)
    ask = {"prompt": "The quick brown fox", "max_tokens": 20, "ignore_eos": True, "seed": 1}
    text = http.post("/v1/completions", json=ask).json()["choices"][0]["text"]
    with http.stream("POST", "/v1/completions", json=ask | {"stream": True}) as response:
        assert sum(line.startswith("data: {") for line in response.iter_lines()) > 1
    stopped = http.post("/v1/completions", json=ask | {"stop": text[10:14]}).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    with http.stream("POST", "/v1/completions", json=ask | {"stream": True, "max_tokens": 8000}) as response:
        json.loads(next(response.iter_lines())[6:])
    running.wait_until_idle()
    _up_to_date(running)
    return before, _samples(http.get("/metrics").text)


def test_the_counts_are_those_of_the_requests(scraped: tuple[Samples, Samples]) -> None:
    before, after = scraped

    def more(name: str, label: str = "") -> float:
        return after[name, label] - before[name, label]

    assert more("vllm:request_success_total", "length") == 2
    assert more("vllm:request_success_total", "stop") == 1
    assert more("vllm:request_success_total", "abort") == 1
    assert more("vllm:request_success_total", "error") == 0
    prompt = more("vllm:prompt_tokens_total") / 4
    assert prompt == int(prompt) > 2
    assert more("vllm:prefix_cache_queries_total") == 4 * prompt
    assert more("vllm:prefix_cache_hits_total") >= 0
    assert more("vllm:generation_tokens_total") > 40
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert more(f"vllm:{name}_seconds_count") == more(f"vllm:{name}_seconds_bucket", "+Inf") == 4
        assert more(f"vllm:{name}_seconds_sum") >= 0
    assert more("vllm:request_prompt_tokens_sum") == 4 * prompt
    tokens = more("vllm:request_generation_tokens_sum")
    assert tokens > 40
    assert more("vllm:inter_token_latency_seconds_count") == pytest.approx(tokens - 4, abs=8)  # the last of those cut off
    parts = [more(f"vllm:request_{part}_time_seconds_sum") for part in ("queue", "prefill", "decode")]
    assert sum(parts) <= more("vllm:e2e_request_latency_seconds_sum") + 1e-6
    steps = more("vllm:iteration_tokens_total_count")
    assert steps == more("vllm:iteration_tokens_total_bucket", "+Inf") == more("twodeep:steps_total")
    computed = more("twodeep:prefill_tokens_total") + more("vllm:generation_tokens_total") + more("twodeep:discarded_tokens_total")
    assert 0 <= computed - more("vllm:iteration_tokens_total_sum") <= 4  # a prompt's last token brings the first of the answer
    assert (after["vllm:num_requests_running", ""], after["vllm:num_requests_waiting", ""]) == (0, 0)
    assert after["vllm:kv_cache_usage_perc", ""] == 0
    assert after["vllm:cache_config_info", "16"] == 1
    assert after["twodeep:workers_alive", ""] == after["twodeep:workers_wanted", ""] == 1
    assert after["twodeep:requests_open", ""] == 0
    assert more("twodeep:discarded_tokens_total") >= 0


def test_both_formats_say_the_same(http: httpx.Client, running: RunningEngine) -> None:
    running.wait_until_idle()
    text = http.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    open_text = http.get("/metrics", headers={"accept": _OPENMETRICS})
    assert open_text.headers["content-type"].startswith("application/openmetrics-text")
    names = {name for name, _ in _samples(text.text)}
    assert names == {name for name, _ in _samples(open_text.text, openmetrics_parser.text_string_to_metric_families)}
    assert {f"vllm:{name}" for name in ("num_requests_running", "kv_cache_usage_perc", "num_preemptions_total")} <= names


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=x", "application/openmetrics-text;version", "*/*", ",;,", ""]
)
def test_any_accept_header_is_answered(http: httpx.Client, accept: str) -> None:
    assert http.get("/metrics", headers={"accept": accept}).status_code == 200


def test_a_scrape_asks_nobody(http: httpx.Client, running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.engine.router._outbox, "send", lambda _: pytest.fail("the scheduler was asked"))
    assert http.get("/metrics").status_code == 200


def test_a_scrape_is_cheap(http: httpx.Client, running: RunningEngine) -> None:
    """Under 5 ms of the event loop: the best of several, since others run on this machine."""
    route = MetricsRoute(running.engine)

    async def seconds() -> float:
        began = time.perf_counter()
        await route.show(Request({"type": "http", "headers": []}))
        return time.perf_counter() - began

    assert min(running.run(seconds()) for _ in range(20)) < 0.005
    assert http.get("/metrics").status_code == 200


def test_a_scrape_without_workers_or_before_anything_was_told(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    router = running.engine.router
    running.wait_until_idle()
    nothing = EngineStats(0, 0, (), {})
    lost = WorkerStats(worker=0, alive=False, running=0, blocks=0, blocks_free=0, steps=0, in_flight=0)
    for stats in (nothing, msgspec.structs.replace(router.latest_stats, workers=(lost,))):
        monkeypatch.setattr(router, "latest_stats", stats)
        samples = _samples(generate_latest(MetricsRoute(running.engine).registry).decode())
        assert samples["vllm:num_requests_waiting", ""] == 0
        assert ("vllm:kv_cache_usage_perc", "") not in samples


def test_the_stages_of_steps_are_added_up(http: httpx.Client, running: RunningEngine) -> None:
    _up_to_date(running)
    before = _samples(http.get("/metrics").text)
    http.post("/v1/completions", json={"prompt": [5] * 3, "max_tokens": 30, "ignore_eos": True})
    running.wait_until_idle()
    _up_to_date(running)
    after = _samples(http.get("/metrics").text)
    for stage in STEP_STAGES:
        grown = after["twodeep:step_stage_seconds_total", stage] - before["twodeep:step_stage_seconds_total", stage]
        assert 0 < grown < 10, stage
    assert 0 <= after["twodeep:device_idle_ratio", ""] <= 1
