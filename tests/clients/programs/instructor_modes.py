"""instructor: answers as objects, by tools and by response formats."""

import sys
from typing import Literal

import instructor
import openai
from pydantic import BaseModel, ConfigDict, Field

BASE_URL, MODEL = sys.argv[1:]


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["child", "adult"]
    age: int = Field(ge=0, le=120)


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none"), mode=mode)
    person = client.chat.completions.create(
        model=MODEL,
        response_model=Person,
        messages=[{"role": "user", "content": "Anna is 34 years old."}],
        max_tokens=120,
        temperature=0,
        max_retries=0 if mode is not instructor.Mode.JSON else 2,
    )
    assert isinstance(person, Person), (mode, person)
