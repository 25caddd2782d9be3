"""How `engine-top` shows an engine."""

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from frontend.client import Health, Story
from frontend.rates import Rates, WorkerRates
from frontend.terminal.plain import printable

_SECONDS = 1e-9  # of a nanosecond
_BAR = 12  # columns
_TOLD = ("preemptions", "discarded_tokens", "worker_deaths", "culprits", "malformed_frames", "failed_programs")
_STYLES = {"ok": "green", "degraded": "yellow", "recovering": "red", "draining": "yellow"}


def picture(health: Health, rates: Rates, counters: Mapping[str, int], stories: Sequence[Story]) -> RenderableType:
    """All of it: the engine, its workers, and what its latest requests did. `stories`: oldest first."""
    parts: list[RenderableType] = [_engine(health, rates), "", _workers(rates.workers)]
    if told := [f"{name.replace('_', ' ')} {counters[name]:,}" for name in _TOLD if counters.get(name)]:
        parts += ["", Text(", ".join(told), style="dim")]
    if stories:
        parts += ["", _requests(stories)]
    return Group(*parts)


def _engine(health: Health, rates: Rates) -> RenderableType:
    head = Text.assemble(
        (printable(health.model), "bold"),
        f" on {printable(health.device)}  ",
        (health.status, _STYLES[health.status]),
        f", {health.workers} of {health.workers_wanted} workers, depth {health.queue_depth}",
    )
    cached = "" if rates.cached is None else f", {100 * rates.cached:.0f} % of the prompts cached"
    work = f"{rates.running} run, {rates.waiting} wait   {rates.generated:,.0f} tokens/s"
    return Group(head, f"{work}, and {rates.prefilled:,.0f} of prompts{cached}")


def _workers(workers: Sequence[WorkerRates]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("worker")
    for title in ("requests", "steps/s", "in flight", "device idle"):
        table.add_column(title, justify="right")
    table.add_column("KV blocks held")
    table.add_column("")
    for worker in workers:
        now = worker.now
        if not now.alive:
            table.add_row(str(now.worker), Text("not there", style="red"))
            continue
        held = now.blocks - now.blocks_free
        idle = "" if worker.idle is None else f"{100 * worker.idle:.1f} %"
        bar = ProgressBar(total=max(now.blocks, 1), completed=held, width=_BAR)
        row = (str(now.worker), str(now.running), f"{worker.steps:,.0f}", str(now.in_flight), idle)
        table.add_row(*row, bar, f"{held:,} of {now.blocks:,}")
    return table


def _requests(stories: Sequence[Story]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("request", justify="right", no_wrap=True)
    table.add_column("name", no_wrap=True, max_width=24)
    table.add_column("latest change", no_wrap=True)
    table.add_column("ago", justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True, ratio=1)  # takes what width is left, and is cut there
    for story in reversed(stories):
        last = story.moves[-1]
        why = last.cause if last.after == "finished" else story.now
        ago = f"{(story.now_ns - last.at_ns) * _SECONDS:.1f} s"
        table.add_row(str(story.request_id), printable(story.name), last.after, ago, printable(why))
    return table
