"""POST /v1/chat/completions."""

from collections.abc import Sequence
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from frontend.errors import InvalidRequest
from frontend.server.api import body, jobs, logprobs
from frontend.server.api.answers import Answer
from frontend.server.api.errors import ApiError
from frontend.server.api.schemas import CHAT_DECODER, ChatMessage, ChatRequest, asks_for_something, refuse_unsupported
from frontend.server.api.sse import EventStream, unless_gone
from frontend.server.generation import TextEngine, TokenLogprob
from frontend.server.text.tokenizer import Tokenizer

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
        raise InvalidRequest(str(error), _NAMES.get(name or "", name), error.code) from error
    answer = ChatAnswer(engine.tokenizer, asked, model)
    if asked.stream:
        last = partial(answer.usage_chunk, generations) if answer.wants_usage else bytes
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


class ChatAnswer(Answer):
    """A message of the assistant."""

    def __init__(self, tokenizer: Tokenizer, asked: ChatRequest, model: str) -> None:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        super().__init__(asked, id_prefix="chatcmpl", kind=kind, model=model)
        self._tokenizer = tokenizer
        self._logprobs = asked.logprobs is True

    def content_chunk(self, index: int, text: str, *, first: bool) -> bytes:
        """See Answer. The role comes with the first token: clients take the first chunk's time for that token's."""
        return b'"delta":{%b"content":%b}' % (b'"role":"assistant",' if first else b"", _json(text))

    def content(self, index: int, text: str) -> dict[str, object]:
        """See Answer."""
        return {"message": {"role": "assistant", "content": text}}

    def logprobs(self, tokens: list[TokenLogprob]) -> dict[str, object] | None:
        """See Answer."""
        return logprobs.for_chats(self._tokenizer, tokens) if self._logprobs else None
