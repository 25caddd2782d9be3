"""Routes that are chats in other words: their bodies become a chat's, and errors about that name what the client sent."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.requests import Request

from frontend.errors import InvalidRequest
from frontend.server.api import chat
from frontend.server.api.errors import ApiError, from_decoding
from frontend.server.api.schemas import CHAT_DECODER, ChatRequest
from frontend.server.generation import TextEngine, TextGeneration
from frontend.server.prompts import check_number, off_loop

_MESSAGE = re.compile(r"messages\[(\d{1,9})\]")
_PIECE = 20  # characters whose tokenization takes as long as an item takes here


Names = Sequence[tuple[str, str]]  # (a pattern of the beginning of a chat's path, what clients call that)


async def begin(
    http: Request, make: Callable[[], tuple[dict[str, Any], list[str]]], count: int, names: Names
) -> tuple[ChatRequest, list[TextGeneration]]:
    """Starts the chat whose body `make` makes, together with the place in the client's body that each message came from.

    `count`: of the items that it is made of. Raises what `chat.begin` raises, in the client's words.
    """
    origins: list[str] = []

    def asked() -> ChatRequest:
        body, places = make()
        origins.extend(places)
        try:
            return CHAT_DECODER.decode(msgspec.json.encode(body))
        except msgspec.ValidationError as error:
            raise from_decoding(error) from error

    with _renaming(names, origins):
        engine: TextEngine = http.app.state.engine
        check_number(count, engine.capacity.max_model_len)  # before anything is made of them
        chat_request = await off_loop(_PIECE * count, asked)
        return chat_request, await chat.begin(http, chat_request)


@contextmanager
def _renaming(names: Names, origins: Sequence[str]) -> Iterator[None]:
    """Errors about a field of the chat become errors about what it was made of."""

    def renamed(text: str) -> str:
        text = _MESSAGE.sub(lambda match: origins[int(match[1])] if int(match[1]) < len(origins) else match[0], text)
        for pattern, name in names:
            text = re.sub(f"^{pattern}", name, text)
        return text

    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(renamed(str(error)), error.param and renamed(error.param), error.code) from error
    except ApiError as error:
        param = error.param and renamed(error.param)
        raise ApiError(error.status, renamed(error.message), param=param, code=error.code, headers=error.headers) from error
