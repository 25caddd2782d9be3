"""The client that blocks: the signatures. What they mean is in `session`."""

import os
from collections.abc import Iterator, Sequence
from types import TracebackType

from frontend.client.blocking_pipe import BlockingPipe
from frontend.client.outputs import RequestOutput
from frontend.client.prompts import Messages, Prompt, Prompts
from frontend.client.requests import StreamedRequest, WholeRequest
from frontend.client.session import CONNECT_SECONDS, QUESTION_SECONDS, Session
from frontend.client.steps import Steps
from frontend.wire import Delta, Health
from protocol.messages import EngineStats
from protocol.params import SamplingParams


class Handle:
    """A request whose whole answer is wanted."""

    def __init__(self, pipe: BlockingPipe, request: WholeRequest) -> None:
        self._pipe = pipe
        self._request = request
        pipe.flush()

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._pipe.look(self._request)

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the whole answer. Raises DeadlineExceeded after `timeout` seconds, and then the request is aborted."""
        return self._pipe.wait(self._request, timeout)

    def cancel(self) -> None:
        """Aborts the request. Idempotent, and without effect on one that has ended."""
        self._request.close()
        self._pipe.send()


class Stream:
    """The answer to a request, piece by piece. The request is aborted when nobody holds the stream any more."""

    def __init__(self, pipe: BlockingPipe, request: StreamedRequest) -> None:
        self._pipe = pipe
        self._request = request
        pipe.flush()

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        if (delta := self._pipe.wait(self._request, None)) is None:
            raise StopIteration
        return delta

    def close(self) -> None:
        """Aborts the request; nothing follows. Idempotent."""
        self._request.close()
        self._pipe.send()

    def __del__(self) -> None:
        self.close()


class Client:
    """A connection to a running engine: a context manager, for use by one thread at a time.

    It reads its socket only while one of its methods waits, and then for all requests of the connection.
    """

    def __init__(
        self, socket_path: str | os.PathLike[str] | None = None, *, connect_timeout: float | None = CONNECT_SECONDS
    ) -> None:
        """Connects to `socket_path` (a path or unix:///path), $ENGINE_SOCKET, or where an engine listens that was not told where.

        An engine that is still starting is waited for. Raises EngineUnavailable, naming the socket, when none is there,
        DeadlineExceeded when it does not get ready, ProtocolError when it is of another version.
        """
        self._session = Session(socket_path)
        self._pipe = BlockingPipe(self._session, connect_timeout)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the engine aborts what is under way. Idempotent."""
        self._pipe.close()

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | None = None,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts: texts or lists of token ids. `progress=None`: a bar if there is a terminal.

        Raises InvalidRequest, Overloaded, RequestLost, or DeadlineExceeded after `timeout` seconds; the rest is then aborted.
        """
        return self._pipe.finish(self._session.generate(prompts, params, progress=progress), timeout)

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        timeout: float | None = None,
    ) -> RequestOutput:
        """The answer to a conversation of {"role", "content"} messages, by the model's own chat template."""
        options = {"add_generation_prompt": add_generation_prompt, "continue_final_message": continue_final_message}
        return self._pipe.finish(self._session.chat(messages, params, **options), timeout)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> Stream:
        """The answer to a text, token ids or messages, piece by piece. Leaving the loop over it aborts the request."""
        return Stream(self._pipe, self._session.stream(prompt, params, cache_salt))

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> Handle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return Handle(self._pipe, self._session.submit(prompt, params, cache_salt))

    def health(self) -> Health:
        """Whether the engine serves, and how many workers are alive."""
        return self._pipe.finish(self._session.health(), QUESTION_SECONDS)

    def stats(self) -> EngineStats:
        """Queue, workers and counters."""
        return self._pipe.finish(self._session.stats(), QUESTION_SECONDS)

    def trace(self) -> Steps:
        """The latest steps of all workers, with the time of every stage."""
        return self._pipe.finish(self._session.trace(), QUESTION_SECONDS)
