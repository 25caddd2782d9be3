"""`engine-bench overlap`: what asynchronous scheduling gains, against a device whose time is known exactly."""

import argparse
import asyncio
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import msgspec
import numpy as np
import uvloop

from frontend.bench.engines import RunningEngine, running_engine
from frontend.bench.http_client import HttpClient
from frontend.bench.load import LoadSpec, plan_load
from frontend.bench.metrics import RequestResult
from frontend.bench.stand_in import FLAGS as STAND_IN_FLAGS
from frontend.bench.stand_in import write_stand_in
from frontend.bench.streams import stream_completion
from frontend.bench.trace.stages import StageTimes, idle_share, stage_times
from frontend.bench.watchers import watching
from frontend.client.steps import Steps
from protocol.aot_report import AotReport, read_report
from protocol.clock import now, now_ns
from protocol.errors import ConfigError, EngineError, ExitCode
from protocol.model_sizes import ModelSizes

_CONCURRENCY = [3, 32, 64, 256]
_TIMES = {"sim_decode_us": 2000.0, "sim_decode_us_per_seq": 0.0, "sim_prefill_us_per_token": 0.0}
_NICENESS = 10  # the clients stand for other machines: they must not take the engine's time

# A list that goes on for longer than any output of a benchmark: keys and braces that are certain, strings, numbers and choices.
_SCHEMA = {
    "type": "array",
    "minItems": 200,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "role": {"enum": ["reader", "writer", "administrator"]},
            "active": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        },
        "required": ["name", "age", "role", "active", "tags"],
        "additionalProperties": False,
    },
}

_WIDE = 110  # columns at least, so that nothing is cut
SUMMARY = "compare queue depths on the simulated device, streaming over HTTP"


class Run(msgspec.Struct, frozen=True):
    """The figures of one load at one depth."""

    concurrency: int
    depth: int
    structured: float  # share of the requests whose output follows a JSON schema
    requests_per_second: float
    idle_share: float  # of the device, while there is work
    device_us: float  # of a step, mean
    step_us: float  # wall time of a step, mean
    scheduler_us: float
    pipe_us: float
    worker_us: float
    steps: int
    chip: str = ""  # of the report that the device took its times from


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The load of the project's first measurement, by default."""
    parser.add_argument("--num-prompts", type=int, default=200, metavar="N")
    parser.add_argument("--random-input-len", type=int, default=230, metavar="TOKENS")
    parser.add_argument("--random-output-len", type=int, default=120, metavar="TOKENS")
    parser.add_argument("--concurrency", type=int, nargs="+", metavar="N", help="(3 32 64 256; with a report 3)")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2], metavar="D")
    parser.add_argument(
        "--structured",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="SHARE",
        help="of the requests, follow a JSON schema (default: 0)",
    )
    parser.add_argument(
        "--sim-report",
        nargs="+",
        default=[],
        metavar="FILE",
        help="of engine-aot --json: steps take as long as on the chip that it is of; several are compared",
    )
    parser.add_argument("--sim-decode-us", type=float, metavar="US", help="(2000)")
    parser.add_argument("--sim-decode-us-per-seq", type=float, metavar="US", help="(0)")
    parser.add_argument("--sim-prefill-us-per-token", type=float, metavar="US", help="(0: every step takes the decode time)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--watchers",
        type=int,
        default=0,
        metavar="N",
        help="pages that watch meanwhile, with /metrics scraped once a second: what that costs (default: 0)",
    )
    parser.add_argument("--model", help="(demo; with a report: one of its sizes, with a tokenizer that is made up)")


