"""The Python client of a running engine, over its Unix socket.

    with Client() as client:
        print(client.generate("The capital of France is")[0].text)

`Client` blocks and starts no threads: whoever waits reads the socket for all requests of the connection. `AsyncClient` has the
same methods for asyncio.
"""

from frontend.client.async_requests import AsyncHandle, AsyncStream
from frontend.client.asynchronous import AsyncClient
from frontend.client.outputs import CompletionOutput, RequestOutput, Usage
from frontend.client.requests import Handle, Stream
from frontend.client.synchronous import Client
from frontend.errors import DeadlineExceeded, EngineRecovering, EngineUnavailable, InvalidRequest, Overloaded, RequestLost
from frontend.wire import Delta, Health, Logprob
from protocol.errors import EngineError
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
    "EngineRecovering",
    "EngineUnavailable",
    "Handle",
    "Health",
    "InvalidRequest",
    "Logprob",
    "Overloaded",
    "RequestLost",
    "RequestOutput",
    "SamplingParams",
    "Stream",
    "Usage",
]
