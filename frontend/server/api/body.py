"""Reading a request's body: declared as JSON, then decoded, with errors that say what is wrong. Its size is the server's matter.

What it is made of is looked at here: a body of many small things is much more work, and takes much more memory, than one long text.
"""

import asyncio

import msgspec
from starlette.requests import Request

from frontend.server.api.decoding import Body, BodyDecoder
from frontend.server.api.errors import ApiError, from_decoding
from frontend.server.api.structure import parts
from frontend.server.turns import Alone

_LARGE = 256 << 10  # bytes; below, any body is decoded in a few milliseconds
_PARTS = 100_000  # arrays, objects and members of any body, and …
_PARTS_PER_TOKEN = 4  # … more where the context is long: a message is an object with two or three members, and takes some tokens

_FORM = "application/x-www-form-urlencoded"


async def read(request: Request, decoder: BodyDecoder[Body]) -> Body:
    """The decoded body. Raises ApiError: 415 when it is declared as something else, 400 when it is not of the decoder's type."""
    _check_declaration(request)
    pieces = [piece async for piece in request.stream() if piece]
    if not pieces:
        raise ApiError(400, "the body is empty: send the request as JSON", code="empty_body")
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    if len(data) <= _LARGE:
        return _decoded(request, data, decoder)
    most = _PARTS + _PARTS_PER_TOKEN * request.app.state.engine.capacity.max_model_len
    if (found := await asyncio.to_thread(parts, data)) > most:
        message = f"the body has {found} arrays, objects and members of objects; at most {most} are taken"
        raise ApiError(400, message, code="too_many_parts")
    alone: Alone = request.app.state.decoding
    return await alone.run(lambda: _decoded(request, data, decoder))


def _decoded(request: Request, data: bytes, decoder: BodyDecoder[Body]) -> Body:
    try:
        if not data.isascii():
            data.decode()  # parts that are taken as they came, such as schemas, are not looked at by the decoder
        decoded, unknown = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise from_decoding(error) from error
    if unknown:
        request.app.state.ignored.note(request.scope["path"], unknown)
    return decoded


def _check_declaration(request: Request) -> None:
    """A body is JSON, and says so or says nothing.

    What else a form or a script of any web page may send without asking, text/plain and what forms make, is refused: it is not
    meant for an engine that listens on the reader's own machine. Tools that call whatever they send a form (`curl -d`, Python's
    urllib) are no web pages: those name their origin with every POST.
    """
    coding = request.headers.get("content-encoding", "identity").strip()
    if coding.lower() not in ("", "identity"):
        message = f"Content-Encoding {coding[:50]!r} is not supported: send the body as it is"
        raise ApiError(415, message, code="unsupported_encoding", headers={"accept-encoding": "identity"})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM and "origin" not in request.headers:
        return
    if kind and kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"Content-Type {kind[:100]!r} is not supported: send JSON, with 'Content-Type: application/json'"
        raise ApiError(415, message, code="unsupported_media_type")
