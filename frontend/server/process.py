"""The frontend process: binds its sockets, waits for the engine, serves, drains."""

import asyncio
import shutil
import signal
from collections.abc import Coroutine
from pathlib import Path

from frontend.errors import ShuttingDown
from frontend.server.api.app import create_app
from frontend.server.bind import bind_http
from frontend.server.generation import TextEngine
from frontend.server.http.server import HttpServer
from frontend.server.ipc.server import IpcServer
from frontend.server.router import Router
from frontend.server.text.chat import ChatTemplate
from frontend.server.text.tokenizer import load_tokenizer
from protocol.config import ChildSpec
from protocol.messages import Drain, LauncherToChild, Progress, Ready
from protocol.supervision import SupervisionLink


class FrontendProcess:
    """Everything that the frontend runs, on one event loop."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        self._spec = spec
        self._config = spec.config
        self._launcher = launcher
        self._stop = asyncio.Event()  # no new requests
        self._stop_now = asyncio.Event()  # nor the running ones
        self._orphaned = False

    async def run(self) -> None:
        """Serves until the launcher says drain, or is gone, or SIGTERM says at once. Raises EngineError when it cannot boot.

        Whatever ends it, every answer under way ends as an answer: in full, with 503, or with an error event.
        """
        config, loop = self._config, asyncio.get_running_loop()
        loop.add_reader(self._launcher.fileno(), self._on_launcher)
        loop.add_signal_handler(signal.SIGTERM, self._end_now)
        listener = bind_http(config.host, config.port)
        ipc = IpcServer(Path(config.ipc_path), config)
        ipc.bind()
        try:
            self._launcher.send(Progress("loading the tokenizer", 0, 1))
            tokenizer = load_tokenizer(config)
            template = ChatTemplate(tokenizer.chat_template, tokenizer.special.texts)
            router = Router(config, self._spec.run_dir)
            if not await self._first_of(router.start(), self._stop.wait()):
                return
            engine = TextEngine(config, router, tokenizer, template)
            http = HttpServer(create_app(engine, config), listener)
            await http.start()
            await ipc.start(engine)
            host, port = listener.getsockname()[:2]
            self._launcher.send(Ready(self._facts(f"http://{f'[{host}]' if ':' in host else host}:{port}", router)))
            await self._stop.wait()
            http.drain()
            ipc.stop_accepting()
            await self._first_of(router.drain(), self._stop_now.wait(), timeout=config.drain_timeout)
            router.fail_all(ShuttingDown("the engine was shut down before the answer was complete"))
            await asyncio.gather(ipc.finish(), http.finish())
            router.close()
        finally:
            ipc.close()
            listener.close()
            if self._orphaned:  # nobody else is left to do it
                shutil.rmtree(self._spec.run_dir, ignore_errors=True)

    async def _first_of(
        self, work: Coroutine[object, object, object], stop: Coroutine[object, object, object], timeout: float | None = None
    ) -> bool:
        """Waits for the work; False when the stop, or the end of the time, came first."""
        tasks = [asyncio.create_task(work, name="work"), asyncio.create_task(stop, name="stop")]
        done, late = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        for task in done:
            task.result()
        return tasks[0] in done

    def _end_now(self) -> None:
        self._stop.set()
        self._stop_now.set()

    def _on_launcher(self) -> None:
        order = self._launcher.receive()
        if isinstance(order, Drain):
            self._stop.set()
        elif self._launcher.closed:
            self._orphaned = True
            asyncio.get_running_loop().remove_reader(self._launcher.fileno())
            self._end_now()

    def _facts(self, address: str, router: Router) -> dict[str, str | int]:
        capacity = router.capacity
        return {
            "address": address,
            "socket": self._config.ipc_path,
            "model": self._config.served_model_names[0],
            "workers": capacity.workers,
            "device": capacity.device,
            "queue_depth": self._config.queue_depth,
            "kv_cache_tokens": capacity.num_blocks * capacity.block_size,
        }
