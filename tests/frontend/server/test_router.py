"""The router on real pipes; the test is the scheduler at their other end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from frontend.errors import EngineUnavailable, Overloaded, ShuttingDown
from frontend.server import router as router_module
from frontend.server.router import Router
from frontend.server.token_stream import Generation
from frontend.server.visit import Visit, begin
from protocol.channel import Receiver, Sender
from protocol.clock import now_ns
from protocol.codec import pack_int32, pack_uint64, unpack_int32
from protocol.config import EngineConfig
from protocol.endpoints import SCHEDULER_INBOX, frontend_inbox, ipc_address, session_dir
from protocol.messages import (
    FRONTEND_TO_SCHEDULER,
    AbortRequest,
    AddRequest,
    EngineReady,
    EngineStats,
    Finished,
    FrontendJoined,
    FrontendToScheduler,
    GetStats,
    GetStory,
    Move,
    Pulse,
    Story,
    TokenBatch,
    TopLogprobs,
)
from protocol.params import EngineParams

CONFIG = EngineConfig(model_path="/none", model_format="gguf", served_model_names=("none",))
PROMPT = np.array([1, 2, 3], np.int32)
PARAMS = EngineParams(max_tokens=10)


class Scheduler:
    """The other end."""

    def __init__(self, run_dir: str, session: int = 0) -> None:
        run_dir = session_dir(run_dir, session)
        self._inbox = Receiver(ipc_address(run_dir, SCHEDULER_INBOX), FRONTEND_TO_SCHEDULER, bind=True)
        self._outbox = Sender(ipc_address(run_dir, frontend_inbox(0)), bind=False)
        self._heard: asyncio.Queue[FrontendToScheduler] = asyncio.Queue()
        self._inbox.watch(asyncio.get_running_loop(), self._heard.put_nowait)
        self._steps = 0
        self._lengths: dict[int, int] = {}  # tokens told of each request

    async def hear(self) -> FrontendToScheduler:
        return await asyncio.wait_for(self._heard.get(), 10)

    def say(self, message: object) -> None:
        self._outbox.send(message)

    def tokens(
        self,
        tokens: list[tuple[Generation, int]],
        *finished: Finished,
        cached: dict[int, int] | None = None,
        logprobs: dict[int, TopLogprobs] | None = None,
    ) -> None:
        ids = [generation.request_id for generation, _ in tokens]
        lengths = []
        for request_id in ids:
            self._lengths[request_id] = self._lengths.get(request_id, len(PROMPT)) + 1
            lengths.append(self._lengths[request_id])
        values = pack_int32([token for _, token in tokens])
        self.say(
            TokenBatch(
                0,
                self._steps,
                pack_uint64(ids),
                values,
                finished,
                num_cached_tokens=cached or {},
                lengths_i32=pack_int32(lengths),
                logprobs=logprobs or {},
            )
        )
        self._steps += 1

    def close(self) -> None:
        self._inbox.unwatch(asyncio.get_running_loop())
        self._inbox.close()
        self._outbox.close()


@asynccontextmanager
async def running(run_dir: Path) -> AsyncIterator[tuple[Router, Scheduler]]:
    router, scheduler = Router(CONFIG, str(run_dir)), Scheduler(str(run_dir))
    try:
        scheduler.say(EngineReady(1, 100, 1000, 10, 16, "none"))
        await asyncio.wait_for(router.start(), 10)
        assert await scheduler.hear() == FrontendJoined(0, 0)
        yield router, scheduler
    finally:
        router.close()
        scheduler.close()


def on_pipes(tmp_path: Path, test: Callable[[Router, Scheduler], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(30), running(tmp_path) as (router, scheduler):
            await test(router, scheduler)

    asyncio.run(run())


async def settle(router: Router, scheduler: Scheduler) -> None:
    """Everything that the scheduler said before has arrived."""
    asked = asyncio.ensure_future(router.stats())
    query = await scheduler.hear()
    assert isinstance(query, GetStats)
    scheduler.say(EngineStats(query.query_id, 0, (), {}))
    await asked


def test_a_request_reaches_the_scheduler_and_its_tokens_the_reader(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        generation = router.submit(PROMPT, PARAMS, priority=3, cache_salt="mine")
        added = await scheduler.hear()
        assert isinstance(added, AddRequest)
        assert unpack_int32(added.token_ids_i32).tolist() == [1, 2, 3]
        assert (added.request_id, added.priority, added.stream, added.cache_salt) == (generation.request_id, 3, True, "mine")
        scheduler.tokens([(generation, 7)], cached={generation.request_id: 2})
        first = await anext(generation)
        assert (first.token_ids, first.finish_reason, first.num_cached_tokens) == ([7], None, 2)
        scheduler.tokens([(generation, 8)], Finished(generation.request_id, "stop", stop_token_id=8, num_cached_tokens=2))
        last = await anext(generation)
        assert (last.token_ids, last.finish_reason, last.stop_token_id, last.num_cached_tokens) == ([8], "stop", 8, 2)
        with pytest.raises(StopAsyncIteration):
            await anext(generation)
        assert router.num_requests == 0

    on_pipes(tmp_path, test)


def test_before_it_serves_every_worker_decodes(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        scheduler.say(EngineReady(2, 100, 1000, 10, 16, "none"))
        await settle(router, scheduler)
        trial = asyncio.ensure_future(router.try_out())
        added = [await scheduler.hear() for _ in range(2)]
        assert all(isinstance(one, AddRequest) and one.params.max_tokens == 2 for one in added)
        for one in added:
            assert isinstance(one, AddRequest) and not trial.done()
            scheduler.say(TokenBatch(0, 0, b"", b"", (Finished(one.request_id, "length"),)))
        await trial
        assert not router.measures.ended, "that was nobody's request"

    on_pipes(tmp_path, test)


def test_an_engine_that_cannot_decode_does_not_serve(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        trial = asyncio.ensure_future(router.try_out())
        added = await scheduler.hear()
        assert isinstance(added, AddRequest)
        failed = Finished(added.request_id, "error", message="the model's output was not finite")
        scheduler.say(TokenBatch(0, 0, b"", b"", (failed,)))
        with pytest.raises(EngineUnavailable, match="the first decode failed: the model's output was not finite"):
            await trial

    on_pipes(tmp_path, test)


def test_tokens_merge_while_nobody_reads_and_stay_apart_by_request(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        one, other = router.submit(PROMPT, PARAMS), router.submit(PROMPT, PARAMS)
        assert [isinstance(await scheduler.hear(), AddRequest) for _ in range(2)] == [True, True]
        for token in range(5):
            scheduler.tokens([(other, 100 + token), (one, token)])
        scheduler.tokens([], Finished(one.request_id, "length"))
        await settle(router, scheduler)
        deltas = [delta async for delta in one]
        assert [(delta.token_ids, delta.finish_reason) for delta in deltas] == [([0, 1, 2, 3, 4], "length")]
        assert (await anext(other)).token_ids == [100, 101, 102, 103, 104]

    on_pipes(tmp_path, test)


def test_tokens_with_candidates_come_a_few_at_a_time_and_one_reader_after_the_other(tmp_path: Path) -> None:
    """However many outputs ask for candidates, others wait at the loop for a few tokens' work, not for all of it."""

    async def test(router: Router, scheduler: Scheduler) -> None:
        params = EngineParams(max_tokens=100, logprobs=1)
        generations = [router.submit(PROMPT, params) for _ in range(4)]
        for index in range(40):
            scheduler.tokens(
                [(one, index) for one in generations],
                *([Finished(one.request_id, "length") for one in generations] if index == 39 else []),
                logprobs={one.request_id: TopLogprobs(-float(index), 1, b"", b"") for one in generations},
            )
        await settle_behind(router, scheduler, 4)
        turn, came = 0, []

        async def read(number: int) -> None:
            async for delta in generations[number]:
                came.append((turn, number, delta))

        readers = [asyncio.ensure_future(read(number)) for number in range(4)]
        while not all(reader.done() for reader in readers):
            await asyncio.sleep(0)
            turn += 1
        assert len({at for at, _, _ in came}) == len(came), "two deltas at one turn of the loop"
        assert [number for _, number, _ in came] == [0, 1, 2, 3] * 3, "they do not take turns"
        for number in range(4):
            deltas = [delta for _, other, delta in came if other == number]
            assert [len(delta.token_ids) for delta in deltas] == [16, 16, 8]
            assert [delta.finish_reason for delta in deltas] == [None, None, "length"]
            assert [token for delta in deltas for token in delta.token_ids] == list(range(40))
            assert [found.logprob for delta in deltas for found in delta.logprobs] == [-float(index) for index in range(40)]

    on_pipes(tmp_path, test)


