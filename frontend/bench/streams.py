"""One streamed completion, read as it arrives."""

from collections.abc import Callable, Iterator

import msgspec

from frontend.bench.http_client import HttpClient, HttpError
from frontend.bench.metrics import RequestResult
from protocol.clock import now


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


_CHUNK = msgspec.json.Decoder(_Chunk)


class Payloads:
    """Splits a body of server-sent events into the payloads of its data lines."""

    def __init__(self) -> None:
        self.rest = b""  # the event that is not complete; the whole body, where it holds none

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes the next bytes of the body, cut anywhere; yields what they complete."""
        *events, self.rest = (self.rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    yield line[5:].strip()


class CompletionReader:
    """Feeds on the pieces of one answer's body; fills in the result."""

    def __init__(self, result: RequestResult, on_tokens: Callable[[int], None]) -> None:
        """`on_tokens` hears of every chunk that brought output (1 a chunk: the exact count comes with the usage, at the end)."""
        self._result = result
        self._on_tokens = on_tokens
        self._payloads = Payloads()
        self._finished = False
        self._usage: _Usage | None = None

    def feed(self, data: bytes) -> None:
        """Takes the next bytes of the body, cut anywhere."""
        arrived = now()
        for payload in self._payloads.feed(data):
            self._take(payload, arrived)

    def finish(self, status: int) -> None:
        """The body is complete: sets the counts, or the error."""
        result = self._result
        if status != 200:
            result.error = f"status {status}: {self._payloads.rest[:300].decode(errors='replace')}"
        elif not result.error and not self._finished:
            result.error = "the stream ended without [DONE]"
        elif not result.error and not result.chunk_times:
            result.error = "the stream held no choices"
        if self._usage is not None:
            result.output_tokens = self._usage.completion_tokens
            result.prompt_tokens = self._usage.prompt_tokens or result.prompt_tokens
        else:
            result.output_tokens = len(result.chunk_times)  # a server that reports no usage sends a token a chunk, we hope

    def _take(self, payload: bytes, arrived: float) -> None:
        if payload == b"[DONE]":
            self._finished = True
            return
        try:
            chunk = _CHUNK.decode(payload)
        except msgspec.DecodeError as error:
            self._result.error = (
                self._result.error or f"a chunk is no completion: {error}: {payload[:100].decode(errors='replace')}"
            )
            return
        if chunk.error is not None:
            self._result.error = chunk.error if isinstance(chunk.error, str) else chunk.error.message or "error"
        if chunk.usage is not None:
            self._usage = chunk.usage
        if chunk.choices:
            self._result.chunk_times.append(arrived)
            self._on_tokens(1)


async def stream_completion(client: HttpClient, body: bytes, prompt_tokens: int, on_tokens: Callable[[int], None]) -> RequestResult:
    """Sends one request to /v1/completions and reads its stream to the end. Errors are in the result, never raised."""
    result = RequestResult(sent=now(), prompt_tokens=prompt_tokens)
    reader = CompletionReader(result, on_tokens)
    try:
        reader.finish(await client.request("POST", "/v1/completions", body, reader.feed))
    except HttpError as error:
        result.error = str(error)
    return result
