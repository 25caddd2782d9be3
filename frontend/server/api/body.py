"""Reading a request's body: bounded, then decoded, with errors that say what is wrong."""

from typing import TypeVar

import msgspec
from starlette.requests import Request

from frontend.server.api.errors import ApiError, from_decoding

# The longest prompts, as lists of token ids, take a few MiB; what is larger is refused before it is held in memory.
MAX_BODY = 16 << 20

Body = TypeVar("Body")


async def read(request: Request, decoder: msgspec.json.Decoder[Body]) -> Body:
    """The decoded body. Raises ApiError: 413 when it is too large, 400 when it is not of the decoder's type."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MAX_BODY:
        raise _too_large()
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            raise _too_large()
        pieces.append(piece)
    try:
        return decoder.decode(b"".join(pieces))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_decoding(error) from error


def _too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {MAX_BODY} bytes", code="body_too_large")