def test_the_tokens_of_a_request_that_does_not_stream_come_with_its_end(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        generation = router.submit(PROMPT, PARAMS, stream=False)
        await scheduler.hear()
        scheduler.tokens([], Finished(generation.request_id, "length", token_ids_i32=pack_int32([4, 5, 6])))
        assert [delta.token_ids async for delta in generation] == [[4, 5, 6]]

    on_pipes(tmp_path, test)


def test_cancelling_tells_the_scheduler_once_and_wakes_the_reader(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        generation = router.submit(PROMPT, PARAMS)
        await scheduler.hear()
        reader = asyncio.ensure_future(anext(generation, None))
        await asyncio.sleep(0)  # it waits
        generation.cancel()
        generation.cancel()
        assert await reader is None
        assert await scheduler.hear() == AbortRequest(generation.request_id)
        scheduler.tokens([(generation, 9)], Finished(generation.request_id, "abort"))
        await settle(router, scheduler)  # hears the question next: there was no second abort
        assert [delta async for delta in generation] == []

    on_pipes(tmp_path, test)


def test_cancelling_after_the_end_says_nothing(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        generation = router.submit(PROMPT, PARAMS)
        await scheduler.hear()
        scheduler.tokens([(generation, 9)], Finished(generation.request_id, "length"))
        await settle(router, scheduler)
        generation.cancel()
        await settle(router, scheduler)
        assert [delta async for delta in generation] == []

    on_pipes(tmp_path, test)


def test_the_number_of_requests_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "_MOST_REQUESTS", 3)

    async def test(router: Router, scheduler: Scheduler) -> None:
        generations = [router.submit(PROMPT, PARAMS) for _ in range(3)]
        with pytest.raises(Overloaded) as refused:
            router.submit(PROMPT, PARAMS)
        assert refused.value.retry_after > 0
        generations[0].cancel()
        router.submit(PROMPT, PARAMS)

    on_pipes(tmp_path, test)


def test_so_many_tokens_of_prompts_are_under_way_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "_MOST_TOKENS", 10)

    async def test(router: Router, scheduler: Scheduler) -> None:
        generations = [router.submit(PROMPT, PARAMS) for _ in range(3)]
        with pytest.raises(Overloaded):
            router.submit(PROMPT, PARAMS)
        router.submit(PROMPT[:1], PARAMS)
        generations[0].cancel()
        generations[0].cancel()
        scheduler.tokens([], Finished(generations[1].request_id, "length"))
        async for _ in generations[1]:
            pass
        for _ in range(2):
            router.submit(PROMPT, PARAMS)
        with pytest.raises(Overloaded):
            router.submit(PROMPT[:1], PARAMS)

    on_pipes(tmp_path, test)


def test_one_client_has_half_of_what_may_be_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "_MOST_REQUESTS", 8)
    monkeypatch.setattr(router_module, "_MOST_TOKENS", 8 * len(PROMPT))

    async def test(router: Router, scheduler: Scheduler) -> None:
        begin(Visit("flood", line=router.new_line()))
        generations = [router.submit(PROMPT, PARAMS) for _ in range(4)]
        with pytest.raises(Overloaded, match="this client"):
            router.submit(PROMPT, PARAMS)
        begin(Visit("other"))
        for _ in range(2):  # is another client, with several outputs
            router.submit(PROMPT, PARAMS)
        begin(Visit("flood", line=generations[0].line))
        generations[0].cancel()
        router.submit(PROMPT[:1], PARAMS)
        with pytest.raises(Overloaded, match="this client"):
            router.submit(PROMPT, PARAMS)

    on_pipes(tmp_path, test)


