"""A listening socket that outlives engines: handed over as a service manager does it."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from protocol.errors import ExitCode
from tests.integration.launching import LAUNCH, SIMULATED, STOP_LIMIT, Engine, launch, refuse, start

_BODY = {"prompt": [5, 6, 7], "max_tokens": 20, "seed": 1, "ignore_eos": True}


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener


def handed(listener: socket.socket, *, count: str = "1") -> Sequence[str]:
    """The command line of a launcher that gets this socket as descriptor 3, under its own process id."""
    script = f'export LISTEN_FDS={count} LISTEN_PID=$$; exec "$@" 3<&{listener.fileno()}'
    return ("bash", "-c", script, "bash", *LAUNCH)


def test_a_restart_under_load_refuses_nobody(tmp_path: Path) -> None:
    async def one(url: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:  # each its own connection
            return await client.post("/v1/completions", json=_BODY)

    async def load(url: str, stop: asyncio.Event) -> list[httpx.Response]:
        answers = []
        while not stop.is_set():
            answers.append(await one(url))
        return answers

    async def test(listener: socket.socket) -> None:
        stop = asyncio.Event()
        with launch(tmp_path / "a", *SIMULATED, command=handed(listener), pass_fds=[listener.fileno()]) as first:
            assert first.address == f"http://127.0.0.1:{listener.getsockname()[1]}"
            loads = [asyncio.create_task(load(first.address, stop)) for _ in range(8)]
            while not (await one(first.address)).is_success:
                pass
            first.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.process.wait, STOP_LIMIT) == ExitCode.OK, first.said()
            waiting = asyncio.create_task(one(first.address))  # while there is no engine
        async with AsyncExitStack() as stack:
            second = await asyncio.to_thread(
                stack.enter_context, launch(tmp_path / "b", *SIMULATED, command=handed(listener), pass_fds=[listener.fileno()])
            )
            assert second.address == first.address
            answers = [await waiting, await one(second.address)]
            stop.set()
            for answered in await asyncio.gather(*loads):
                answers += answered
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
        assert len(answers) > 10

    with listening() as listener:
        asyncio.run(test(listener))


def test_two_frontends_share_the_socket(tmp_path: Path) -> None:
    with listening() as listener:
        fds = [listener.fileno()]
        with launch(tmp_path, *SIMULATED, "--frontends", "2", command=handed(listener), pass_fds=fds) as engine:
            assert engine.complete([1, 2, 3], max_tokens=2)
            assert all("LISTEN_FDS" not in child.environ() for child in engine.children())
            assert engine.stop() == ExitCode.OK


@pytest.mark.parametrize(
    ("count", "kind", "said"),
    [
        ("2", socket.SOCK_STREAM, "one listening socket is wanted"),
        ("1", socket.SOCK_DGRAM, "is none that listens for TCP"),
        ("many", socket.SOCK_STREAM, "one listening socket is wanted"),
    ],
)
def test_what_cannot_be_listened_on_is_refused(tmp_path: Path, count: str, kind: socket.SocketKind, said: str) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        (tmp_path / "run").mkdir(mode=0o700)
        process = start(tmp_path, *SIMULATED, command=handed(other, count=count), pass_fds=[other.fileno()])
        process.communicate(timeout=STOP_LIMIT)
    assert process.returncode == ExitCode.BAD_CONFIG
    assert said in (tmp_path / "stderr").read_text() and "Traceback" not in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("environ", [{"LISTEN_FDS": "0"}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}])
def test_a_unit_without_sockets_and_sockets_of_others(
    simulated_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    """The port is the engine's own then, as the refusal of one that is taken shows."""
    for name, value in {"LISTEN_PID": str(os.getpid()), **environ}.items():
        monkeypatch.setenv(name, value)
    port = str(httpx.URL(simulated_engine.address).port)
    code, said = refuse(tmp_path, *SIMULATED, "--port", port, "--ipc", str(tmp_path / "run" / "api.sock"))
    assert code == ExitCode.ADDRESS_IN_USE and port in said
