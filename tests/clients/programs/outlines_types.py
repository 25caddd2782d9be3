"""outlines: types as constraints, through OpenAI's form and through vLLM's."""

import json
import sys
from typing import Literal

import openai
import outlines
from pydantic import BaseModel, ConfigDict

BASE_URL, MODEL = sys.argv[1:]


class Point(BaseModel):
    model_config = ConfigDict(extra="forbid")
    x: int
    inside: bool


client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none")
by_openai = outlines.from_openai(client, MODEL)
Point.model_validate_json(by_openai("A point, please.", Point, max_tokens=60, temperature=0))
by_vllm = outlines.from_vllm(client, MODEL)
Point.model_validate_json(by_vllm("A point, please.", Point, max_tokens=60, temperature=0))
assert by_vllm("Good or bad?", Literal["good", "bad"], max_tokens=10, temperature=0) in ("good", "bad")
number = by_vllm("A number:", outlines.types.regex(r"[0-9]{3}"), max_tokens=10, temperature=0)
assert len(number) == 3 and number.isdigit(), number
json.loads(
    by_vllm(
        "Anything",
        outlines.types.json_schema(
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
        ),
        max_tokens=30,
    )
)
