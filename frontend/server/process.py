"""The frontend process: binds its sockets, waits for the engine, serves, drains."""

import asyncio
import shutil
import signal
import socket
from collections.abc import Awaitable
from pathlib import Path

from frontend.errors import ShuttingDown
from frontend.server.api.app import create_app
from frontend.server.api.guard import ApiKeys
from frontend.server.bind import bind_http
from frontend.server.garbage import FullCollections
from frontend.server.generation import TextEngine
from frontend.server.grammars import Grammars
from frontend.server.http.limits import Limits, body_limit
from frontend.server.http.server import HttpServer
from frontend.server.ipc.server import IpcServer
from frontend.server.router import Router
from frontend.server.spans import Spans
from frontend.server.text.rendering.renderer import Renderer
from frontend.server.text.tokenizer import load_tokenizer
from protocol.clock import now, now_ns
from protocol.config import ChildSpec
from protocol.logs import set_level
from protocol.messages import Drain, LauncherToChild, Progress, Pulse, Ready, Reload, SchedulerStarted, Stop
from protocol.supervision import SupervisionLink
from protocol.vocabulary import write_vocabulary

_ARRIVING_SECONDS = 2.0  # at most, for a request to follow the connection that it comes on, and …
_TAKING_SECONDS = 0.25  # … for what came to be read and handed on, before no more is taken


