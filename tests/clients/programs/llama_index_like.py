"""LlamaIndex's OpenAILike: chat, completion, structured prediction, tools."""

import sys
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

BASE_URL, MODEL = sys.argv[1:]


class Verdict(BaseModel):
    """What to think of it."""

    mood: Literal["good", "bad"]


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


model = OpenAILike(
    model=MODEL,
    api_base=f"{BASE_URL}/v1",
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    should_use_structured_outputs=True,
    context_window=4096,
    max_tokens=100,
    temperature=0,
    max_retries=0,
)
messages = [ChatMessage(role="user", content="Say hello.")]
text = model.chat(messages).message.content
assert text and "".join(piece.delta or "" for piece in model.stream_chat(messages)) == text
assert model.complete("Say hello.").text
assert isinstance(model.structured_predict(Verdict, PromptTemplate("I like {thing}. Judge."), thing="rain"), Verdict)
assert isinstance(model.as_structured_llm(Verdict).chat(messages).raw, Verdict)
answer = model.chat_with_tools([FunctionTool.from_defaults(add)], user_msg="2 and 3?", tool_required=True)
(call, *_) = model.get_tool_calls_from_response(answer)
assert call.tool_name == "add" and set(call.tool_kwargs) == {"a", "b"}
