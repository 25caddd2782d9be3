"""POST /v1/messages, and POST /v1/messages/count_tokens."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from frontend.server.api import as_chat, body, chat, jobs
from frontend.server.api.answers import respond
from frontend.server.api.anthropic.objects import TokenCount
from frontend.server.api.anthropic.request import NAMES, CountRequest, MessagesRequest, chat_body
from frontend.server.api.anthropic.writer import MessageWriter
from frontend.server.api.decoding import BodyDecoder
from frontend.server.api.schemas import refuse_unsupported
from frontend.server.generation import TextEngine

_MESSAGES = BodyDecoder(MessagesRequest)
_COUNT = BodyDecoder(CountRequest)


async def messages(request: Request) -> ASGIApp:
    """The assistant's next message."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, _MESSAGES)
    model = jobs.model_name(engine, asked.model)
    refuse_unsupported(asked)
    with as_chat.renaming(NAMES) as origins:
        wanted = await as_chat.body_of(engine, lambda: chat_body(asked), _size(asked), origins)
        generations = await chat.begin(request, wanted)
    writer = MessageWriter(generations[0], model)
    return await respond(request, writer, generations, stream=bool(asked.stream))


async def count_tokens(request: Request) -> Response:
    """How many tokens such a conversation has."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, _COUNT)
    jobs.model_name(engine, asked.model)
    refuse_unsupported(asked)
    with as_chat.renaming(NAMES) as origins:
        wanted = await as_chat.body_of(engine, lambda: chat_body(asked), _size(asked), origins)
        refuse_unsupported(wanted)
        prompt, _ = await chat.prompt_of(engine, wanted)
    count = TokenCount(input_tokens=len(prompt.token_ids))
    return Response(msgspec.json.encode(count), media_type="application/json")


def _size(asked: CountRequest) -> int:
    """Pieces that the conversation is made of."""
    return sum(len(message.content) if isinstance(message.content, list) else 1 for message in asked.messages)
