"""The client that blocks: the signatures. What they mean is in `session`."""

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Literal, Unpack, overload

from frontend.client.blocking_pipe import BlockingPipe
from frontend.client.outputs import RequestOutput
from frontend.client.parameters import SamplingFields
from frontend.client.prompts import Messages, Prompt, Prompts, TokenIds, Tools, conversation
from frontend.client.requests import StreamedRequest, WholeRequest
from frontend.client.session import CONNECT_SECONDS, QUESTION_SECONDS, RECONNECT_SECONDS, Session
from frontend.client.steps import Steps
from frontend.errors import InvalidRequest
from frontend.wire import Delta, Health
from protocol.codec import Float32Array
from protocol.messages import EngineStats, Story
from protocol.params import SamplingParams


class Handle:
    """A request whose whole answer is wanted."""

    def __init__(self, pipe: BlockingPipe, request: WholeRequest) -> None:
        self._pipe = pipe
        self._request = request
        pipe.flush()

    def __repr__(self) -> str:
        return f"<Handle {self._request.describe()}>"

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

    def __repr__(self) -> str:
        return f"<Stream {self._request.describe()}>"

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
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        connect_timeout: float | None = CONNECT_SECONDS,
        reconnect: float = RECONNECT_SECONDS,
    ) -> None:
        """Connects to `socket_path` (a path or unix:///path), $ENGINE_SOCKET, or where an engine listens that was not told where.

        An engine that is still starting is waited for. One that goes away while it is needed is waited for too, for `reconnect`
        seconds (0: not at all): what is under way goes on where it stands, without a token lost or repeated, in another frontend
        process, or in another engine that serves the same model at the same path. Raises EngineUnavailable, naming the socket,
        when none is there, DeadlineExceeded when it does not get ready, ProtocolError when it is of another version.
        """
        self._session = Session(socket_path, reconnect)
        self._pipe = BlockingPipe(self._session, connect_timeout)

    def __repr__(self) -> str:
        return f"<Client {self._session.describe()}>"

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
        cache_salt: str = "",
        timeout: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts: texts or lists of token ids. `progress=None`: a bar if there is a terminal.

        Sampling parameters are given as one object for all prompts, as one for each, or by name; what is given by name wins:

            client.generate(["One", "Two"], max_tokens=4, temperature=0)

        Raises InvalidRequest, Overloaded, RequestLost, or DeadlineExceeded after `timeout` seconds; the rest is then aborted.
        """
        batch = self._session.generate(prompts, self._session.merged(params, fields), cache_salt, progress=progress)
        return self._pipe.finish(batch, timeout)

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        cache_salt: str = "",
        timeout: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        cache_salt: str = "",
        timeout: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> Stream: ...

    @overload
    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        stream: bool,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        cache_salt: str = "",
        timeout: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> RequestOutput | Stream: ...

    def chat(
        self,
        messages: Messages,
        params: SamplingParams | None = None,
        *,
        stream: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Tools = (),
        tool_choice: str = "auto",
        parallel_tool_calls: bool = True,
        cache_salt: str = "",
        timeout: float | None = None,
        **fields: Unpack[SamplingFields],
    ) -> RequestOutput | Stream:
        """The answer to a conversation of {"role", "content"} messages, by the model's own chat template.

            print(client.chat([{"role": "user", "content": "Hello"}], max_tokens=20).text)

        With `stream=True` it comes piece by piece, and leaving the loop over it aborts the request:

            for piece in client.chat(messages, stream=True):
                print(piece.text, end="")

        `tools` are functions that the model may call: {"name", "description", "parameters": a JSON schema}, or as OpenAI has it.
        The calls come in `tool_calls`; `tool_choice` is "auto", "none", "required" or the name of one. Where the model thinks
        before it answers, the thoughts come in `reasoning`.

        Raises as `generate`. A stream is no answer that `timeout` could be for.
        """
        prompt = conversation(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
        )
        if not stream:
            return self._pipe.finish(self._session.submit(prompt, self._session.merged(params, fields), cache_salt), timeout)
        if timeout is not None:
            raise InvalidRequest("timeout is for whole answers; close a stream that takes too long", "timeout")
        return Stream(self._pipe, self._session.stream(prompt, self._session.merged(params, fields), cache_salt))

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "", **fields: Unpack[SamplingFields]
    ) -> Stream:
        """The answer to a text, token ids or messages, piece by piece. Leaving the loop over it aborts the request."""
        return Stream(self._pipe, self._session.stream(prompt, self._session.merged(params, fields), cache_salt))

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, *, cache_salt: str = "", **fields: Unpack[SamplingFields]
    ) -> Handle:
        """Sends a request for the answer to a text, token ids or messages, and returns at once."""
        return Handle(self._pipe, self._session.submit(prompt, self._session.merged(params, fields), cache_salt))

    def embed(
        self,
        prompts: Prompts,
        *,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        priority: int = 0,
        cache_salt: str = "",
        timeout: float | None = None,
    ) -> Float32Array:
        """Embeddings of texts or lists of token ids, in their order: float32, shape [prompts, dimensions].

            first, second = client.embed(["A cat sleeps.", "The kitten naps."])
            print(first @ second)

        `dimensions`: fewer numbers, where the model was trained for that. `truncate_prompt_tokens`: how many tokens are left of a
        longer prompt, from its beginning; -1: as many as the context holds. Raises as `generate`.
        """
        batch = self._session.embed(
            prompts,
            dimensions=dimensions,
            truncate_prompt_tokens=truncate_prompt_tokens,
            priority=priority,
            cache_salt=cache_salt,
        )
        return self._pipe.finish(batch, timeout)

    def tokenize(self, prompt: Prompt, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text, or of messages as the model's chat template renders them.

            len(client.tokenize("How long is this?"))

        Raises InvalidRequest on what no context holds.
        """
        question = self._session.tokenize(prompt, add_special_tokens=add_special_tokens)
        return self._pipe.finish(question, QUESTION_SECONDS)

    def detokenize(self, token_ids: TokenIds) -> str:
        """The text of token ids, special tokens included."""
        return self._pipe.finish(self._session.detokenize(token_ids), QUESTION_SECONDS)

    def health(self) -> Health:
        """Whether the engine serves, and how many workers are alive."""
        return self._pipe.finish(self._session.health(), QUESTION_SECONDS)

    def stats(self) -> EngineStats:
        """Queue, workers and counters."""
        return self._pipe.finish(self._session.stats(), QUESTION_SECONDS)

    def trace(self) -> Steps:
        """The latest steps of all workers, with the time of every stage."""
        return self._pipe.finish(self._session.trace(), QUESTION_SECONDS)

    def story(self, request: int | str = "") -> tuple[Story, ...]:
        """How requests came to stand where they stand, oldest first: those that the engine numbered so, or whose HTTP answer had
        this id or x-request-id; with nothing given, the latest. Empty: none that the engine remembers is called so.
        """
        return self._pipe.finish(self._session.story(str(request)), QUESTION_SECONDS)
