"""POST /v1/completions."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs, logprobs
from frontend.server.api.answers import Answer, respond
from frontend.server.api.errors import ApiError
from frontend.server.api.schemas import COMPLETION_DECODER, CompletionRequest, refuse_unsupported
from frontend.server.generation import TextEngine, TokenLogprob
from frontend.server.prompts import Asked, Prompt, too_long
from frontend.server.text.detokenizer import decode
from frontend.server.text.tokenizer import Tokenizer
from frontend.wire import TextPrompt

_json = msgspec.json.encode


async def completions(request: Request) -> ASGIApp:
    """One or several texts that go on from the prompts."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, COMPLETION_DECODER)
    model = jobs.model_name(engine, asked.model)
    _check(asked)
    params = asked.sampling(max_tokens=asked.max_tokens, logprobs=asked.logprobs)
    prompts = await jobs.encode(engine, _asked(asked, engine.capacity.max_model_len), asked, params)
    generations = jobs.submit(request, prompts, asked, params)
    answer = CompletionAnswer(engine.tokenizer, asked, model, prompts)
    return await respond(request, answer, generations, stream=bool(asked.stream))


def _check(asked: CompletionRequest) -> None:
    refuse_unsupported(asked)
    if asked.best_of is not None and asked.best_of != asked.choices:
        raise ApiError(400, "best_of is supported only where it equals n", param="best_of", code="unsupported_parameter")
    if asked.echo and asked.logprobs is not None:
        raise ApiError(400, "echo with logprobs of the prompt is not supported", param="echo", code="unsupported_parameter")


def _asked(asked: CompletionRequest, limit: int) -> Sequence[Asked]:
    """The prompts one by one. `limit`: tokens of context. Raises InvalidRequest on a mixture of kinds, and on far too much."""
    given = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if given and isinstance(given[0], int):
        if len(given) >= limit:
            raise too_long(len(given), limit)
    elif len(given) > jobs.MAX_OUTPUTS:
        raise InvalidRequest(f"at most {jobs.MAX_OUTPUTS} prompts in one request, not {len(given)}", "prompt")
    texts = [item for item in given if isinstance(item, str)]
    if texts and len(texts) == len(given):
        return [TextPrompt(text, asked.add_special_tokens is not False) for text in texts]
    ids = [item for item in given if isinstance(item, int)]
    if ids and len(ids) == len(given):
        return [ids]
    lists = [item for item in given if isinstance(item, list)]
    if lists and len(lists) == len(given):
        return lists
    if not given:
        raise InvalidRequest("the prompt is empty", "prompt")
    raise InvalidRequest("prompt must be a string, a list of strings, a list of token ids, or a list of such lists", "prompt")


class CompletionAnswer(Answer):
    """A text, behind its prompt where `echo` asks so."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionRequest, model: str, prompts: Sequence[Prompt]) -> None:
        super().__init__(asked, id_prefix="cmpl", kind="text_completion", model=model)
        self._tokenizer = tokenizer
        self._logprobs = asked.logprobs is not None
        self._given = asked.prompt
        self._prompts = prompts if asked.echo else []
        self._token_bytes = tokenizer.bytes_shown(skip_special_tokens=asked.skip_special_tokens is not False)
        self._echoes: dict[int, str] = {}  # of each prompt, made when it is first written

    def _echo(self, index: int) -> str:
        """What goes before the text of choice `index`."""
        number = index // self._n
        if not self._prompts or number in self._echoes:
            return self._echoes.get(number, "")
        given = self._given if isinstance(self._given, str) else self._given[number]
        if not isinstance(given, str):  # a character that the prompt leaves open is the completion's
            given = decode(self._token_bytes, self._prompts[number].token_ids.tolist(), final=False)
        self._echoes[number] = given
        return given

    def content_chunk(self, index: int, text: str, *, first: bool) -> bytes:
        """See Answer."""
        return b'"text":' + _json(self._echo(index) + text if first else text)

    def content(self, index: int, text: str) -> dict[str, object]:
        """See Answer."""
        return {"text": self._echo(index) + text}

    def logprobs(self, tokens: list[TokenLogprob]) -> dict[str, object] | None:
        """See Answer."""
        return logprobs.for_completions(self._tokenizer, tokens) if self._logprobs else None
