"""The source of what pages are told: what it asks, and whom it tells."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from frontend.errors import ShuttingDown
from frontend.server.ui import feed as feed_module
from frontend.server.ui.events import TIMES, step_rows
from frontend.server.ui.feed import Feed, Watcher
from protocol.messages import EngineReady, TraceRecords
from tests.frontend.server.api.running import RunningEngine

COLUMNS = ("worker", "step_id", "num_decodes", "num_prefill_tokens", *(f"{name}_ns" for name in TIMES))


async def next_tick(watcher: Watcher) -> dict[str, Any]:
    name, data = (await anext(watcher)).decode().strip().split("\n")
    assert name in ("event: tick", "event: engine")
    told: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return told if name == "event: tick" else await next_tick(watcher)


def on_feed(running: RunningEngine, test: Callable[[Feed], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            await test(Feed(running.engine))

    running.run(run())


def test_one_question_a_tick_however_many_watch(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    trace = running.engine.router.trace

    async def counted(since: int, most: int) -> TraceRecords:
        asked.append((since, most))
        return await trace(since, most)

    monkeypatch.setattr(running.engine.router, "trace", counted)
    monkeypatch.setattr(feed_module, "_SILENCE_NS", 0)

    async def test(feed: Feed) -> None:
        watchers = [feed.watch() for _ in range(feed_module.MOST_WATCHERS)]
        for _ in range(5):
            told = [await anext(watcher) for watcher in watchers]
            assert all(event is told[0] for event in told) or all(event.startswith(b"event: engine") for event in told)
        assert len(asked) <= 6
        assert asked[0] == (0, 0), "of what was before, only the count"
        assert all(most > 0 for _, most in asked[1:])
        for watcher in watchers:
            feed.leave(watcher)
        assert (feed.num_watchers, feed.runs) == (0, False)

    on_feed(running, test)


def test_nothing_is_done_when_nobody_watches(running: RunningEngine) -> None:
    async def test(feed: Feed) -> None:
        watcher = feed.watch()
        await next_tick(watcher)
        source = feed._source
        assert source is not None and feed.runs
        feed.leave(watcher)
        feed.leave(watcher)
        await asyncio.wait((source,))
        assert not feed.runs and not running.engine.router._queries
        again = feed.watch()
        assert (await next_tick(again))["status"] == "ok"
        feed.leave(again)

    on_feed(running, test)


def test_a_watcher_that_takes_nothing_is_dropped_and_the_others_are_not() -> None:
    async def run() -> None:
        slow, quick = Watcher(b"first"), Watcher(b"first")
        await anext(quick)
        taken = 0
        while slow.tell(b"more"):
            assert quick.tell(b"more")
            assert await anext(quick) == b"more"
            taken += 1
        assert taken == feed_module._MOST_BEHIND - 1
        assert slow.dropped.is_set() and not quick.dropped.is_set()

    asyncio.run(run())


def test_a_loss_of_all_workers_and_their_return_are_told_at_once(running: RunningEngine) -> None:
    router = running.engine.router
    capacity = router.capacity

    def say(workers: int) -> None:
        router._on_message(msgspec.structs.replace(capacity, workers=workers))

    async def test(feed: Feed) -> None:
        watcher = feed.watch()
        assert (await next_tick(watcher))["status"] == "ok"
        say(0)
        while (told := await next_tick(watcher))["status"] == "ok":
            pass
        assert (told["status"], told["workers"]) == ("recovering", 0)
        say(1)
        while (told := await next_tick(watcher))["status"] != "ok":
            assert told["status"] == "recovering"
        feed.leave(watcher)

    try:
        on_feed(running, test)
    finally:
        assert isinstance(capacity, EngineReady)
        running.loop.call_soon_threadsafe(say, 1)


def test_a_scheduler_that_is_silent_is_said_to_be(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: int) -> TraceRecords:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def test(feed: Feed) -> None:
        monkeypatch.setattr(running.engine.router, "trace", never)
        monkeypatch.setattr(type(running.engine.router), "is_stalled", property(lambda _: True))
        watcher = feed.watch()
        assert (await next_tick(watcher))["status"] == "stalled"
        monkeypatch.undo()
        while (await next_tick(watcher))["status"] != "ok":
            pass
        feed.leave(watcher)

    on_feed(running, test)


def test_a_drain_is_told_and_ends_the_stream(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(feed: Feed) -> None:
        watcher = feed.watch()
        await next_tick(watcher)
        monkeypatch.setattr(type(running.engine.router), "draining", property(lambda _: True))
        told = [json.loads(event.split(b"data: ")[1])["status"] async for event in watcher]
        assert told[-1] == "draining"
        with pytest.raises(ShuttingDown):
            feed.watch()
        assert not feed.runs

    on_feed(running, test)


def test_a_fault_of_the_source_ends_the_streams_and_the_next_watcher_has_another(
    running: RunningEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(feed: Feed) -> None:
        watcher = feed.watch()
        with monkeypatch.context() as patch:
            patch.setattr(feed_module, "tick", lambda *_: 1 / 0)
            assert [event async for event in watcher][1:] == []
        assert "the source of the page's events failed" in caplog.text
        watcher = feed.watch()
        assert (await next_tick(watcher))["status"] == "ok"
        feed.leave(watcher)

    on_feed(running, test)


def test_how_many_steps_a_page_misses_is_told(running: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(10, 0), (13, 3), (2000, 5), (2000, 0), (4, 4)]  # recorded in all, of which so many are told

    async def trace(since: int, most: int) -> TraceRecords:
        end, count = answers.pop(0) if answers else (4, 0)
        times = np.arange(1, len(COLUMNS) + 1, dtype="<i8") * 1000
        return TraceRecords(1, COLUMNS, np.tile(times, (count, 1)).tobytes(), end)

    monkeypatch.setattr(running.engine.router, "trace", trace)

    async def test(feed: Feed) -> None:
        watcher = feed.watch()
        told: list[tuple[int, int]] = []
        while answers or sum(steps for steps, _ in told) < 12:
            event = await next_tick(watcher)
            told.append((len(event.get("steps", ())), event.get("missed", 0)))
        assert [one for one in told if one != (0, 0)] == [(3, 0), (5, 1982), (4, 0)]
        feed.leave(watcher)

    on_feed(running, test)


def test_times_are_rounded_microseconds_after_the_steps_own_beginning() -> None:
    rows = np.array([[2, 7, 3, 100, *range(10_400, 19_400, 1000)], [2, 8, 3, 0, 10_400, 0, *[11_000] * 7]], "<i8")
    listed = step_rows(TraceRecords(1, COLUMNS, rows.tobytes(), 2), 1_000_000)
    assert listed == [[2, 7, 3, 100, -990, 1, 2, 3, 4, 5, 6, 7, 8]], "a step without some of its times is left out"
