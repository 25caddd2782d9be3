"""POST /v1/completions."""

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs
from frontend.server.api.answers import Answer, respond
from frontend.server.api.jobs import Output
from frontend.server.api.logprobs import for_completions
from frontend.server.api.prompt_logprobs import as_echo, as_vllm
from frontend.server.api.schemas import COMPLETION_DECODER, CompletionRequest, refuse_unsupported
from frontend.server.generation import TextDelta, TextEngine, TextGeneration, TokenLogprob
from frontend.server.prompts import Asked, too_long
from frontend.server.text.detokenizer import decode
from frontend.server.text.tokenizer import Tokenizer
from frontend.wire import TextPrompt
from protocol.params import MAX_CHOICES

_json = msgspec.json.encode


async def completions(request: Request) -> ASGIApp:
    """One or several texts that go on from the prompts."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, COMPLETION_DECODER)
    model = jobs.model_name(engine, asked.model)
    _check(asked)
    params = asked.sampling(engine.config.sampling_defaults, max_tokens=asked.max_tokens, logprobs=asked.logprobs)
    params = msgspec.structs.replace(params, prompt_logprobs=_scored(asked), n=asked.outputs)
    if asked.outputs > asked.choices and params.logprobs is None:
        params = msgspec.structs.replace(params, logprobs=0)  # which are the best
    if asked.suffix and engine.tokenizer.fill_in is not None:
        params = msgspec.structs.replace(params, stop_token_ids=[*params.stop_token_ids, *engine.tokenizer.fill_in.ends])
    prompts = await jobs.encode(engine, _asked(asked, engine.capacity.max_model_len), asked, params)
    generations = await jobs.submit(request, prompts, asked, params)
    answer = CompletionAnswer(engine.tokenizer, asked, model, generations)
    return await respond(request, answer, generations, stream=bool(asked.stream))


def _check(asked: CompletionRequest) -> None:
    refuse_unsupported(asked)
    if asked.best_of is not None and not asked.choices <= asked.best_of <= MAX_CHOICES:
        raise InvalidRequest(f"best_of must be between n, {asked.choices}, and {MAX_CHOICES}, not {asked.best_of}", "best_of")
    if asked.stream and asked.outputs > asked.choices:
        raise InvalidRequest("best_of above n goes with no stream: which are the best is known at the end", "best_of")
    if asked.suffix and (asked.echo or asked.truncate_prompt_tokens is not None):
        raise InvalidRequest("suffix goes neither with echo nor with truncate_prompt_tokens", "suffix")
    if asked.max_tokens == 0 and not asked.echo:
        raise InvalidRequest("max_tokens is 0, and there is no echo: nothing would be answered", "max_tokens")


def _scored(asked: CompletionRequest) -> int | None:
    """How many candidates beside each token of the prompt; None: its log-probabilities are not wanted."""
    wanted = [asked.prompt_logprobs, asked.logprobs if asked.echo else None, 0 if asked.max_tokens == 0 else None]
    return max((count for count in wanted if count is not None), default=None)


def _asked(asked: CompletionRequest, limit: int) -> Sequence[Asked]:
    """The prompts one by one. `limit`: tokens of context. Raises InvalidRequest on a mixture of kinds, and on far too much."""
    given = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if given and isinstance(given[0], int):
        if len(given) >= limit and asked.truncate_prompt_tokens is None:
            raise too_long(len(given), limit)
    elif len(given) > jobs.MAX_OUTPUTS:
        raise InvalidRequest(f"at most {jobs.MAX_OUTPUTS} prompts in one request, not {len(given)}", "prompt")
    if asked.suffix and not (given and all(isinstance(item, str) for item in given)):
        raise InvalidRequest("suffix needs prompts that are texts", "suffix")
    marks, suffix = asked.add_special_tokens is not False, asked.suffix or None
    return [TextPrompt(item, marks, suffix) if isinstance(item, str) else item for item in jobs.one_by_one(given, "prompt")]


class CompletionAnswer(Answer):
    """A text, behind its prompt where `echo` asks so."""

    def __init__(self, tokenizer: Tokenizer, asked: CompletionRequest, model: str, generations: Sequence[TextGeneration]) -> None:
        super().__init__(asked, id_prefix="cmpl", kind="text_completion", model=model)
        self._tokenizer = tokenizer
        self._asked = asked
        self._generations = generations
        self._token_bytes = tokenizer.bytes_shown(skip_special_tokens=asked.skip_special_tokens is not False)
        self._echoes: dict[int, str] = {}  # of each prompt, made when it is first written

    def _prompt_of(self, index: int) -> TextGeneration:
        """One of the outputs of the prompt of choice `index`: they tell the same of it."""
        return self._generations[index // self._n * self._num_outputs]

    def chosen(self, outputs: Sequence[Output]) -> list[int]:
        """See Answer: of each prompt those whose tokens are the most likely ones together, if there are more than asked for."""
        if self._num_outputs == self._n:
            return super().chosen(outputs)
        sums = [sum(token.logprob for token in output.logprobs) for output in outputs]
        of_prompts = [range(first, first + self._num_outputs) for first in range(0, len(outputs), self._num_outputs)]
        return [index for mine in of_prompts for index in sorted(mine, key=lambda index: -sums[index])[: self._n]]

    def _echo(self, index: int) -> str:
        """What goes before the text of choice `index`."""
        number = index // self._n
        if not self._asked.echo or number in self._echoes:
            return self._echoes.get(number, "")
        given = self._asked.prompt if isinstance(self._asked.prompt, str) else self._asked.prompt[number]
        if not isinstance(given, str) or self._asked.truncate_prompt_tokens is not None:
            # A character that the prompt leaves open is the completion's.
            given = decode(self._token_bytes, self._prompt_of(index).prompt_token_ids, final=False)
        self._echoes[number] = given
        return given

    def pieces(self, index: int, delta: TextDelta, *, first: bool, needed: bool) -> list[bytes]:
        """See Answer."""
        return [b'"text":' + _json(self._echo(index) + delta.text if first else delta.text)]

    def content(self, index: int, output: Output) -> dict[str, object]:
        """See Answer. Log-probabilities of the prompt are where vLLM has them."""
        content: dict[str, object] = {"text": self._echo(index) + output.text}
        scores, wanted = self._prompt_of(index).prompt_logprobs, self._asked.prompt_logprobs
        if scores is not None and wanted is not None:
            content["prompt_logprobs"] = as_vllm(self._tokenizer, self._prompt_of(index).prompt_token_ids, scores, wanted)
        return content

    def logprobs(self, index: int, tokens: list[TokenLogprob], *, first: bool) -> dict[str, object] | None:
        """See Answer. Those of an echo go before, and all offsets are from its beginning."""
        wanted = self._asked.logprobs
        if wanted is None:
            return None
        found, echo = for_completions(self._tokenizer, tokens), self._echo(index)
        if not self._asked.echo:
            return {**found}
        found["text_offset"] = [len(echo) + token.text_offset for token in tokens]
        scores = self._prompt_of(index).prompt_logprobs
        if not first or scores is None:
            return {**found}
        prompt = self._prompt_of(index).prompt_token_ids
        before = as_echo(self._tokenizer, self._token_bytes, prompt, scores, wanted, len(echo))
        return {name: before[name] + found[name] for name in found}
