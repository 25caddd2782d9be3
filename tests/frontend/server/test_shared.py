"""However many ask, two are under way, and no answer is older than its question."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from frontend.server.shared import Shared


class Oracle:
    """Answers with how often it was asked, when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_answer = asyncio.Event()

    async def find_out(self) -> int:
        self.begun += 1
        number = self.begun
        await self.may_answer.wait()
        if number == 3:
            raise ValueError("the third is one too many")
        return number


def with_oracle(test: Callable[[Oracle, Shared[int]], Awaitable[None]]) -> None:
    async def run() -> None:
        oracle = Oracle()
        await test(oracle, Shared(oracle.find_out))

    asyncio.run(run())


def test_those_who_ask_together_share_an_answer_and_those_who_come_later_get_a_later_one() -> None:
    async def test(oracle: Oracle, shared: Shared[int]) -> None:
        first = [asyncio.ensure_future(shared.get()) for _ in range(10)]
        while not oracle.begun:
            await asyncio.sleep(0)
        later = [asyncio.ensure_future(shared.get()) for _ in range(1000)]
        await asyncio.sleep(0)
        assert oracle.begun == 1
        oracle.may_answer.set()
        assert await asyncio.gather(*first) == [1] * 10
        assert await asyncio.gather(*later) == [2] * 1000

    with_oracle(test)


def test_who_leaves_does_not_take_the_answer_away_and_an_error_is_everybodys() -> None:
    async def test(oracle: Oracle, shared: Shared[int]) -> None:
        leaver, stayer = (asyncio.ensure_future(shared.get()) for _ in range(2))
        while not oracle.begun:
            await asyncio.sleep(0)
        leaver.cancel()
        oracle.may_answer.set()
        assert await stayer == 1
        assert await shared.get() == 2
        for asking in [asyncio.ensure_future(shared.get()) for _ in range(2)]:
            with pytest.raises(ValueError, match="third"):
                await asking
        assert await shared.get() == 4

    with_oracle(test)
