"""Whatever a model writes under the grammar of a format, its parser finds valid calls in."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from frontend.server.text.detokenizer import decode
from frontend.server.text.dialect import Dialect, Reading
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer
from frontend.server.text.tools import harmony
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import put_together
from frontend.wire import Tool
from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens

_TEXT = {"type": "string", "maxLength": 8}
_COUNT = {"type": "integer", "minimum": -3, "maximum": 1000}
_TOOLS = (
    Tool("now"),
    Tool(
        "weather",
        "Of a city",
        {
            "type": "object",
            "properties": {
                "city": _TEXT,
                "days": _COUNT,
                "unit": {"enum": ["c", "f"], "type": "string"},
                "sure": {"type": "boolean"},
            },
            "required": ["city"],
        },
    ),
    Tool("some", None, {"type": "object", "properties": {"a": _COUNT, "b": {"anyOf": [_COUNT, {"type": "null"}]}, "c": _TEXT}}),
    Tool(
        "deep",
        None,
        {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/Place"}, "list": {"type": "array", "items": _COUNT, "maxItems": 3}},
            "required": ["at", "list"],
            "$defs": {"Place": {"type": "object", "properties": {"x": _COUNT, "name": _TEXT}, "required": ["x"]}},
            "not": {"required": ["z"]},  # grammars do not know it, so it is not looked at
        },
    ),
)

# (template, special tokens, format)
_MODELS = {
    "hermes": ("{{ tools }}<tool_call>", ()),
    "hermes, special tokens": ("{{ tools }}<tool_call></think>", ("<tool_call>", "</tool_call>", "</think>")),
    "qwen3_coder": ("{{ tools }}<tool_call><function=", ()),
    "llama3_json": ("{{ tools }}", ("<|python_tag|>",)),
    "mistral": ("{{ tools }}[TOOL_CALLS]", ("[TOOL_CALLS]",)),
    "mistral, newer": ("{{ tools }}[TOOL_CALLS][THINK][/THINK]", ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")),
    "pythonic": ("{{ tools }}[func_name1(", ()),
    "generic": ("{{ messages }}</think>", ()),
    "openai": ("{{ tools }}<|channel|>analysis<|message|>", harmony.MARKS),
    "openai, no special tokens": ("{{ tools }}<|channel|>analysis<|message|>", ()),
}


class _Model:
    """Writes any token that its grammar allows."""

    def __init__(self, name: str) -> None:
        template, special = _MODELS[name]
        letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), '{"', '":', "tool", "<t", "}}"]
        merges = [("{", '"'), ('"', ":"), ("<", "t"), ("}", "}")]
        fast = FastTokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=merges))
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        fast.decoder = decoders.ByteLevel()
        fast.add_special_tokens([AddedToken(text, normalized=False) for text in ("</s>", *special)])
        self.tokenizer = Tokenizer(fast, SpecialTokens((len(letters),), None, {}), template)
        self.dialect = Dialect(self.tokenizer, takes_tools="tools" in template)
        assert self.dialect.format.name == name.partition(",")[0]
        self.tokens = Tokens(self.tokenizer.vocabulary(), self.tokenizer.vocab_size)

    def reading(self, calling: Calling | None, *, opened: bool = False) -> Reading:
        tail = self.dialect.tags.opening if opened and self.dialect.tags is not None else ""
        if self.dialect.channels and not opened:
            tail = "<|start|>assistant"
        elif self.dialect.channels:
            tail = "<|message|>It is "
        reading = self.dialect.reading(calling, tail)
        assert reading is not None
        return reading

    def write(self, grammar: Grammar, draw: random.Random, first: Sequence[int] = ()) -> list[int]:
        matcher = self.tokens.compile(self.tokens.translate(grammar))
        written: list[int] = []
        for number in range(2000):
            bits = np.unpackbits(self.tokens.mask(matcher).view(np.uint8), bitorder="little")
            (may_follow,) = np.nonzero(bits)
            if number < len(first):
                token_id = first[number]
                assert bits[token_id]
            else:
                ends = [token_id for token_id in may_follow if token_id in self.tokens.eos_ids]
                token_id = int(ends[0] if ends and draw.random() < 0.5 else draw.choice(may_follow))
            if token_id in self.tokens.eos_ids:
                return written
            written.append(token_id)
            assert matcher.consume_token(token_id), matcher.get_error()
        raise AssertionError("it does not end")

    def read(self, reading: Reading, token_ids: Sequence[int]) -> Any:
        return put_together(reading.reader().feed(decode(reading.token_bytes, token_ids), final=True))


@pytest.fixture(scope="module", params=_MODELS)
def model(request: pytest.FixtureRequest) -> _Model:
    return _Model(request.param)


def _check(name: str, written: str) -> None:
    arguments = json.loads(written)
    (tool,) = [tool for tool in _TOOLS if tool.name == name]
    properties = tool.parameters.get("properties", {})
    assert set(tool.parameters.get("required", ())) <= set(arguments) <= set(properties)
    for key, value in arguments.items():
        match key:
            case "city" | "c":
                assert isinstance(value, str)
                assert len(value) <= 8
            case "days" | "a":
                assert isinstance(value, int)
            case "unit":
                assert value in ("c", "f")
            case "sure":
                assert isinstance(value, bool)
            case "b":
                assert value is None or isinstance(value, int)
            case "at":
                assert isinstance(value["x"], int)
            case "list":
                assert len(value) <= 3


def test_required_calls_are_valid(model: _Model) -> None:
    draw = random.Random(1)
    reading = model.reading(Calling(tools=_TOOLS, is_required=True))
    grammar = reading.grammar_for(None)
    assert grammar is not None
    seen = set()
    for _ in range(12):
        token_ids = model.write(grammar, draw, _without_thoughts(model))
        told = model.read(reading, token_ids)
        assert told.calls
        assert told.content == ""
        for name, arguments in told.calls:
            _check(name, arguments)
            seen.add(name)
    assert len(seen) > 1


def _without_thoughts(model: _Model) -> list[int]:
    """How calls begin, since random thoughts would not come to an end."""
    if model.dialect.channels:
        return model.tokenizer.encode("<|channel|>commentary", add_special_tokens=False)
    return [] if model.dialect.tags is None else model.tokenizer.encode(model.dialect.format.marks[0], add_special_tokens=False)


def test_a_named_call_is_one_call_of_that_tool(model: _Model) -> None:
    reading = model.reading(Calling(tools=_TOOLS, names=frozenset(["some"]), is_required=True, is_named=True, parallel=False))
    grammar = reading.grammar_for(None)
    assert grammar is not None
    told = model.read(reading, model.write(grammar, random.Random(2), _without_thoughts(model)))
    assert [name for name, _ in told.calls] == ["some"]


def _accepts(model: _Model, grammar: Grammar, text: str) -> bool:
    matcher = model.tokens.compile(model.tokens.translate(grammar))
    token_ids = model.tokenizer.encode(text, add_special_tokens=False)
    return bool(matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting())


def test_thoughts_may_go_before(model: _Model) -> None:
    if model.dialect.tags is None:
        return
    opening, closing, _ = model.dialect.tags
    integer = Grammar("json_schema", '{"type": "integer"}')
    for opened, begin in ((False, opening), (True, "")):
        grammar = model.reading(None, opened=opened).grammar_for(integer)
        assert grammar is not None
        assert _accepts(model, grammar, f"{begin}\nHm, 7?\n{closing}\n\n12")
        assert not _accepts(model, grammar, f"{begin}\nHm, 7?\n{closing}\n\ntwelve")
        assert _accepts(model, grammar, "12") is not opened  # what is open has to be closed
    assert model.reading(None).grammar_for(None) is None


def test_free_text_holds_valid_calls_only(model: _Model) -> None:
    strict = Tool(
        "add", None, {"type": "object", "properties": {"a": _COUNT}, "required": ["a"], "additionalProperties": False}, True
    )
    grammar = model.reading(Calling(tools=[strict])).grammar_for(None)
    if model.dialect.format.name in ("llama3_json", "pythonic"):  # no mark tells calls from text
        assert grammar is None
        return
    assert grammar is not None
    assert _accepts(model, grammar, _said(model, "No tool is needed."))
    calls = {
        "openai": '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}',
        "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
        "qwen3_coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
    }
    call = calls.get(model.dialect.format.name, calls["hermes"])
    if "[ARGS]" in model.tokenizer._fast.get_vocab():
        call = '[TOOL_CALLS]add[ARGS]{"a": 1}'
    before = "Let me see. "
    if model.dialect.channels:
        before = "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant"
        assert _accepts(model, grammar, f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{before}{call}")
    assert _accepts(model, grammar, before + call)
    assert not _accepts(model, grammar, before + call.replace("1", "one"))
    assert not _accepts(model, grammar, before + call.replace("add", "sub"))


def test_keywords_of_strict_tools_are_not_passed_over(model: _Model) -> None:
    strict = Tool("f", None, {"type": "object", "properties": {}, "not": {}}, True)
    grammar = model.reading(Calling(tools=[strict], is_required=True)).grammar_for(None)
    assert grammar is not None
    if model.dialect.format.name in ("pythonic", "qwen3_coder"):
        return  # parameters have schemas of their own there
    with pytest.raises(GrammarError, match="'not' is not supported"):
        model.tokens.compile(model.tokens.translate(grammar))


def test_an_answer_that_fits_a_schema_or_calls(model: _Model) -> None:
    grammar = model.reading(Calling(tools=_TOOLS)).grammar_for(Grammar("json_schema", '{"type": "integer"}'))
    assert grammar is not None
    assert _accepts(model, grammar, _said(model, "12"))
    assert not _accepts(model, grammar, _said(model, "a"))


def _said(model: _Model, text: str) -> str:
    return f"<|channel|>final<|message|>{text}" if model.dialect.channels else text


def test_thoughts_may_go_before_in_channels(model: _Model) -> None:
    if not model.dialect.channels:
        return
    integer = Grammar("json_schema", '{"type": "integer"}')
    grammar = model.reading(None).grammar_for(integer)
    assert grammar is not None
    thought = "<|channel|>analysis<|message|>Hm, 7?<|end|><|start|>assistant"
    for before in ("", thought, 2 * thought):
        assert _accepts(model, grammar, before + _said(model, "12"))
        assert not _accepts(model, grammar, before + _said(model, "twelve"))
    assert not _accepts(model, grammar, "12")
    assert model.reading(None, opened=True).grammar_for(integer) == integer
    assert model.reading(None).grammar_for(None) is None
