"""POST /v1/responses, and what there is of responses afterwards: nothing."""

import secrets
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from frontend.server.api import as_chat, body, chat, jobs
from frontend.server.api.answers import respond
from frontend.server.api.decoding import BodyDecoder
from frontend.server.api.errors import ApiError
from frontend.server.api.responses.objects import ResponseObject
from frontend.server.api.responses.request import NAMES, ResponsesRequest, TextFormat, as_given, chat_body, check
from frontend.server.api.responses.writer import ResponseWriter
from frontend.server.api.schemas import refuse_unsupported
from frontend.server.generation import TextEngine

_DECODER = BodyDecoder(ResponsesRequest)


async def responses(request: Request) -> ASGIApp:
    """The assistant's answer to what was said so far."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, _DECODER)
    model = jobs.model_name(engine, asked.model)
    refuse_unsupported(asked)
    check(asked)
    items = 1 if isinstance(asked.input, str) else sum(_size(item.content) + _size(item.output) for item in asked.input)
    with as_chat.renaming(NAMES) as origins:
        wanted = await as_chat.body_of(engine, lambda: chat_body(asked), items, origins)
        generations = await chat.begin(request, wanted)
    shown = engine.tokenizer.bytes_shown(skip_special_tokens=asked.skip_special_tokens is not False)
    writer = ResponseWriter(_response(asked, model), engine.tokenizer, shown, tells_logprobs=asked.wants_logprobs)
    return await respond(request, writer, generations, stream=bool(asked.stream))


def _size(content: object) -> int:
    return len(content) if isinstance(content, list) else 1


def _response(asked: ResponsesRequest, model: str) -> ResponseObject:
    """The response to which nothing was said yet."""
    return ResponseObject(
        id=f"resp_{secrets.token_hex(24)}",
        # The wall clock: this is for people, and nothing is computed from it.
        created_at=int(time.time()),
        instructions=asked.instructions,
        max_output_tokens=asked.max_output_tokens,
        model=model,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        reasoning={"effort": None if asked.reasoning is None else asked.reasoning.effort, "summary": None},
        temperature=1.0 if asked.temperature is None else asked.temperature,
        text={"format": as_given(asked.text.format if asked.text and asked.text.format else TextFormat("text"))},
        tool_choice=as_given(asked.tool_choice or "auto"),
        tools=[{"parameters": None, **as_given(tool), "strict": tool.strict is True} for tool in asked.tools or ()],
        top_logprobs=asked.top_logprobs or 0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        metadata=asked.metadata or {},
    )


async def stored_response(request: Request) -> Response:
    """GET, DELETE and what else there is of /v1/responses/ID: nothing is stored."""
    name = request.path_params["name"]
    message = f"there is no response {name[:100]!r}: this engine stores none, so each request has to hold the whole conversation"
    raise ApiError(404, message, code="not_found")
