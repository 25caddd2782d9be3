"""POST /v1/chat/completions."""

import secrets
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs, logprobs
from frontend.server.api.answers import Answer, respond
from frontend.server.api.errors import ApiError
from frontend.server.api.jobs import Output
from frontend.server.api.prompt_logprobs import as_vllm
from frontend.server.api.schemas import CHAT_DECODER, ChatRequest, refuse_unsupported
from frontend.server.api.tools import calling_of, tools_of
from frontend.server.generation import TextDelta, TextEngine, TextGeneration, TokenLogprob
from frontend.server.prompts import Prompt
from frontend.server.text.tokenizer import Tokenizer
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import Arguments, CallBegun, CallEnded, Content, Event, Reasoning, put_together
from protocol.messages import FinishReason
from protocol.params import SamplingParams

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
    params = asked.sampling(engine.config.sampling_defaults, max_tokens=max_tokens, logprobs=_candidates(asked))
    prompt, calling = await prompt_of(engine, asked, params)
    reading = engine.dialect.reading(calling, prompt.tail)
    params = await jobs.follow(engine, asked, params, reading)
    try:
        return await jobs.submit(request, [prompt], asked, params, reading)
    except InvalidRequest as error:  # chats call two fields otherwise than completions, and so the engine, do
        names = {"logprobs": "top_logprobs"}
        if asked.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        raise InvalidRequest(str(error), names.get(error.param or "", error.param), error.code) from error


async def prompt_of(engine: TextEngine, asked: ChatRequest, params: SamplingParams | None = None) -> tuple[Prompt, Calling | None]:
    """The conversation as the model reads it, and what it may call. `params`: of the answers, where there will be any.

    Raises InvalidRequest naming the field at fault.
    """
    tools = tools_of(asked.tools, asked.functions)
    parallel = asked.parallel_tool_calls is not False and (bool(asked.tools) or not asked.functions)
    calling = calling_of(tools, asked.tool_choice, asked.function_call, parallel=parallel)
    conversation = await jobs.conversation(engine, asked, () if calling is None else calling.tools)
    (prompt,) = await engine.encode([conversation], params)
    return prompt, calling


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
        self._shows_reasoning = asked.include_reasoning is not False
        self._legacy = not asked.tools and bool(asked.functions)

    def pieces(self, index: int, delta: TextDelta, *, first: bool, needed: bool) -> list[bytes]:
        """See Answer. The role comes with the first token: clients take the first chunk's time for that token's."""
        if delta.events is None:
            return [b'"delta":{%b"content":%b}' % (b'"role":"assistant",' if first else b"", _json(delta.text))]
        members = [member for event in delta.events if (member := self._member(event))]
        if (needed and not members) or (delta.finish_reason is not None and any(map(_is_call, members))):
            members.append({})  # the reason comes by itself behind calls, as OpenAI's does
        if first:
            members[0] = {"role": "assistant", "content": None if members[0] else ""} | members[0]
        return [b'"delta":' + _json(member) for member in members]

    def _member(self, event: Event) -> dict[str, object]:
        match event:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return _reasoning(text) if self._shows_reasoning else {}
            case CallBegun(call, name):
                function: dict[str, object] = {"name": name, "arguments": ""}
                if self._legacy:
                    return {"function_call": function}
                return {"tool_calls": [{"index": call, "id": _call_id(), "type": "function", "function": function}]}
            case Arguments(call, text):
                if self._legacy:
                    return {"function_call": {"arguments": text}}
                return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
            case CallEnded():
                return {}

    def content(self, index: int, output: Output) -> dict[str, object]:
        """See Answer."""
        if output.events is None:
            return {"message": {"role": "assistant", "content": output.text}}
        told = put_together(output.events)
        message: dict[str, object] = {"role": "assistant", "content": None if told.calls and not told.content else told.content}
        if told.reasoning and self._shows_reasoning:
            message |= _reasoning(told.reasoning)
        functions = [{"name": name, "arguments": arguments} for name, arguments in told.calls]
        if functions and self._legacy:
            message["function_call"] = functions[0]
        elif functions:
            message["tool_calls"] = [{"id": _call_id(), "type": "function", "function": function} for function in functions]
        return {"message": message}

    def finish_reason(self, generation: TextGeneration, reason: FinishReason) -> str:
        """See Answer. Who names the tool to be called knows that it was: OpenAI's reason is then "stop"."""
        calling = generation.calling
        if reason != "stop" or not generation.num_calls or calling is None or calling.is_named:
            return reason
        return "function_call" if self._legacy else "tool_calls"

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


def _is_call(member: dict[str, object]) -> bool:
    return "tool_calls" in member or "function_call" in member


def _reasoning(text: str) -> dict[str, object]:
    """By DeepSeek's name and by vLLM's newer one: clients read either."""
    return {"reasoning_content": text, "reasoning": text}


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"