class FrontendProcess:
    """Everything that the frontend runs, on one event loop."""

    def __init__(self, spec: ChildSpec, launcher: SupervisionLink[LauncherToChild]) -> None:
        self._spec = spec
        self._config = spec.config
        self._launcher = launcher
        self._router = Router(spec.config, spec.run_dir, index=spec.index, epoch=spec.epoch, session=spec.session)
        self._api_keys = ApiKeys(spec.config.api_keys, shares_prefixes=spec.config.shared_prefix_cache)
        self._renderer: Renderer | None = None
        self._spans: Spans | None = None
        self._collections: FullCollections | None = None  # from when all is there that stays
        self._stop = asyncio.Event()  # no new requests
        self._stop_now = asyncio.Event()  # nor the running ones
        self._reason = "the engine was shut down before the answer was complete"
        self._grace = Drain().grace
        self._may_return = False  # another engine may take this one's place
        self._orphaned = False

    async def run(self) -> None:
        """Serves until the launcher says drain or stop, or is gone. Raises EngineError when it cannot boot.

        Whatever ends it, every answer under way ends as an answer: in full, with 503, or with an error event.
        """
        config, loop, router = self._config, asyncio.get_running_loop(), self._router
        loop.add_reader(self._launcher.fileno(), self._on_launcher)
        loop.add_signal_handler(signal.SIGTERM, self._stop.set)
        self._beat()
        grammars = Grammars(config, self._spec.run_dir, index=self._spec.index, epoch=self._spec.epoch)
        fd, held = self._spec.http_fd, self._spec.http_outlives
        listener = socket.socket(fileno=fd) if fd >= 0 else bind_http(config.host, config.port, shared=True)
        # A path has one listener: the first frontend's. A successor takes the place of a dead one.
        ipc = IpcServer(Path(config.ipc_path)) if self._spec.index == 0 else None
        if ipc is not None:
            ipc.bind()
        try:
            self._launcher.send(Progress("loading the tokenizer", 0, 1))
            tokenizer = load_tokenizer(config)
            self._renderer = Renderer(tokenizer.chat_template, tokenizer.special.texts)
            vocabulary = asyncio.to_thread(lambda: write_vocabulary(self._spec.run_dir, tokenizer.vocabulary()))
            if not await self._unless(self._stop, asyncio.gather(self._renderer.start(), router.start(), vocabulary)):
                return
            if self._spec.index == self._spec.epoch == 0:
                self._launcher.send(Progress("decoding for the first time", 0, 1))
                if not await self._unless(self._stop, router.try_out()):
                    return
            grammars.start()
            self._spans = Spans(config.otlp_traces_endpoint) if config.otlp_traces_endpoint else None
            engine = TextEngine(config, router, tokenizer, self._renderer, grammars, self._spans)
            limits = Limits(body=body_limit(router.capacity.max_model_len))
            http = HttpServer(create_app(engine, config, self._api_keys), listener, limits, held=held)
            await http.start()
            if ipc is not None:
                await ipc.start(engine)
            self._collections = FullCollections(now())
            host, port = listener.getsockname()[:2]
            self._launcher.send(Ready(self._facts(f"http://{f'[{host}]' if ':' in host else host}:{port}", router)))
            await self._stop.wait()
            await self._end(http, ipc)
        finally:
            router.close()
            grammars.close()
            if self._renderer is not None:
                await self._renderer.close()
            if self._spans is not None:
                await self._spans.close()
            if ipc is not None:
                ipc.close()
            listener.close()
            if self._orphaned:  # nobody else is left to do it
                shutil.rmtree(self._spec.run_dir, ignore_errors=True)

    async def _end(self, http: HttpServer, ipc: IpcServer | None) -> None:
        """Finishes what runs, within the drain timeout; what does not finish ends with an error, and clients may read that."""
        http.drain()
        if ipc is not None:
            ipc.stop_accepting()
        if self._spec.http_outlives:  # those who wait there get an answer of the next engine; who was let in gets one of this
            await self._unless(self._stop_now, http.all_heard(), timeout=_ARRIVING_SECONDS)
            await self._unless(self._stop_now, asyncio.sleep(_TAKING_SECONDS))
        await self._unless(self._stop_now, self._router.drain(), timeout=self._config.drain_timeout)
        if self._may_return and ipc is not None:  # its clients wait for that, and go on where they stand
            ipc.abort()
        self._router.fail_all(ShuttingDown(self._reason))
        servers: list[HttpServer | IpcServer] = [http] if ipc is None else [ipc, http]
        goodbye = asyncio.gather(*(server.finish() for server in servers))
        await self._unless(self._stop_now, asyncio.shield(goodbye), timeout=self._grace)
        if self._stop_now.is_set():
            await asyncio.wait({goodbye}, timeout=self._grace)
        for server in servers:
            server.abort()
        await goodbye

    async def _unless(self, stop: asyncio.Event, work: Awaitable[object], timeout: float | None = None) -> bool:
        """Waits for the work; False when the stop, or the end of the time, came first."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
        done, late = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in done:
            task.result()
        return tasks[0] in done

    def _beat(self) -> None:
        """The pulse of this loop."""
        self._router.tick(now_ns())
        if self._collections is not None:
            self._collections.tick(now())
        self._launcher.flush()
        self._launcher.send(Pulse("serving", self._router.num_messages))
        asyncio.get_running_loop().call_later(self._config.pulse_interval, self._beat)

    def _on_launcher(self) -> None:
        while (order := self._launcher.receive()) is not None:
            match order:
                case Drain(grace):
                    self._grace = grace
                    self._stop.set()
                case Stop(reason, grace, may_return):
                    self._end_now(reason, grace, may_return=may_return)
                case SchedulerStarted(session):
                    self._router.rejoin(session)
                case Reload(api_keys, log_level):
                    self._api_keys.set(api_keys)
                    set_level(log_level)
        if self._launcher.closed:
            self._orphaned = True
            asyncio.get_running_loop().remove_reader(self._launcher.fileno())
            self._end_now("the engine ended before the answer was complete", Stop("").grace, may_return=True)

    def _end_now(self, reason: str, grace: float, *, may_return: bool) -> None:
        self._reason, self._grace, self._may_return = reason, grace, may_return
        self._stop.set()
        self._stop_now.set()

    def _facts(self, address: str, router: Router) -> dict[str, str | int]:
        capacity = router.capacity
        return {
            "address": address,
            "socket": self._config.ipc_path,
            "model": self._config.served_model_names[0],
            "workers": capacity.workers,
            "frontends": self._config.frontends,
            "device": capacity.device,
            "weights": capacity.weights,
            "queue_depth": self._config.queue_depth,
            "kv_cache_tokens": capacity.kv_cache_tokens,
            "kv_block_size": capacity.block_size,
            "kv_cache_dtype": capacity.kv_cache_dtype,
        }
