"""POST /v1/chat/completions."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs, logprobs
from frontend.server.api.answers import Answer, respond
from frontend.server.api.errors import ApiError
from frontend.server.api.prompt_logprobs import as_vllm
from frontend.server.api.schemas import CHAT_DECODER, ChatRequest, refuse_unsupported
from frontend.server.generation import TextEngine, TextGeneration, TokenLogprob
from frontend.server.text.tokenizer import Tokenizer

_json = msgspec.json.encode


async def chat_completions(request: Request) -> ASGIApp:
    """The assistant's next message."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, CHAT_DECODER)
    model = jobs.model_name(engine, asked.model)
    generations = await begin(request, asked)
    answer = ChatAnswer(engine.tokenizer, asked, model)
    return await respond(request, answer, generations, stream=bool(asked.stream))


async def begin(request: Request, asked: ChatRequest) -> list[TextGeneration]:
    """Starts the answers of a chat, for every route that is a chat under another name. `request` tells who asks.

    Raises InvalidRequest or ApiError naming the field of ChatRequest at fault, and what the router raises.
    """
    engine: TextEngine = request.app.state.engine
    refuse_unsupported(asked)
    max_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    params = asked.sampling(max_tokens=max_tokens, logprobs=_candidates(asked))
    prompts = await jobs.encode(engine, [await jobs.conversation(engine, asked)], asked, params)
    try:
        return jobs.submit(request, prompts, asked, params)
    except InvalidRequest as error:  # chats call two fields otherwise than completions, and so the engine, do
        names = {"logprobs": "top_logprobs"}
        if asked.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        raise InvalidRequest(str(error), names.get(error.param or "", error.param), error.code) from error


def _candidates(asked: ChatRequest) -> int | None:
    if not asked.logprobs:
        if asked.top_logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        return None
    return asked.top_logprobs or 0


class ChatAnswer(Answer):
    """A message of the assistant."""

    def __init__(self, tokenizer: Tokenizer, asked: ChatRequest, model: str) -> None:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        super().__init__(asked, id_prefix="chatcmpl", kind=kind, model=model)
        self._prompt_logprobs = asked.prompt_logprobs
        self._tokenizer = tokenizer
        self._shown = tokenizer.bytes_shown(skip_special_tokens=asked.skip_special_tokens is not False)
        self._logprobs = asked.logprobs is True

    def content_chunk(self, index: int, text: str, *, first: bool) -> bytes:
        """See Answer. The role comes with the first token: clients take the first chunk's time for that token's."""
        return b'"delta":{%b"content":%b}' % (b'"role":"assistant",' if first else b"", _json(text))

    def content(self, index: int, text: str) -> dict[str, object]:
        """See Answer."""
        return {"message": {"role": "assistant", "content": text}}

    def about_prompt(self, generations: Sequence[TextGeneration]) -> dict[str, object]:
        """See Answer: log-probabilities of its tokens, where vLLM has them."""
        scores = generations[0].prompt_logprobs
        if self._prompt_logprobs is None or scores is None:
            return {}
        shown = as_vllm(self._tokenizer, generations[0].prompt_token_ids, scores, self._prompt_logprobs)
        return {"prompt_logprobs": shown}

    def logprobs(self, index: int, tokens: list[TokenLogprob], *, first: bool) -> dict[str, object] | None:
        """See Answer."""
        return logprobs.for_chats(self._tokenizer, self._shown, tokens) if self._logprobs else None
