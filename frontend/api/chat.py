"""POST /v1/chat/completions."""

import secrets
import time
from collections.abc import Sequence
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from frontend.api import body, jobs
from frontend.api.errors import ApiError
from frontend.api.jobs import Output
from frontend.api.schemas import CHAT_DECODER, ChatMessage, ChatRequest, asks_for_something, refuse_unsupported
from frontend.api.sse import EventStream, unless_gone
from frontend.errors import InvalidRequest
from frontend.generation import TextDelta, TextEngine, TextGeneration, TokenLogprob
from frontend.text.tokenizer import Tokenizer

# OpenAI's newer name for the role that templates know as "system".
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "function",
}
# What a chat calls the fields that completions, and so the engine, call otherwise.
_NAMES = {"prompt": "messages", "logprobs": "top_logprobs"}

_json = msgspec.json.encode


async def chat_completions(request: Request) -> ASGIApp:
    """The assistant's next message."""
    engine: TextEngine = request.app.state.engine
    asked = await body.read(request, CHAT_DECODER)
    model = jobs.model_name(engine, asked.model)
    refuse_unsupported(asked)
    max_tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    params = asked.sampling(max_tokens=max_tokens, logprobs=_candidates(asked))
    try:
        prompt = await _prompt(engine, asked)
        generations = jobs.submit(engine, [prompt], asked, params)
    except InvalidRequest as error:
        name = "max_completion_tokens" if error.param == "max_tokens" and asked.max_completion_tokens is not None else error.param
        raise InvalidRequest(str(error), _NAMES.get(name or "", name)) from error
    answer = ChatAnswer(engine.tokenizer, asked, model)
    if asked.stream:
        options = asked.stream_options
        last = partial(answer.usage_chunk, generations) if options is not None and options.include_usage else bytes
        return EventStream(generations, answer.chunk, last)
    try:
        outputs = await unless_gone(request.receive, jobs.collect(generations))
    finally:
        jobs.cancel(generations)
    return Response(answer.whole(generations, outputs), media_type="application/json")


def _candidates(asked: ChatRequest) -> int | None:
    if not asked.logprobs:
        if asked.top_logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        return None
    return asked.top_logprobs or 0


async def _prompt(engine: TextEngine, asked: ChatRequest) -> list[int]:
    messages = flatten(asked.messages)
    arguments = (
        {"enable_thinking": thinking}
        if (given := asked.chat_template_kwargs) and (thinking := given.enable_thinking) is not None
        else {}
    )

    def render() -> list[int]:
        text = engine.chat_template.render(
            messages,
            add_generation_prompt=not asked.continue_final_message
            if asked.add_generation_prompt is None
            else asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message is True,
            arguments=arguments,
        )
        return engine.encode(text, asked.add_special_tokens is True)  # templates write their own special tokens

    return await jobs.off_loop(sum(len(message["content"]) for message in messages) + 100 * len(messages), render)


def flatten(messages: Sequence[ChatMessage]) -> list[dict[str, str]]:
    """Messages as templates want them: content as one text. Raises InvalidRequest naming the message at fault."""
    flat: list[dict[str, str]] = []
    for index, message in enumerate(messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise InvalidRequest(f"the role {message.role[:50]!r} is none of {', '.join(_ROLES)}", f"messages[{index}].role")
        if asks_for_something("tool_calls", message.tool_calls):
            raise InvalidRequest("tool calls are not supported", f"messages[{index}].tool_calls")
        content = message.content
        if isinstance(content, list):
            for part in content:
                if part.type not in ("text", "input_text") or part.text is None:
                    raise InvalidRequest(
                        f"content of type {part.type[:50]!r} is not supported, only text", f"messages[{index}].content"
                    )
            content = "\n".join(part.text or "" for part in content)
        entry = {"role": role, "content": content or ""}
        if message.name is not None:
            entry["name"] = message.name
        flat.append(entry)
    return flat


class ChatAnswer:
    """Writes the JSON of one request's answer, whole or in chunks."""

    def __init__(self, tokenizer: Tokenizer, asked: ChatRequest, model: str) -> None:
        self._tokenizer = tokenizer
        self._asked = asked
        self._choices = asked.choices
        self._continuous = asked.stream_options is not None and asked.stream_options.continuous_usage_stats is True
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        # The wall clock: this is for people, and nothing is computed from it.
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}
        self._open = _json(self._head)[:-1] + b',"choices":[{"index":'
        self._begun: set[int] = set()

    def chunk(self, index: int, generation: TextGeneration, delta: TextDelta) -> bytes:
        """One event: what `delta` adds to choice `index`. The role comes with the first token: clients time that chunk."""
        role = extra = b""
        if index not in self._begun:
            self._begun.add(index)
            role = b'"role":"assistant",'
            if self._asked.return_token_ids:
                extra = b',"prompt_token_ids":' + _json(generation.prompt_token_ids)
        if self._asked.return_token_ids:
            extra += b',"token_ids":' + _json(delta.token_ids)
        logprobs = _json(self._chat_logprobs(delta.logprobs)) if self._asked.logprobs else b"null"
        if delta.finish_reason is None:
            end = b',"finish_reason":null}]'
        else:
            end = b',"finish_reason":"%b","stop_reason":%b}]' % (delta.finish_reason.encode(), _json(delta.stop_reason))
        if self._continuous:
            end += b',"usage":' + _json(jobs.usage((generation,), 1))
        return b'%b%d,"delta":{%b"content":%b},"logprobs":%b%b%b}' % (
            self._open,
            index,
            role,
            _json(delta.text),
            logprobs,
            extra,
            end,
        )

    def usage_chunk(self, generations: list[TextGeneration]) -> bytes:
        """The event without choices that ends a stream whose client asked for the usage."""
        return _json({**self._head, "choices": [], "usage": jobs.usage(generations, self._choices)})

    def whole(self, generations: list[TextGeneration], outputs: list[Output]) -> bytes:
        """The answer to a request that does not stream."""
        choices = [self._choice(index, generations[index], output) for index, output in enumerate(outputs)]
        return _json({**self._head, "choices": choices, "usage": jobs.usage(generations, self._choices)})

    def _choice(self, index: int, generation: TextGeneration, output: Output) -> dict[str, object]:
        choice: dict[str, object] = {
            "index": index,
            "message": {"role": "assistant", "content": output.text},
            "logprobs": self._chat_logprobs(output.logprobs) if self._asked.logprobs else None,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self._asked.return_token_ids:
            choice |= {"prompt_token_ids": generation.prompt_token_ids, "token_ids": output.token_ids}
        return choice

    def _chat_logprobs(self, tokens: list[TokenLogprob]) -> dict[str, object]:
        return {
            "content": [
                {**self._candidate(token.token_id, token.logprob), "top_logprobs": [self._candidate(*item) for item in token.top]}
                for token in tokens
            ]
        }

    def _candidate(self, token_id: int, logprob: float) -> dict[str, object]:
        data = self._tokenizer.bytes[token_id]
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}
