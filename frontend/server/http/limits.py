"""What strangers may take of the server, and why so much."""

import resource
from dataclasses import dataclass, field

MAX_BODY = 16 << 20  # bytes: the longest prompts, as lists of token ids, take a few MiB
_BODY_BESIDES = 2 << 20  # bytes for all that is not the prompt: tools, schemas, several prompts
_BODY_PER_TOKEN = 256  # of context: a token is six bytes as a number, seldom more than ten as text, and prompts may be several

_DESCRIPTORS_KEPT = 256  # for Python clients, pipes, files and the connections that are about to be turned away
_MOST_CONNECTIONS = 16_384  # as many as the engine takes requests


def body_limit(max_model_len: int) -> int:
    """Bytes that a body may have where a context has that many tokens: more could not be used."""
    return min(MAX_BODY, _BODY_BESIDES + _BODY_PER_TOKEN * max_model_len)


def most_connections() -> int:
    """As many as this process's limit of descriptors leaves room for."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MOST_CONNECTIONS, max(descriptors - _DESCRIPTORS_KEPT, descriptors // 2))


def raise_descriptor_limit() -> None:
    """Lets this process have as many descriptors as the system allows it; 1024 is what many a shell hands down."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True)
class Limits:
    """Bounds of one server. Bytes, seconds, and connections at a time."""

    head: int = 64 << 10  # bytes of request line, headers, chunk extensions and trailers together
    body: int = MAX_BODY
    received: int = 256 << 20  # bytes of all connections together that the application has not taken yet
    small: int = 16 << 10  # bytes of a body that is worked on at once
    in_work: int = (
        32 << 20
    )  # bytes of larger bodies that the application works on at a time: decoded, they take up to ten times more
    pipelined: int = 256 << 10  # bytes behind the request under way: one read of the event loop
    head_seconds: float = 30.0  # for a head, from the first byte, or from the connection on
    body_seconds: float = 30.0  # for a body, from its head on
    # Between two requests. A server that hangs up before its client does loses the request that crosses it, so this is longer than
    # what clients keep: httpx 5 s, aiohttp 15 s, nginx and AWS's balancer 60 s, Go 90 s, Google's balancer 600 s. It costs little:
    # where connections run short, the one that is idle longest makes room.
    keep_alive_seconds: float = 620.0
    linger_seconds: float = 5.0  # after the last answer, for the client to read it and to hang up
    silent_seconds: float = 120.0  # of a client that reads none of its answer, or of a host that does not acknowledge
    probe_seconds: float = 0.5  # from the end of the client's bytes to the first look whether it still reads
    last_words_seconds: float = 2.0  # for all answers to be written when the server ends; clients that do not read get no more
    connections: int = field(default_factory=most_connections)
    turned_away: int = 64  # connections beyond `connections` that are told so before they are closed
