"""One answer: asked for, shown while it comes, stopped when the user says so."""

import asyncio

from frontend.client import AsyncClient, Delta, EngineUnavailable, RequestLost, SamplingParams
from frontend.terminal.chat.screen import Screen
from protocol.clock import now

_RECONNECT_SECONDS = 3.0  # an answer goes on in a new frontend process; who types sees that it takes long
_STARTING_SECONDS = 0.5  # a connection takes milliseconds, unless the engine is still starting


class Engine:
    """The connection to an engine: made when it is needed, and anew when the engine was started again."""

    def __init__(self, socket: str | None, screen: Screen) -> None:
        self._socket = socket
        self._screen = screen
        self._client: AsyncClient | None = None

    async def connect(self) -> AsyncClient:
        """A connection that is open. Waits for an engine that is starting. Raises EngineUnavailable when there is none."""
        if self._client is not None:
            try:
                await self._client.health()  # it may have ended while the user typed
                return self._client
            except (EngineUnavailable, RequestLost):
                self.close()
        client = AsyncClient(
            self._socket, connect_timeout=None, reconnect=_RECONNECT_SECONDS
        )  # the user sees that it takes long, and can stop it
        connecting = asyncio.ensure_future(client.connect())
        try:
            await asyncio.wait({connecting}, timeout=_STARTING_SECONDS)
            if not connecting.done():
                self._screen.note("the engine is starting …")
            await connecting
        except BaseException:
            connecting.cancel()
            client.close()
            raise
        self._client = client
        return client

    def close(self) -> None:
        """Hangs up. Idempotent."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def greet(self) -> None:
        """Connects, and tells the user to whom."""
        health = await (await self.connect()).health()
        self._screen.note(f"{health.model} on {health.device}. /help lists the commands, Ctrl-D leaves.")

    async def answer(self, messages: list[dict[str, str]], params: SamplingParams, text: list[str]) -> None:
        """Shows the answer and gathers it in `text`, as far as it comes: a cancelled task aborts the request."""
        asked = now()
        stream = await (await self.connect()).chat(messages, params, stream=True)
        shown = _Figures(asked)
        try:
            async for delta in stream:
                shown.add(delta)
                text.append(delta.text)
                self._screen.write(delta.text)
        finally:
            stream.close()
            if text and not text[-1].endswith("\n"):
                self._screen.write("\n")
        self._screen.note(shown.describe())


class _Figures:
    """How long an answer took."""

    def __init__(self, asked: float) -> None:
        self._asked = asked
        self._first = self._last = asked
        self._num_first = self._num_tokens = 0
        self._cut = False

    def add(self, delta: Delta) -> None:
        self._last = now()
        if not self._num_tokens:
            self._first, self._num_first = self._last, len(delta.token_ids)
        self._num_tokens += len(delta.token_ids)
        self._cut = delta.finish_reason == "length"

    def describe(self) -> str:
        """In one line."""
        rest, seconds = self._num_tokens - self._num_first, self._last - self._first
        rate = f", then {rest / seconds:.0f} tokens/s" if rest and seconds else ""
        cut = "; it was cut off: --max-tokens or the context allows no more" if self._cut else ""
        plural = "s" * (self._num_tokens != 1)
        return f"{self._num_tokens} token{plural}, the first after {self._first - self._asked:.2f} s{rate}{cut}"