def run(options: argparse.Namespace) -> int:
    """Prints a table and one line of JSON. Returns 0 when every request was answered."""
    loads = options.concurrency or (_CONCURRENCY[:1] if options.sim_report else _CONCURRENCY)
    if min(loads) < 1 or options.num_prompts < 1:
        raise ConfigError("--concurrency and --num-prompts of at least 1 are wanted")
    if options.sim_report and any(getattr(options, name) is not None for name in _TIMES):
        raise ConfigError("--sim-report says how long steps take: leave the other --sim-… flags out")
    if options.watchers < 0:
        raise ConfigError("--watchers of at least 0 is wanted")
    if not all(0 <= share <= 1 for share in options.structured):
        raise ConfigError("--structured is a share of the requests, between 0 and 1")
    runs = []
    for device in _devices(options):
        with device as (chip, flags):
            for concurrency in loads:
                for depth in options.depths:
                    for share in options.structured:
                        count = max(options.num_prompts, 4 * concurrency)  # enough waves for a steady state
                        spec = LoadSpec(count, options.random_input_len, options.random_output_len)
                        engine = ["--device", "sim", "--workers", str(options.workers), *flags]
                        run = measure(engine, spec, concurrency, depth, share, options.watchers)
                        runs.append(msgspec.structs.replace(run, chip=chip))
    _print_table(runs)
    figures = {"overlap": runs, "ratios": _ratios(runs), "structured_ratios": _structured_ratios(runs)}
    print(msgspec.json.encode(figures).decode())
    return ExitCode.OK


_Device = tuple[str, list[str]]  # the chip that it is, if any, and the flags of an engine on it


def _devices(options: argparse.Namespace) -> list[AbstractContextManager[_Device]]:
    """Those that are compared."""
    if options.sim_report:
        return [_chip(path, options.model) for path in options.sim_report]
    times = [
        word
        for name, default in _TIMES.items()
        for word in (f"--{name.replace('_', '-')}", str(default if getattr(options, name) is None else getattr(options, name)))
    ]
    sizes = ["--max-num-seqs", "256", "--max-num-batched-tokens", "512"]
    return [nullcontext(("", ["--model", options.model or "demo", *sizes, *times]))]


@contextmanager
def _chip(path: str, model: str | None) -> Iterator[_Device]:
    """Of a report, with a model of its sizes unless there is one."""
    report = read_report(path, "--sim-report")
    with tempfile.TemporaryDirectory(prefix="engine-bench-") as directory:
        named = ["--model", model] if model else ["--model", str(_stand_in(Path(directory), path, report)), *STAND_IN_FLAGS]
        yield report.topology, [*named, "--sim-report", path]


def _stand_in(directory: Path, path: str, report: AotReport) -> Path:
    sizes = ModelSizes.parse(report.model_digest)
    if sizes is None:
        raise ConfigError(f"--sim-report {path}: model_digest {report.model_digest!r} says no sizes: name the --model")
    return write_stand_in(directory, sizes, report.max_model_len)


def measure(device: list[str], spec: LoadSpec, concurrency: int, depth: int, share: float = 0.0, watchers: int = 0) -> Run:
    """One load at one depth, on an engine of its own with the flags `device`. share: of structured requests.

    Raises EngineError when a request fails.
    """
    with running_engine("--queue-depth", str(depth), "--no-enable-prefix-caching", *device) as engine:
        began_ns = now_ns()
        with ThreadPoolExecutor(1, thread_name_prefix="clients") as clients:
            results, seconds = clients.submit(_run_load, engine, spec, concurrency, share, watchers).result()
        with engine.client() as client:
            steps = client.trace()
    if failed := [result.error for result in results if result.error]:
        raise EngineError(f"{len(failed)} of {spec.num_prompts} requests failed, the first with: {failed[0]}")
    return _figures(steps.where(steps["scheduled_ns"] > began_ns), (concurrency, depth, share), spec.num_prompts / seconds)


def _run_load(
    engine: RunningEngine, spec: LoadSpec, concurrency: int, share: float, watchers: int
) -> tuple[list[RequestResult], float]:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)  # of this thread; the next engine must not inherit it
    return uvloop.run(_watched_load(engine, spec, concurrency, share, watchers))


async def _watched_load(
    engine: RunningEngine, spec: LoadSpec, concurrency: int, share: float, watchers: int
) -> tuple[list[RequestResult], float]:
    async with watching(engine.base_url, watchers):
        return await _load(engine, spec, concurrency, share)


