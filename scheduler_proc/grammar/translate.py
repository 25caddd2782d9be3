"""From what a client asked for to what the library `llguidance` compiles."""

import re
from collections.abc import Callable

import msgspec
from llguidance import LLMatcher

from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.gbnf import gbnf_to_lark
from scheduler_proc.grammar.lark import quoted
from scheduler_proc.grammar.structural_tag import structural_tag_to_lark

# Between two parts of a JSON text: nothing, a space, or a line break with the spaces of an indented line. JSON allows any run of
# white space there, in which a model at a high temperature can stay for ever.
_WHITE_SPACE = r"( |\n[ \t]{0,40})?"
_MOST_CHOICES = 10_000

_UNSUPPORTED = re.compile(r"Unimplemented keys: \[(.*)\]")
_OTHERS = (  # what the library says -> what a client is told
    (re.compile(r"Unsatisfiable schema: (.*)", re.DOTALL), r"no value fits the schema: \1"),
    (re.compile(r"Resource '(.*?)' is not present.*", re.DOTALL), r"$ref: '\1' is not in the schema, and nothing is fetched"),
    (re.compile(r"Pointer '(.*?)' does not exist.*", re.DOTALL), r"$ref: '#\1' is not in the schema"),
    (re.compile(r"Unknown format: (.*)", re.DOTALL), r"format: '\1' is not supported"),
    (re.compile(r"oneOf constraints are not supported.*", re.DOTALL), "oneOf: its parts may overlap, and that is not supported"),
    (re.compile(r"recursion limit exceeded.*", re.DOTALL), "it is nested too deeply"),
    (re.compile(r"NoExtension.*", re.DOTALL), "nothing fits it"),
)


def translate(grammar: Grammar, special: Callable[[str], str]) -> str:
    """The library's source. `special`: Lark for a text in which special tokens may be named. Raises GrammarError."""
    match grammar.kind:
        case "json_object":
            return _from_schema('{"type":"object"}')
        case "json_schema":
            return _from_schema(grammar.text)
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            return LLMatcher.grammar_from_lark(_from_choices(grammar.text))
        case "lark":
            return LLMatcher.grammar_from_lark(grammar.text)
        case "gbnf":
            return LLMatcher.grammar_from_lark(gbnf_to_lark(grammar.text))
        case "structural_tag":
            return LLMatcher.grammar_from_lark(structural_tag_to_lark(grammar.text, special, _inline_schema))


def explain(text: str) -> str:
    """What the library says against a grammar, for its author."""
    if match := _UNSUPPORTED.search(text):
        keywords = match[1].replace('"', "'")
        return f"the schema's keyword{'s' if ',' in keywords else ''} {keywords} {'are' if ',' in keywords else 'is'} not supported"
    for pattern, said in _OTHERS:
        if match := pattern.search(text):
            return match.expand(said)
    return text.replace("<non-verbose/>", "").strip()


def _from_schema(text: str) -> str:
    match text.strip():  # a schema may be true or false; the library sets its options on objects only
        case "true":
            text = "{}"
        case "false":
            raise GrammarError("no value fits the schema: it is false")
    try:
        # The last word is the engine's: a schema cannot ask for keywords to be ignored.
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITE_SPACE, "lenient": False})
    except ValueError as error:
        text = explain(str(error))
        raise GrammarError(text if "nested" in text else f"the schema is no JSON: {text}") from error


def _inline_schema(schema: object) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("a schema is a JSON object")
    schema = {**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE}}
    return f"%json {msgspec.json.encode(schema).decode()}"


def _from_choices(text: str) -> str:
    try:
        choices = msgspec.json.decode(text, type=list[str])
    except msgspec.DecodeError as error:
        raise GrammarError("the choices must be a list of texts") from error
    if not choices or "" in choices or len(choices) > _MOST_CHOICES:
        raise GrammarError(f"1 to {_MOST_CHOICES} choices are possible, and none of them is empty")
    # One terminal, so that a choice may be the beginning of another.
    return f"start: CHOICE\nCHOICE: {' | '.join(map(quoted, choices))}\n"
