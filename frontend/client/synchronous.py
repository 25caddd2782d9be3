"""The blocking client."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal

from frontend.client.batch import Batch
from frontend.client.discovery import cannot_connect, find_socket
from frontend.client.outputs import Assembly, RequestOutput
from frontend.client.progress import Progress
from frontend.client.prompts import Messages, Prompt, Prompts, checked, conversation, to_wire
from frontend.client.reports import steps_of
from frontend.client.session import Report, Session
from frontend.errors import DeadlineExceeded, EngineUnavailable, RequestLost
from frontend.trace.steps import Steps
from frontend.wire import Delta, Health, HealthReport, StatsReport, TraceReport, Welcome
from frontend.wire import Prompt as WirePrompt
from protocol.clock import now
from protocol.messages import EngineStats
from protocol.params import SamplingParams

_READ_BYTES = 1 << 18
_QUESTION_SECONDS = 30.0  # an engine that is alive answers in milliseconds


class Handle:
    """A request that was submitted."""

    def __init__(self, client: "Client", assembly: Assembly) -> None:
        self._client = client
        self._assembly = assembly

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once. The client looks for news only while somebody waits."""
        return self._assembly.done

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Waits for the whole answer. Raises DeadlineExceeded after `timeout` seconds, and then the request is aborted."""
        if not self._client._wait(lambda: self._assembly.done, timeout):
            self.cancel()
            raise DeadlineExceeded(f"no answer within {timeout:g} s; the request was aborted")
        return self._assembly.result()

    def cancel(self) -> None:
        """Aborts the request. Idempotent, and without effect on one that has ended."""
        self._client._cancel(self._assembly)


class Client:
    """A connection to a running engine: a context manager, for use by one thread at a time.

    It reads its socket only while one of its methods waits, and then for all requests of the connection.
    """

    def __init__(self, socket_path: str | os.PathLike[str] | None = None, *, connect_timeout: float = 60.0) -> None:
        """Connects; an engine that is still starting is waited for.

        Raises EngineUnavailable, naming the socket, when no engine is there, and DeadlineExceeded when it does not get ready.
        """
        self._path = find_socket(socket_path)
        self._session = Session()
        self._sending = False
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(connect_timeout)
            self._socket.connect(str(self._path))
        except OSError as error:
            self._socket.close()
            raise cannot_connect(self._path, error) from error
        try:
            if not self._wait(lambda: self._session.welcome is not None, connect_timeout):
                raise DeadlineExceeded(f"the engine at {self._path} was not ready within {connect_timeout:g} s")
            if self._session.welcome is None and isinstance(self._session.lost, RequestLost):
                raise EngineUnavailable(f"the engine at {self._path} ended before it was ready")
            self._engine  # noqa: B018 - raises what else went wrong
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; the engine aborts what is under way. Idempotent."""
        self._session.lose(RequestLost("the client is closed"))
        self._socket.close()

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
        self._engine  # noqa: B018 - raises when the connection is lost
        batch = Batch(self._session, prompts, params, lambda: None)
        deadline = None if timeout is None else now() + timeout
        try:
            with Progress(len(batch), shown=progress) as bar:
                finished = 0
                while not batch.done:
                    batch.top_up()
                    if not self._wait(lambda seen=finished: batch.finished > seen, _left(deadline)):  # type: ignore[misc]
                        raise DeadlineExceeded(
                            f"{batch.finished} of {len(batch)} answers within {timeout:g} s; the rest was aborted"
                        )
                    finished = batch.finished
                    bar.update(finished, batch.num_tokens)
            return batch.results()
        finally:
            batch.cancel()
            self._flush()

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
        prompt = conversation(messages, add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message)
        return Handle(self, self._submit(prompt, params)).result(timeout)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> Iterator[Delta]:
        """Yields the answer to a text, token ids or messages piece by piece. Leaving the loop aborts the request."""
        assembly = self._submit(to_wire(prompt), params, stream=True, cache_salt=cache_salt)
        return self._pieces(assembly)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "") -> Handle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return Handle(self, self._submit(to_wire(prompt), params, cache_salt=cache_salt))

    def health(self) -> Health:
        """Whether the engine serves, and how many workers are alive."""
        report = self._ask("health")
        assert isinstance(report, HealthReport)
        return report.health

    def stats(self) -> EngineStats:
        """Queue, workers and counters."""
        report = self._ask("stats")
        assert isinstance(report, StatsReport)
        return report.stats

    def trace(self) -> Steps:
        """The latest steps of all workers, with the time of every stage."""
        report = self._ask("trace")
        assert isinstance(report, TraceReport)
        return steps_of(report)

    @property
    def _engine(self) -> Welcome:
        """What the engine said of itself. Raises what ended the connection."""
        if self._session.lost is not None:
            raise self._session.lost
        assert self._session.welcome is not None
        return self._session.welcome

    def _submit(self, prompt: WirePrompt, params: SamplingParams | None, *, stream: bool = False, cache_salt: str = "") -> Assembly:
        params = checked(params, self._engine.vocab_size)
        assembly = self._session.submit(prompt, params, stream=stream, cache_salt=cache_salt)
        self._flush()
        return assembly

    def _pieces(self, assembly: Assembly) -> Iterator[Delta]:
        try:
            while not assembly.done or assembly.unread:
                self._wait(lambda: bool(assembly.unread) or assembly.done, None)
                while assembly.unread:
                    yield assembly.unread.popleft()
            assembly.result()  # raises what it failed with
        finally:
            self._cancel(assembly)

    def _cancel(self, assembly: Assembly) -> None:
        self._session.cancel(assembly)
        self._flush()

    def _ask(self, what: Literal["health", "stats", "trace"]) -> Report:
        question = self._session.ask(what)
        if not self._wait(lambda: question.done, _QUESTION_SECONDS):
            raise DeadlineExceeded(f"the engine at {self._path} did not answer within {_QUESTION_SECONDS:g} s")
        if question.report is None:
            raise question.error or EngineUnavailable("no answer")
        return question.report

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Reads, for all requests, until the condition holds or the connection is lost; False after `timeout` seconds."""
        deadline = None if timeout is None else now() + timeout
        self._flush()
        while not condition() and self._session.lost is None:
            left = _left(deadline)
            if left is not None and left <= 0:
                return False
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                return False
            except OSError:  # reset: gone without a word
                data = b""
            self._session.feed(data)
        return True

    def _flush(self) -> None:
        if self._sending:  # an iterator was collected, and its request cancelled, in the middle of another flush
            return
        self._sending = True
        try:
            while data := self._session.take_outgoing():
                self._socket.settimeout(None)  # the engine always reads, so this does not wait for long
                self._socket.sendall(data)
        except OSError as error:
            self._session.lose(RequestLost(f"the engine at {self._path} is gone: {error.strerror}"))
        finally:
            self._sending = False


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else deadline - now()
