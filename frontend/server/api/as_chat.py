"""Routes that are chats in other words: their bodies become a chat's, and errors about that name what the client sent."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from frontend.errors import InvalidRequest
from frontend.server.api.errors import ApiError, from_decoding
from frontend.server.api.schemas import CHAT_DECODER, ChatRequest
from frontend.server.generation import TextEngine
from frontend.server.prompts import check_number, off_loop

_MESSAGE = re.compile(r"messages\[(\d{1,9})\]")
_PIECE = 20  # characters whose tokenization takes as long as an item takes here


Names = Sequence[tuple[str, str]]  # (a pattern of the beginning of a chat's path, what clients call that)


async def body_of(
    engine: TextEngine, make: Callable[[], tuple[dict[str, Any], list[str]]], count: int, origins: list[str]
) -> ChatRequest:
    """The chat whose body `make` makes, together with the place in the client's body that each message came from.

    `count`: of the items that it is made of. `origins`: where these places are kept. Raises what is wrong in the words of a chat.
    """

    def asked() -> ChatRequest:
        try:  # what came as it was, such as schemas, is looked at here for the first time
            body, places = make()
            origins.extend(places)
            return CHAT_DECODER.decode(msgspec.json.encode(body))[0]
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise from_decoding(error) from error

    check_number(count, engine.capacity.max_model_len)  # before anything is made of them
    return await off_loop(_PIECE * count, asked)


@contextmanager
def renaming(names: Names) -> Iterator[list[str]]:
    """Errors about a chat become errors about what it was made of. Yields the places of its messages, to be filled in."""
    origins: list[str] = []

    def renamed(text: str) -> str:
        text = _MESSAGE.sub(lambda match: origins[int(match[1])] if int(match[1]) < len(origins) else match[0], text)
        for pattern, name in names:
            text = re.sub(f"^{pattern}", name, text)
        return text

    try:
        yield origins
    except InvalidRequest as error:
        raise InvalidRequest(renamed(str(error)), error.param and renamed(error.param), error.code) from error
    except ApiError as error:
        param = error.param and renamed(error.param)
        raise ApiError(error.status, renamed(error.message), param=param, code=error.code, headers=error.headers) from error


def given(value: str | None, where: str) -> str:
    """Raises InvalidRequest when there is no text at this place of the client's body."""
    if value is None:
        raise InvalidRequest(f"{where} is missing", where)
    return value


def unsupported(message: str, where: str) -> ApiError:
    """What to raise about a part of the client's body that no chat here can have."""
    return ApiError(400, message, param=where, code="unsupported_parameter")
