"""The Python client of a running engine, over its Unix socket.

    with Client() as client:
        print(client.generate("The capital of France is")[0].text)

`Client` blocks and starts no threads: whoever waits reads the socket for all requests of the connection. `AsyncClient` has the
same methods for asyncio.
"""

from frontend.client.asynchronous import AsyncClient, AsyncHandle, AsyncStream
from frontend.client.blocking import Client, Handle, Stream
from frontend.client.outputs import CompletionOutput, RequestOutput, Usage
from frontend.errors import DeadlineExceeded, EngineUnavailable, InvalidRequest, Overloaded, RequestLost
from frontend.wire import Delta, Health, Logprob, ToolCall
from protocol.errors import EngineError
from protocol.messages import Move, Story
from protocol.params import SamplingParams

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "AsyncStream",
    "Client",
    "CompletionOutput",
    "DeadlineExceeded",
    "Delta",
    "EngineError",
    "EngineUnavailable",
    "Handle",
    "Health",
    "InvalidRequest",
    "Logprob",
    "Move",
    "Overloaded",
    "RequestLost",
    "RequestOutput",
    "SamplingParams",
    "Story",
    "Stream",
    "ToolCall",
    "Usage",
]
