"""What a tool may be, for HTTP and the Python client alike: bounded before anything is made of it."""

import re
from collections.abc import Sequence
from typing import Any

from frontend.errors import InvalidRequest
from frontend.wire import Tool

# By vLLM's names, which formats of calls and which tags around thoughts are known.
TOOL_PARSERS = (
    *(
        "hermes",
        "qwen3_coder",
        "qwen3_xml",
        "llama3_json",
        "llama4_json",
        "mistral",
        "pythonic",
        "llama4_pythonic",
        "openai",
        "generic",
    ),
)
REASONING_PARSERS = ("qwen3", "glm45", "deepseek_r1", "mistral", "seed_oss", "openai_gptoss")

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # as OpenAI has it
MOST_TOOLS = 512
_MOST_CHARACTERS = 1 << 20  # of all descriptions and schemas
_MOST_VALUES = 1 << 16  # in all schemas
_DEEPEST = 64


def check_tools(tools: Sequence[Tool], field: str = "tools") -> None:
    """Raises InvalidRequest naming what is too much, or the tool at fault."""
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(f"{field}: at most {MOST_TOOLS} tools, not {len(tools)}", field)
    names: set[str] = set()
    characters = values = 0
    for index, tool in enumerate(tools):
        where = f"{field}[{index}]"
        if _NAME.fullmatch(tool.name) is None:
            raise InvalidRequest(f"{where}: a name has 1 to 64 letters, digits, - and _, unlike {tool.name[:64]!r}", where)
        if tool.name in names:
            raise InvalidRequest(f"{where}: there are two tools named {tool.name}", where)
        names.add(tool.name)
        if "object" not in (kind if isinstance(kind := tool.parameters.get("type", "object"), list) else [kind]):
            raise InvalidRequest(f"{where}: parameters is the schema of an object, whose properties are the arguments", where)
        size = _size(tool.parameters, where)
        characters, values = characters + size[0] + len(tool.description or ""), values + size[1]
        if characters > _MOST_CHARACTERS or values > _MOST_VALUES:
            raise InvalidRequest(f"{field}: their schemas together are too large", field)


def _size(value: Any, where: str) -> tuple[int, int]:
    """(characters, values) of JSON. Raises InvalidRequest when it is nested too deeply."""
    characters = values = 0
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        values += len(level)
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, dict):
                characters += sum(map(len, item))
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below
        if not level or values > _MOST_VALUES:
            return characters, values
    raise InvalidRequest(f"{where}: its schema is nested more than {_DEEPEST} levels deep", where)
