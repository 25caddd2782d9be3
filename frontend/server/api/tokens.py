"""POST /tokenize, POST /detokenize, GET /tokenizer_info: the tokenizer by itself."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.errors import CONTEXT_LENGTH_EXCEEDED, InvalidRequest
from frontend.server.api import body, jobs
from frontend.server.api.errors import ApiError
from frontend.server.api.schemas import DETOKENIZE_DECODER, TOKENIZE_DECODER, refuse_unsupported
from frontend.server.api.tools import tools_of
from frontend.server.generation import TextEngine
from frontend.server.prompts import Asked, off_loop
from frontend.server.text.detokenizer import decode
from frontend.server.text.tokenizer_info import tokenizer_info
from frontend.wire import TextPrompt


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    engine = _engine(request)
    asked = await body.read(request, TOKENIZE_DECODER)
    jobs.model_name(engine, asked.model)
    refuse_unsupported(asked)
    wanted: Asked
    if asked.messages is not None:
        wanted = await jobs.conversation(engine, asked, tools_of(asked.tools))
    elif asked.prompt is not None:
        wanted = TextPrompt(asked.prompt, asked.add_special_tokens is not False)
    else:
        raise InvalidRequest("tokenize needs a prompt or messages", "prompt")
    (prompt,) = await engine.encode([wanted])
    tokens = prompt.token_ids.tolist()
    answer = {"count": len(tokens), "max_model_len": engine.capacity.max_model_len, "tokens": tokens}
    return _json_answer(answer | {"token_strs": engine.tokenizer.names_of(tokens)} if asked.return_token_strs else answer)


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    engine = _engine(request)
    asked = await body.read(request, DETOKENIZE_DECODER)
    jobs.model_name(engine, asked.model)
    size, limit = engine.capacity.vocab_size, engine.capacity.max_model_len
    if len(asked.tokens) > limit:
        message = f"This model's maximum context length is {limit} tokens; tokens has {len(asked.tokens)}"
        raise InvalidRequest(message, "tokens", CONTEXT_LENGTH_EXCEEDED)

    def text() -> str:
        if any(not 0 <= token_id < size for token_id in asked.tokens):
            raise ApiError(400, f"tokens holds ids outside the vocabulary of {size}", param="tokens")
        return decode(engine.tokenizer.bytes, asked.tokens)

    return _json_answer({"prompt": await off_loop(len(asked.tokens), text)})


async def show_tokenizer(request: Request) -> Response:
    """GET /tokenizer_info."""
    engine = _engine(request)
    return _json_answer(tokenizer_info(engine.tokenizer, engine.capacity.max_model_len))


def _json_answer(fields: object) -> Response:
    return Response(msgspec.json.encode(fields), media_type="application/json")


def _engine(request: Request) -> TextEngine:
    engine: TextEngine = request.app.state.engine
    return engine
