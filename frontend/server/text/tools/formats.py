"""The formats in which models call tools, by vLLM's names, and which one a model has."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from frontend.server.text.tools import grammars, harmony, hermes, llama, mistral, pythonic, qwen_coder
from frontend.server.text.tools.grammars import Rules, Unit
from frontend.server.text.tools.parser import ToolParser
from frontend.server.text.tools.schemas import schema_of
from frontend.wire import Tool


class WriteUnit(Protocol):
    """How a format writes a call, or a list of them: one only, unless `parallel`."""

    def __call__(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:
        """The expressions, whose rules are added."""


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls: how it is read, and what grammar makes a model write it."""

    name: str
    parser: Callable[[Sequence[Tool]], ToolParser]
    marks: tuple[str, ...]  # texts of it that are special tokens in some models
    unit: WriteUnit

    def required(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool = True) -> str:
        """An expression for one valid call, or several, and nothing else."""
        return grammars.required(rules, self.unit(rules, tools, parallel=parallel), parallel)

    def allowed(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool = True) -> str | None:
        """An expression for any text, in which all calls are valid; None: no mark tells them from text."""
        unit = self.unit(rules, tools, parallel=parallel)
        return grammars.allowed(rules, unit, parallel) if unit.mark else None


@dataclass(frozen=True)
class HarmonyFormat(ToolFormat):
    """Calls in channels. The first one ends an answer, since the model waits for its result."""

    def required(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool = True) -> str:
        """See ToolFormat."""
        return harmony.required(rules, tools)

    def allowed(self, rules: Rules, tools: Sequence[Tool], *, parallel: bool = True) -> str | None:
        """See ToolFormat."""
        return harmony.allowed(rules, tools)


