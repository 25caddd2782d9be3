"""langchain-openai: what agents are made of."""

import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

BASE_URL, MODEL = sys.argv[1:]


class Verdict(BaseModel):
    """What to think of it."""

    mood: Literal["good", "bad"]
    points: int = Field(ge=0, le=9)


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def chat(**fields):
    return ChatOpenAI(
        base_url=f"{BASE_URL}/v1", api_key="none", model=MODEL, temperature=0, max_tokens=120, max_retries=0, **fields
    )


plain = chat()
assert plain.invoke("Say hello.").content
assert "".join(chunk.content for chunk in plain.stream("Say hello.")) == plain.invoke("Say hello.").content
assert len(plain.batch(["One?", "Two?"])) == 2
for method in ("function_calling", "json_schema"):
    verdict = plain.with_structured_output(Verdict, method=method).invoke("I like it. Judge.")
    assert isinstance(verdict, Verdict), (method, verdict)
loose = plain.with_structured_output(Verdict, method="json_mode", include_raw=True).invoke(
    'Answer in JSON, exactly like {"mood": "good", "points": 3}'
)
assert loose["raw"].content.lstrip().startswith("{"), loose
asked = plain.bind_tools([add], tool_choice="required", parallel_tool_calls=False).invoke("What is 2 and 3?")
assert asked.tool_calls[0]["name"] == "add" and set(asked.tool_calls[0]["args"]) == {"a", "b"}, asked
named = plain.bind_tools([add], tool_choice="add").invoke("What is 2 and 3?")
assert named.tool_calls[0]["name"] == "add"
plain.bind_tools([add]).invoke("What is 2 and 3?")
pieces = None
for chunk in plain.bind_tools([add], tool_choice="required", parallel_tool_calls=False).stream("What is 2 and 3?"):
    pieces = chunk if pieces is None else pieces + chunk
assert pieces.tool_calls[0] == {**asked.tool_calls[0], "id": pieces.tool_calls[0]["id"]}, pieces
call = asked.tool_calls[0]
history = [HumanMessage("What is 2 and 3?"), AIMessage("", tool_calls=[call]), ToolMessage("5", tool_call_id=call["id"])]
assert plain.bind_tools([add], tool_choice="none").invoke(history).content
answer = chat(use_responses_api=True).invoke("Say hello.")
assert answer.text if isinstance(answer.text, str) else answer.text()
