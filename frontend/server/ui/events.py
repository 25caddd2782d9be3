"""What the page is told: one event when it begins to watch, and then what is new, ten times a second."""

from collections.abc import Sequence
from importlib.metadata import version

import msgspec
import numpy as np

from frontend.server.generation import TextEngine
from frontend.server.health import health
from protocol.codec import Int64Array
from protocol.messages import EngineStats, TraceRecords, WorkerStats

# Of a step, in this order and rounded to microseconds: the first against the event's `now`, the others against the first.
TIMES = ("scheduled", "sent", "received", "prepared", "dispatched", "started", "finished", "collected", "answered")
_OTHERS = ("worker", "step_id", "num_decodes", "num_prefill_tokens")

_ENCODER = msgspec.json.Encoder()


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What does not change while the engine lives."""

    model: str
    device: str
    version: str
    queue_depth: int
    workers: int  # wanted
    max_model_len: int
    block_size: int
    chats: bool  # else it completes texts only
    columns: Sequence[str] = (*_OTHERS, *TIMES)


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, as of `Counts.at`."""

    alive: bool
    running: int
    blocks: int
    blocks_free: int
    in_flight: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the engine stood at its latest pulse. Counters count since the scheduler started; those of first tokens since the
    frontends did."""

    at: int  # microseconds on the one clock
    waiting: int
    workers: Sequence[Worker]
    generated: int  # tokens
    prefilled: int  # prompt tokens that were computed
    cached: int  # prompt tokens that the prefix cache held
    prompted: int  # prompt tokens that it was asked for
    preemptions: int
    first_tokens: int  # requests that have one
    first_token_seconds: float  # how long all of these waited for it


class Tick(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new."""

    now: int  # microseconds on the one clock
    status: str
    workers: int  # live
    steps: Sequence[Sequence[int]] = ()  # answered since the tick before, a row of `About.columns` each
    missed: int = 0  # how many more there were
    counts: Counts | None = None  # None: as they were


def about(engine: TextEngine) -> bytes:
    """The first event."""
    config, capacity = engine.config, engine.capacity
    told = About(
        model=config.served_model_names[0],
        device=capacity.device,
        version=version("twodeep"),
        queue_depth=config.queue_depth,
        workers=config.workers,
        max_model_len=capacity.max_model_len,
        block_size=capacity.block_size,
        chats=not engine.renderer.fault,
    )
    return _event("engine", told)


def status(engine: TextEngine) -> tuple[str, int]:
    """How the engine is, in a word, and how many of its workers live."""
    state = health(engine)
    return "stalled" if engine.router.is_stalled and state.status != "draining" else state.status, state.workers


def tick(state: tuple[str, int], now_ns: int, records: TraceRecords | None, missed: int, news: Counts | None) -> bytes:
    """One event. `records`: steps that the page has not seen, of which the scheduler had `missed` more."""
    word, workers = state
    rows = () if records is None else step_rows(records, now_ns) or ()
    return _event("tick", Tick(now=now_ns // 1000, status=word, workers=workers, steps=rows, missed=missed, counts=news))


def step_rows(records: TraceRecords, now_ns: int) -> list[list[int]]:
    """Rows of `About.columns`. A step that was answered without some of its times is left out."""
    rows = np.frombuffer(records.rows_i64, "<i8").reshape(-1, len(records.columns))
    of = {name: rows[:, index] for index, name in enumerate(records.columns)}
    times: Int64Array = np.stack([of[f"{name}_ns"] for name in TIMES], axis=1)
    known = (times > 0).all(axis=1)
    times = times[known]
    times[:, 1:] -= times[:, :1]
    times[:, 0] -= now_ns
    others = np.stack([of[name] for name in _OTHERS], axis=1)[known]
    listed: list[list[int]] = np.concatenate([others, (times + 500) // 1000], axis=1).tolist()
    return listed


def counts(engine: TextEngine, stats: EngineStats) -> Counts:
    """Of the scheduler's latest word, and what the frontends have measured."""
    measures = engine.router.measures
    position = measures.histograms.index(measures.first_token)
    first = [snapshot.histograms[position] for snapshot in engine.router.measured().values()]
    told = stats.counters
    return Counts(
        at=stats.now_ns // 1000,
        waiting=stats.waiting,
        workers=[_worker(worker) for worker in stats.workers],
        generated=told.get("generation_tokens", 0),
        prefilled=told.get("prefill_tokens", 0),
        cached=told.get("prefix_cache_hits", 0),
        prompted=told.get("prompt_tokens", 0),
        preemptions=told.get("preemptions", 0),
        first_tokens=sum(sum(buckets) for buckets, _ in first),
        first_token_seconds=sum(seconds for _, seconds in first),
    )


def _worker(stats: WorkerStats) -> Worker:
    return Worker(
        alive=stats.alive,
        running=stats.running,
        blocks=stats.blocks,
        blocks_free=stats.blocks_free,
        in_flight=stats.in_flight,
    )


def _event(name: str, what: msgspec.Struct) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _ENCODER.encode(what))