async def _load(engine: RunningEngine, spec: LoadSpec, concurrency: int, share: float) -> tuple[list[RequestResult], float]:
    client, gate = HttpClient(engine.base_url), asyncio.Semaphore(concurrency)

    async def send(token_ids: list[int], max_tokens: int, *, structured: bool) -> RequestResult:
        fields = {"prompt": token_ids, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        if structured:
            fields["structured_outputs"] = {"json": _SCHEMA}
        async with gate:
            return await stream_completion(client, msgspec.json.encode(fields), len(token_ids), lambda _: None)

    try:
        await send([1], 1, structured=True)  # answered when the grammar process is there: its start takes processor time
        began = now()
        planned = enumerate(plan_load(spec))
        results = await asyncio.gather(
            *(
                # spread evenly
                send(request.token_ids, request.max_tokens, structured=int((index + 1) * share) > int(index * share))
                for index, request in planned
            )
        )
        return results, now() - began
    finally:
        client.close()


def _figures(steps: Steps, load: tuple[int, int, float], rate: float) -> Run:
    # The ramps at both ends have fewer requests than the load is named after.
    lowest, highest = np.percentile(steps["started_ns"], [2, 98])
    steady = steps.where((steps["started_ns"] >= lowest) & (steps["started_ns"] <= highest))
    stages: StageTimes = stage_times(steady)
    span = float(steady["finished_ns"].max() - steady["started_ns"].min())
    concurrency, depth, share = load
    return Run(
        concurrency=concurrency,
        depth=depth,
        structured=share,
        requests_per_second=rate,
        idle_share=idle_share(steady),
        device_us=float((steady["finished_ns"] - steady["started_ns"]).mean()) / 1e3,
        step_us=span / len(steady) * len(steady.workers) / 1e3,
        scheduler_us=stages.scheduler,
        pipe_us=stages.pipe,
        worker_us=stages.worker,
        steps=len(steps),
    )


def _ratios(runs: list[Run]) -> dict[str, float]:
    """Requests per second at the greatest depth over the least, by load."""
    ratios = {}
    for chip, concurrency in dict.fromkeys((run.chip, run.concurrency) for run in runs):
        own = [run for run in runs if (run.chip, run.concurrency, run.structured) == (chip, concurrency, runs[0].structured)]
        own.sort(key=lambda run: run.depth)
        ratios[f"{chip} {concurrency}".strip()] = own[-1].requests_per_second / own[0].requests_per_second
    return ratios


def _structured_ratios(runs: list[Run]) -> dict[str, float]:
    """Requests per second with each share of structured requests over those with the first share, by load."""
    ratios = {}
    for run in runs:
        load = (run.chip, run.concurrency, run.depth)
        first = next(one for one in runs if (one.chip, one.concurrency, one.depth) == load)
        if run is not first:
            ratios[f"{f'{run.chip} {run.concurrency}'.strip()} at depth {run.depth}, {run.structured:g}"] = (
                run.requests_per_second / first.requests_per_second
            )
    return ratios


def _print_table(runs: list[Run]) -> None:
    from rich.console import Console
    from rich.table import Table

    structured = any(run.structured for run in runs)
    columns = (
        *(["chip"] if runs[0].chip else []),
        "at a time",
        "depth",
        *(["structured"] if structured else []),
        "req/s",
        "device idle",
        "device µs",
        "step µs",
        "scheduler µs",
        "pipe µs",
        "worker µs",
    )
    table = Table(*columns, title="simulated device, tokens streamed over HTTP; µs are per step")
    for run in runs:
        table.add_row(
            *([run.chip] if run.chip else []),
            str(run.concurrency),
            str(run.depth),
            *([f"{run.structured:g}"] if structured else []),
            f"{run.requests_per_second:.2f}",
            f"{100 * run.idle_share:.1f} %",
            *(f"{value:.0f}" for value in (run.device_us, run.step_us, run.scheduler_us, run.pipe_us, run.worker_us)),
        )
    console = Console()
    console.width = max(console.width, _WIDE)
    console.print(table)
    for concurrency, ratio in _ratios(runs).items():
        console.print(f"{concurrency} at a time: {ratio:.2f}×")
    for load, ratio in _structured_ratios(runs).items():
        console.print(f"{load} structured: {100 * ratio:.1f} % of the requests/s")
