"""Questions wait while the client does not read, and are dropped with it."""

import asyncio

from frontend.server.ipc.questions import Questions
from frontend.server.ipc.reports import Reports
from frontend.wire import Ask, HealthReport, ServerMessage, StatsReport
from tests.frontend.server.api.running import RunningEngine


def test_nothing_is_found_out_for_a_client_that_does_not_read(running: RunningEngine) -> None:
    async def test() -> None:
        engine, said, may_say = running.engine, list[ServerMessage](), asyncio.Event()

        def say(message: ServerMessage) -> None:
            said.append(message)
            may_say.clear()  # each answer fills the buffer

        questions = Questions(Reports(engine, dict), say, may_say)
        for request_id in (1, 2, 3):
            questions.ask(Ask(request_id, "stats"))
        questions.ask(Ask(4, "health"))
        for number in range(1, 3):
            for _ in range(3):
                await engine.router.stats()  # takes as long as an answer would
            assert [type(message) for message in said] == [HealthReport, StatsReport][:number]
            may_say.set()
            while len(said) == number:
                await engine.router.stats()
        assert questions.close() == [3]
        may_say.set()
        await engine.router.stats()
        assert len(said) == 3

    running.run(test())