def test_the_story_of_a_request_is_asked_for_by_its_number(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        asked = asyncio.ensure_future(router.story(17))
        query = await scheduler.hear()
        assert isinstance(query, GetStory)
        assert query.request_id == 17
        told = Story(query.query_id, 17, (Move("new", "waiting", "arrived", 5),), "waiting at the head: no worker lives")
        scheduler.say(told)
        assert await asked == told

    on_pipes(tmp_path, test)


def test_draining_refuses_new_requests_and_waits_for_the_old(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        generation = router.submit(PROMPT, PARAMS)
        await scheduler.hear()
        drained = asyncio.ensure_future(router.drain())
        await settle(router, scheduler)
        with pytest.raises(ShuttingDown):
            router.submit(PROMPT, PARAMS)
        assert not drained.done()
        assert router.draining
        scheduler.tokens([(generation, 9)], Finished(generation.request_id, "length"))
        await drained
        assert [delta.token_ids async for delta in generation] == [[9]]

    on_pipes(tmp_path, test)


def test_a_failure_ends_all_requests_and_questions_behind_the_tokens_that_are_here(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        waiting, written, ended = (router.submit(PROMPT, PARAMS) for _ in range(3))
        for _ in range(3):
            await scheduler.hear()
        reader = asyncio.ensure_future(anext(waiting))
        scheduler.tokens([(written, 7), (ended, 8)], Finished(ended.request_id, "length"))
        await settle(router, scheduler)
        question, drained = asyncio.ensure_future(router.stats()), asyncio.ensure_future(router.drain())
        assert isinstance(await scheduler.hear(), GetStats)
        router.fail_all(EngineUnavailable("gone"))
        for failed in (reader, question):
            with pytest.raises(EngineUnavailable, match="gone"):
                await failed
        await drained
        assert (await anext(written)).token_ids == [7]
        with pytest.raises(EngineUnavailable, match="gone"):
            await anext(written)
        assert [delta.finish_reason async for delta in ended] == ["length"]
        aborted = {await scheduler.hear() for _ in range(2)}
        assert aborted == {AbortRequest(waiting.request_id), AbortRequest(written.request_id)}
        with pytest.raises(EngineUnavailable, match="gone"):
            router.submit(PROMPT, PARAMS)
        with pytest.raises(EngineUnavailable, match="gone"):
            await router.stats()
        with pytest.raises(StopAsyncIteration):
            await anext(waiting)

    on_pipes(tmp_path, test)


def test_capacity_follows_what_the_scheduler_says(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        assert router.capacity.workers == 1
        scheduler.say(EngineReady(0, 100, 1000, 0, 16, "none"))
        await settle(router, scheduler)
        assert router.capacity.workers == 0

    on_pipes(tmp_path, test)


def test_capacity_is_unknown_before_the_start(tmp_path: Path) -> None:
    async def test() -> None:
        router = Router(CONFIG, str(tmp_path))
        with pytest.raises(EngineUnavailable):
            _ = router.capacity
        router.close()

    asyncio.run(test())


def test_when_each_step_was_answered_is_kept_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "_ANSWERED_CAPACITY", 4)

    async def test(router: Router, scheduler: Scheduler) -> None:
        assert router.answered().shape == (0, 3)
        for _ in range(6):
            scheduler.tokens([])
        await settle(router, scheduler)
        answered = router.answered()
        assert answered[:, 1].tolist() == [2, 3, 4, 5]
        assert (np.diff(answered[:, 2]) >= 0).all()

    on_pipes(tmp_path, test)


def test_a_scheduler_that_is_silent_for_too_long_is_not_counted_on_until_it_speaks(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        began = now_ns()

        def tick(seconds: range) -> None:
            for second in seconds:
                router.tick(began + second * 10**9)

        tick(range(1, 5))
        assert not router.is_stalled
        tick(range(5, 8))
        assert router.is_stalled
        with pytest.raises(EngineUnavailable, match="has not answered for 5 s"):
            router.submit(PROMPT, PARAMS)
        with pytest.raises(EngineUnavailable, match="has not answered for 5 s"):
            await router.stats()
        scheduler.say(Pulse("idle", 3))
        while router.is_stalled:
            await asyncio.sleep(0)
        await settle(router, scheduler)
        tick(range(1000, 1001))  # all of us were frozen
        assert not router.is_stalled

    on_pipes(tmp_path, test)


def test_a_question_that_is_not_answered_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "CONFIG", msgspec.structs.replace(CONFIG, pulse_timeout=0.1))

    async def test(router: Router, scheduler: Scheduler) -> None:
        with pytest.raises(EngineUnavailable, match="did not answer within 0.1 s"):
            await router.stats()
        query = await scheduler.hear()
        assert isinstance(query, GetStats)
        scheduler.say(EngineStats(query.query_id, 0, (), {}))  # too late, and no harm
        await settle(router, scheduler)

    on_pipes(tmp_path, test)


def test_another_scheduler_is_told_of_all_that_has_not_ended_with_the_tokens_that_came(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()

    async def test(router: Router, scheduler: Scheduler) -> None:
        ended, aborted, running, quiet = (
            router.submit(PROMPT, PARAMS, priority=2, stream=stream) for stream in (True, True, True, False)
        )
        scheduler.tokens(
            [(running, 7), (ended, 8)], Finished(ended.request_id, "stop", stop_token_id=8), cached={running.request_id: 2}
        )
        await settle_behind(router, scheduler, 4)
        scheduler.tokens([(running, 9)])  # is here, and not read yet, when the news of the scheduler's death comes
        await anext(running)
        asked = asyncio.ensure_future(router.story(running.request_id))
        await asyncio.sleep(0)
        aborted.cancel()
        router.rejoin(1)
        successor = Scheduler(str(tmp_path), 1)
        try:
            assert await successor.hear() == FrontendJoined(0, 0)
            told = [await successor.hear() for _ in range(2)]
            assert [one.request_id for one in told if isinstance(one, AddRequest)] == [running.request_id, quiet.request_id]
            one, other = told
            assert isinstance(one, AddRequest) and isinstance(other, AddRequest)
            known = unpack_int32(one.token_ids_i32).tolist()
            assert known in ([1, 2, 3, 7], [1, 2, 3, 7, 9])
            assert (one.num_prompt_tokens, one.priority, one.stream, other.stream) == (3, 2, True, False)
            question = await successor.hear()
            assert isinstance(question, GetStory)
            successor.say(Story(question.query_id, running.request_id, (), "it runs"))
            assert (await asked).now == "it runs"
            lengths = pack_int32([len(known) + 1])
            late = TokenBatch(0, 0, pack_uint64([running.request_id]), pack_int32([5]), lengths_i32=lengths)
            successor.say(msgspec.structs.replace(late, num_cached_tokens={running.request_id: 0}))
            successor.say(TokenBatch(0, 1, b"", b"", (Finished(running.request_id, "length"),)))
            tokens = known[4:]  # what was not read before
            async for delta in running:
                assert delta.num_cached_tokens == 2, "of the first time"
                tokens += delta.token_ids
            assert tokens[-1] == 5
            assert router.journal.num_resumed == 2
        finally:
            successor.close()

    on_pipes(tmp_path, test)


def test_a_token_that_comes_twice_is_dropped_and_one_that_is_missing_asked_for_again_once(tmp_path: Path) -> None:
    async def test(router: Router, scheduler: Scheduler) -> None:
        generation = router.submit(PROMPT, PARAMS)
        assert isinstance(await scheduler.hear(), AddRequest)

        def say(token: int, length: int, *finished: Finished) -> None:
            ids = pack_uint64([generation.request_id])
            scheduler.say(TokenBatch(0, 0, ids, pack_int32([token]), finished, lengths_i32=pack_int32([length])))

        say(7, 4)
        say(7, 4)
        say(9, 6)
        say(10, 7, Finished(generation.request_id, "length"))
        again = await scheduler.hear()
        assert isinstance(again, AddRequest) and again.again and unpack_int32(again.token_ids_i32).tolist() == [1, 2, 3, 7]
        say(8, 5)
        say(9, 6)
        say(10, 7, Finished(generation.request_id, "length"))
        tokens = []
        async for delta in generation:
            tokens += delta.token_ids
        assert tokens == [7, 8, 9, 10]
        assert router.journal.num_misplaced == 3
        await settle(router, scheduler)  # nothing else was said

    on_pipes(tmp_path, test)


async def settle_behind(router: Router, scheduler: Scheduler, num_messages: int) -> None:
    """The same, behind messages of the router that nobody looks at."""
    for _ in range(num_messages):
        await scheduler.hear()
    await settle(router, scheduler)
