"""`engine-bench control-plane`: the engine's own cost per step, with a device that takes no time."""

import argparse

import msgspec

from frontend.bench.engines import running_engine
from frontend.client import Client, SamplingParams
from protocol.clock import now
from protocol.errors import ExitCode

SUMMARY = "steps per second of the control plane alone: a device that takes no time, offline requests through the Python client"


class Row(msgspec.Struct, frozen=True):
    """The figures of one batch size."""

    running: int
    steps_per_second: float
    ms_per_step: float
    scheduler_busy_us: float  # of the scheduler's process, per step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the measurement."""
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256], metavar="N", help="requests at a time")
    parser.add_argument("--steps", type=int, default=400, help="tokens of each answer")
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="the best of these counts: the first warms up")
    parser.add_argument("--queue-depth", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", default="demo")


def run(options: argparse.Namespace) -> int:
    """Prints a table and one line of JSON."""
    flags = [
        "--model", options.model, "--device", "sim", "--workers", str(options.workers), "--queue-depth", str(options.queue_depth),
        "--max-model-len", "1024", "--sim-decode-us", "0", "--sim-prefill-us-per-token", "0",
    ]  # fmt: skip
    rows = []
    with running_engine(*flags) as engine, engine.client() as client:
        for running in options.running:
            rows.append(min((_round(client, options, running) for _ in range(options.rounds)), key=lambda row: row.ms_per_step))
    _print_table(rows)
    print(msgspec.json.encode({"control_plane": rows}).decode())
    return ExitCode.OK


def _round(client: Client, options: argparse.Namespace, running: int) -> Row:
    prompts = [[100 + i] * options.prompt_tokens for i in range(running)]
    params = SamplingParams(max_tokens=options.steps, temperature=0.0, ignore_eos=True, detokenize=False)
    before, began = client.stats().counters, now()
    client.generate(prompts, params, progress=False)
    seconds, after = now() - began, client.stats().counters
    steps = (after["steps"] - before.get("steps", 0)) / options.workers
    busy_us = (after["scheduler_busy_ns"] - before.get("scheduler_busy_ns", 0)) / 1e3 / (steps * options.workers)
    return Row(running, steps / seconds, seconds / steps * 1e3, busy_us)


def _print_table(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("running", "steps/s", "ms/step", "scheduler µs/step", title="control plane alone")
    for row in rows:
        table.add_row(str(row.running), f"{row.steps_per_second:.0f}", f"{row.ms_per_step:.3f}", f"{row.scheduler_busy_us:.0f}")
    Console().print(table)
