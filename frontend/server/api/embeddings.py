"""POST /v1/embeddings."""

import base64
from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs
from frontend.server.api.decoding import BodyDecoder
from frontend.server.api.sse import unless_gone
from frontend.server.embeddings import MOST_INPUTS, Embeddings, Wanted, embed
from frontend.server.generation import TextEngine
from frontend.server.prompts import off_loop
from frontend.wire import TextPrompt

_MOST_NUMBERS = 1 << 22  # of an answer that writes them out: some 80 MB of JSON
_CHARACTERS = 2  # that take as long as one number does


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/embeddings. null means the default everywhere."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    user: str | None = None


EMBEDDING_DECODER = BodyDecoder(EmbeddingRequest)


async def embeddings(request: Request) -> Response:
    """A list of numbers for each input, which are near each other for inputs that mean the same."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, EMBEDDING_DECODER)
    model = jobs.model_name(engine, asked.model)
    jobs.check_priority(engine, asked.priority)
    inputs = _inputs(asked)
    numbers = len(inputs) * (asked.dimensions or engine.capacity.embedding_size)
    if asked.encoding_format != "base64" and len(inputs) <= MOST_INPUTS and numbers > _MOST_NUMBERS:
        text = f"{numbers} numbers in one answer, at most {_MOST_NUMBERS} are possible: send fewer inputs, or take base64"
        raise InvalidRequest(text, "encoding_format")
    wanted = Wanted(
        dimensions=asked.dimensions,
        truncate=asked.truncate_prompt_tokens,
        cache_salt=jobs.cache_salt(request, asked.cache_salt),
        priority=asked.priority or 0,
    )
    found = await unless_gone(request.receive, embed(engine, inputs, wanted))
    data = await off_loop(_CHARACTERS * found.vectors.size, lambda: _answer(found, model, asked.encoding_format or "float"))
    return Response(data, media_type="application/json")


def _inputs(asked: EmbeddingRequest) -> Sequence[TextPrompt | list[int]]:
    """The inputs one by one. Raises InvalidRequest on a mixture of kinds."""
    marks = asked.add_special_tokens is not False
    return [TextPrompt(item, marks) if isinstance(item, str) else item for item in jobs.one_by_one(asked.input, "input")]


def _answer(found: Embeddings, model: str, encoding: Literal["float", "base64"]) -> bytes:
    rows: list[list[float]] | list[str]
    if encoding == "base64":  # of little-endian float32
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in found.vectors]
    else:
        rows = found.vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": found.num_prompt_tokens, "total_tokens": found.num_prompt_tokens}
    details = {"prompt_tokens_details": {"cached_tokens": found.num_cached_tokens}}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage | details})
