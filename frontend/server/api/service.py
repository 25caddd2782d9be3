"""The routes about the engine itself: models, health, version, and the tokenizer by itself."""

from importlib.metadata import version

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs
from frontend.server.api.errors import ApiError
from frontend.server.api.schemas import DETOKENIZE_DECODER, TOKENIZE_DECODER, refuse_unsupported
from frontend.server.generation import TextEngine
from frontend.server.prompts import Asked, off_loop
from frontend.server.text.detokenizer import decode
from frontend.wire import TextPrompt


def _answer(fields: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(fields), status, media_type="application/json")


async def models(request: Request) -> Response:
    """GET /v1/models."""
    return _answer({"object": "list", "data": [_card(request, name) for name in _engine(request).config.served_model_names]})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    return _answer(_card(request, jobs.model_name(_engine(request), request.path_params["name"])))


def _card(request: Request, name: str) -> dict[str, object]:
    engine = _engine(request)
    fields = {"id": name, "object": "model", "created": request.app.state.created, "owned_by": "twodeep"}
    return {**fields, "root": engine.config.served_model_names[0], "max_model_len": engine.capacity.max_model_len}


async def health(request: Request) -> Response:
    """GET /health: 200 while requests are taken and a worker is alive, else 503. Compares clocks, and asks nobody."""
    engine = _engine(request)
    wanted, alive = engine.config.workers, 0 if engine.router.is_stalled else engine.capacity.workers
    if engine.router.is_stalled:
        status = "the scheduler does not answer"
    elif engine.router.draining:
        status, alive = "draining", 0
    else:
        status = "ok" if alive == wanted else "degraded" if alive else "no worker is alive"
    return _answer({"status": status, "workers": alive, "workers_wanted": wanted}, 200 if alive else 503)


async def show_version(_: Request) -> Response:
    """GET /version."""
    return _answer({"version": version("twodeep")})


async def tokenize(request: Request) -> Response:
    """POST /tokenize."""
    engine = _engine(request)
    asked = await body.read(request, TOKENIZE_DECODER)
    jobs.model_name(engine, asked.model)
    refuse_unsupported(asked)
    wanted: Asked
    if asked.messages is not None:
        wanted = await jobs.conversation(engine, asked)
    elif asked.prompt is not None:
        wanted = TextPrompt(asked.prompt, asked.add_special_tokens is not False)
    else:
        raise InvalidRequest("tokenize needs a prompt or messages", "prompt")
    (prompt,) = await engine.encode([wanted])
    tokens = prompt.token_ids.tolist()
    answer = {"count": len(tokens), "max_model_len": engine.capacity.max_model_len, "tokens": tokens}
    return _answer(answer | {"token_strs": engine.tokenizer.names_of(tokens)} if asked.return_token_strs else answer)


async def detokenize(request: Request) -> Response:
    """POST /detokenize."""
    engine = _engine(request)
    asked = await body.read(request, DETOKENIZE_DECODER)
    jobs.model_name(engine, asked.model)
    size = engine.capacity.vocab_size

    def text() -> str:
        if any(not 0 <= token_id < size for token_id in asked.tokens):
            raise ApiError(400, f"tokens holds ids outside the vocabulary of {size}", param="tokens")
        return decode(engine.tokenizer.bytes, asked.tokens)

    return _answer({"prompt": await off_loop(len(asked.tokens), text)})


def _engine(request: Request) -> TextEngine:
    engine: TextEngine = request.app.state.engine
    return engine
