"""The end of a server: what is under way is answered, for a moment, and nobody can hold it up."""

import asyncio

from tests.frontend.server.http.serving import Served, get, on_server, post


def test_while_it_drains_everybody_is_answered_and_nobody_kept() -> None:
    async def test(served: Served) -> None:
        early = await served.connect()
        early.send(get("/echo"))
        assert "connection" not in (await early.answer()).headers
        served.server.drain()
        late = await served.connect()
        for client in (early, late):
            client.send(get("/echo"))
            (answer,) = await client.rest()
            assert (answer.status, answer.headers["connection"]) == (200, "close")

    on_server(test)


def test_answers_under_way_are_written_and_half_requests_refused() -> None:
    async def test(served: Served) -> None:
        idle, running, streaming, sending = [await served.connect() for _ in range(4)]
        running.send(get("/hold"))
        streaming.send(get("/stream"))
        sending.send(post("/echo", b"body")[:-1])
        await served.application.until(lambda: served.application.running == 3)
        finished = asyncio.ensure_future(served.server.finish())
        assert await idle.rest() == []
        (refused,) = await sending.rest()
        assert (refused.status, refused.headers["retry-after"]) == (503, "10")
        served.application.go.set()
        assert [answer.body for answer in await running.rest()] == [b"GET /hold 0"]
        assert [(answer.body, answer.complete) for answer in await streaming.rest()] == [(b"firstlast", True)]
        await finished

    on_server(test, last_words_seconds=20)


def test_clients_that_do_not_read_and_requests_that_do_not_end_are_cut() -> None:
    async def test(served: Served) -> None:
        unread, running = await served.connect(), await served.connect()
        unread.writer.transport.pause_reading()  # type: ignore[attr-defined]
        unread.send(get("/flood"))
        running.send(get("/hold"))
        served.application.go.set()
        await served.until(lambda: any(one.paused for one in served.server.connections))
        served.application.go.clear()
        other = await served.connect()
        other.send(get("/hold"))
        await served.application.until(lambda: "/hold" in served.application.started[-1:])
        await served.server.finish()
        assert not served.server.connections
        assert served.application.running == 0

    on_server(test, last_words_seconds=0.05)