def _harmony(rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:  # noqa: ARG001
    return Unit("", harmony.required(rules, tools), None)


def _hermes(rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:  # noqa: ARG001
    call = grammars.one_of([rules.rule(grammars.json_call(rules, tool, "arguments")) for tool in tools])
    return Unit(hermes.OPEN, rf'"\n" {call} "\n" {rules.text(hermes.CLOSE)}', "\n")


def _qwen_coder(rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:  # noqa: ARG001
    calls = [_function(rules, tool) for tool in tools]
    return Unit(qwen_coder.OPEN, rf'"\n" {grammars.one_of(calls)} "\n" {rules.text(qwen_coder.CLOSE)}', "\n")


def _function(rules: Rules, tool: Tool) -> str:
    parts = [rules.text(f"<function={tool.name}>\n")]
    for name, schema, is_needed in _parameters(tool):
        key, end = rules.text(f"<parameter={name}>\n"), r'"\n</parameter>\n"'
        choices = schema.get("enum")
        if not qwen_coder.takes_text(schema):
            value = f"{rules.json(schema)} {end}"
        elif isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
            value = f"{grammars.one_of([rules.text(choice) for choice in choices])} {end}"
        else:
            value = rules.rule(f"{_text_of(schema)} {end}", lazy=True)
        parts.append(f"{key} {value}" if is_needed else f"({key} {value})?")
    return rules.rule(" ".join([*parts, '"</function>"']))


def _text_of(schema: dict[str, Any]) -> str:
    """An expression for a text between a schema's lengths."""
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if not all(isinstance(size, int) and 0 <= size <= _LONGEST_COUNTED for size in (least, most)):
        return grammars.TEXT
    return rf"/(.|\n){{{least},{most}}}/"


_LONGEST_COUNTED = 1000  # characters: each is a state of the lexer


def _llama(rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:
    call = rules.rule(grammars.one_of([grammars.json_call(rules, tool, "parameters") for tool in tools]))
    return Unit("", grammars.repeated(call, "; ", parallel), None)


def _mistral(rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:
    if rules.is_token(mistral.ARGS):  # the newer of the two
        calls = [f"{rules.text(tool.name)} {rules.text(mistral.ARGS)} {rules.json(schema_of(tool))}" for tool in tools]
        return Unit(mistral.TOOL_CALLS, grammars.one_of(calls), "")
    call = rules.rule(grammars.one_of([grammars.json_call(rules, tool, "arguments") for tool in tools]))
    return Unit(mistral.TOOL_CALLS, f'" "? "[" {grammars.repeated(call, ", ", parallel)} "]"', None)


def _pythonic(rules: Rules, tools: Sequence[Tool], *, parallel: bool) -> Unit:
    call = rules.rule(grammars.one_of([_python_call(rules, tool) for tool in tools]))
    return Unit("", f'"[" {grammars.repeated(call, ", ", parallel)} "]"', None)


def _python_call(rules: Rules, tool: Tool) -> str:
    """name(key=value, …): those that are needed first. JSON's values are read like Python's."""
    parameters = [(f"{rules.text(name + '=')} {rules.json(schema)}", is_needed) for name, schema, is_needed in _parameters(tool)]
    needed = [text for text, is_needed in parameters if is_needed]
    optional = [text for text, is_needed in parameters if not is_needed]
    rest = "".join(f' (", " {text})?' for text in optional)
    inside = ' ", " '.join(needed) + rest if needed else _some_of(rules, optional)
    return f'{rules.text(tool.name + "(")} {inside} ")"'


def _some_of(rules: Rules, texts: Sequence[str]) -> str:
    """Any of these in their order, or none, with commas between them."""
    later = ""  # each with a comma before it
    first = ""
    for text in reversed(texts):
        begins = f"{text} {later}" if later else text
        first = rules.rule(f"{begins} | {first}" if first else begins)
        later = rules.rule(f'(", " {text})? {later}')
    return f"{first}?" if first else ""


def _parameters(tool: Tool) -> list[tuple[str, dict[str, Any], bool]]:
    """(name, schema, whether it is required) of each parameter."""
    schema = schema_of(tool)
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    required = schema.get("required")
    needed = required if isinstance(required, list) else []
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions", "x-guidance") if key in schema}
    return [(name, {**(part if isinstance(part, dict) else {}), **shared}, name in needed) for name, part in properties.items()]


_HERMES = ToolFormat("hermes", hermes.HermesParser, (hermes.OPEN, hermes.CLOSE), _hermes)
GENERIC = ToolFormat("generic", hermes.HermesParser, (hermes.OPEN, hermes.CLOSE), _hermes)
_QWEN_CODER = ToolFormat("qwen3_coder", qwen_coder.QwenCoderParser, (qwen_coder.OPEN, qwen_coder.CLOSE), _qwen_coder)
_LLAMA = ToolFormat("llama3_json", llama.LlamaParser, (llama.PYTHON_TAG,), _llama)
_MISTRAL = ToolFormat("mistral", mistral.MistralParser, (mistral.TOOL_CALLS, mistral.ARGS, mistral.CALL_ID), _mistral)
_PYTHONIC = ToolFormat("pythonic", pythonic.PythonicParser, (pythonic.START, pythonic.END), _pythonic)
HARMONY = HarmonyFormat("openai", harmony.HarmonyParser, harmony.MARKS, _harmony)

FORMATS: dict[str, ToolFormat] = {
    "hermes": _HERMES,
    "qwen3_coder": _QWEN_CODER,
    "qwen3_xml": _QWEN_CODER,
    "llama3_json": _LLAMA,
    "llama4_json": _LLAMA,
    "mistral": _MISTRAL,
    "pythonic": _PYTHONIC,
    "llama4_pythonic": _PYTHONIC,
    "openai": HARMONY,
    "generic": GENERIC,
}

# What tells a format in the text of a template, the first that is there.
_SIGNS: tuple[tuple[str, ToolFormat], ...] = (
    (harmony.SIGN, HARMONY),
    ("[TOOL_CALLS]", _MISTRAL),
    ("<function=", _QWEN_CODER),
    ("<tool_call>", _HERMES),
    ("<|python_start|>", _PYTHONIC),
    ("[func_name1(", _PYTHONIC),
    ("<|python_tag|>", _LLAMA),
    ('"parameters": dictionary of argument name and its value', _LLAMA),
)


def detect(template: str, tokens: Collection[str]) -> ToolFormat:
    """The format of a model: by the text of its chat template, which takes tools, else by the added tokens of its tokenizer."""
    for sign, found in _SIGNS:
        if sign in template:
            return found
    return next((found for sign, found in _SIGNS if sign in tokens), GENERIC)


def described(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """Tools as templates take them: as OpenAI writes them."""
    return [{"type": "function", "function": _function_of(tool)} for tool in tools]


def _function_of(tool: Tool) -> dict[str, Any]:
    described = {"name": tool.name} if tool.description is None else {"name": tool.name, "description": tool.description}
    return {**described, "parameters": tool.parameters or {"type": "object", "properties": {}}}
