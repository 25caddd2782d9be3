"""Work that is counted in bytes takes turns."""

import asyncio
import random

import pytest

from frontend.server.turns import Alone, OneByOne, Turns
from protocol.clock import now
from tests.frontend.server.http.serving import Served, on_server, post


def test_no_more_is_worked_on_at_a_time_than_may_be() -> None:
    async def run() -> None:
        turns, working, most, order = Turns(100), 0, 0, []
        draw = random.Random(1)

        async def work(number: int, size: int) -> None:
            nonlocal working, most
            await turns.take(size)
            order.append(number)
            working += size
            most = max(most, working)
            await asyncio.sleep(0)
            working -= size
            turns.give(size)

        tasks = [asyncio.ensure_future(work(number, draw.randint(1, 60))) for number in range(500)]
        await asyncio.sleep(0)
        for task in draw.sample(tasks, 100):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert 60 < most <= 100
        assert order == sorted(order)
        await turns.take(1000)  # nobody works: what is larger than all has its turn
        late = asyncio.ensure_future(turns.take(1))
        await asyncio.sleep(0)
        assert not late.done()
        turns.give(1000)
        await late

    asyncio.run(run())


def test_a_large_body_waits_for_the_one_before_and_a_small_one_does_not() -> None:
    async def test(served: Served) -> None:
        large = [await served.connect() for _ in range(3)]
        for client in large:
            client.send(post("/work", b"x" * 1000))
        await served.application.until(lambda: served.application.working == 1)
        await served.until(lambda: served.server.held == 2000)  # bytes that wait are counted as received
        small = await served.connect()
        small.send(post("/echo", b"x" * 10))
        assert (await small.answer()).body == b"POST /echo 10"
        assert served.application.working == 1
        served.application.go.set()
        for client in large:
            assert (await client.answer()).status == 200
        assert served.server.held == 0

    on_server(test, small=100, in_work=1500)


def test_who_waits_for_the_end_of_a_client_works_no_more_on_its_body() -> None:
    async def test(served: Served) -> None:
        clients = [await served.connect() for _ in range(3)]
        for client in clients:
            client.send(post("/hold", b"x" * 1000))
        await served.application.until(lambda: served.application.running == 3)
        served.application.go.set()
        for client in clients:
            assert (await client.answer()).status == 200

    on_server(test, small=100, in_work=1500)


def test_after_work_that_nobody_can_do_anything_beside_others_have_as_long() -> None:
    turns_between: list[int] = []

    async def run() -> None:
        alone, turns = Alone(), 0

        def hold_up() -> None:
            nonlocal turns
            turns_between.append(turns)
            end = now() + 0.05
            while now() < end:
                pass
            turns = 0

        works = [asyncio.ensure_future(alone.run(hold_up)) for _ in range(4)]
        while not all(work.done() for work in works):
            await asyncio.sleep(0)
            turns += 1

    asyncio.run(run())
    assert len(turns_between) == 4
    assert min(turns_between[1:]) > 20, "a request needs some ten turns of the loop"


def test_what_fails_gives_its_turn_on() -> None:
    def fail() -> None:
        raise ValueError("at work")

    async def run() -> None:
        alone = Alone()
        with pytest.raises(ValueError, match="at work"):
            await alone.run(fail)
        assert await alone.run(lambda: 1) == 1

    asyncio.run(run())


def test_of_many_one_goes_on_at_each_turn_of_the_loop() -> None:
    async def run() -> None:
        turns, order, rounds = OneByOne(), [], 0

        async def go(number: int) -> None:
            for _ in range(3):
                await turns.turn()
                order.append((number, rounds))

        tasks = [asyncio.ensure_future(go(number)) for number in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::5]:
            task.cancel()
        while not all(task.done() for task in tasks):
            rounds += 1
            await asyncio.sleep(0)
        assert len({at for _, at in order}) == len(order) == 3 * 40, "two went on in one turn"
        assert [number for number, _ in order[:40]] == [number for number in range(50) if number % 5], "not in their order"

    asyncio.run(run())
