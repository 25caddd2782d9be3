"""How a model writes is found in its template and vocabulary."""

import json

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from frontend.server.text.dialect import Dialect
from frontend.server.text.thinking import THINK
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import CallBegun, Content, Reasoning
from frontend.wire import Tool
from protocol.params import Grammar
from tests.frontend.server.text.tools.read import TOOLS, put_together

_CALLING = Calling(tools=TOOLS)


def _tokenizer(template: str | None, *special: str, plain: tuple[str, ...] = ()) -> Tokenizer:
    fast = FastTokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, normalized=False) for text in ("</s>", *special)])
    fast.add_tokens([AddedToken(text, normalized=False) for text in plain])
    return Tokenizer(fast, SpecialTokens((1,), None, {}), template)


@pytest.mark.parametrize(
    ("template", "special", "found"),
    [
        ("{{ tools }}<tool_call>", (), "hermes"),
        ("{{ tools }}<tool_call><function=", (), "qwen3_coder"),
        ("{{ tools }}[TOOL_CALLS]", (), "mistral"),
        ("{{ tools }}", ("[TOOL_CALLS]",), "mistral"),
        ("{{ tools }}", ("<|python_tag|>",), "llama3_json"),
        ("{{ tools }}[func_name1(", ("<|python_tag|>",), "pythonic"),
        ("{{ tools }}", ("<|python_tag|>", "<|python_start|>"), "pythonic"),
        ("{{ tools }}", (), "generic"),
        ("{{ messages }}", ("<tool_call>",), "generic"),  # it would not be told of its tools
        (None, (), "generic"),
    ],
)
def test_the_format_of_calls(template: str | None, special: tuple[str, ...], found: str) -> None:
    assert Dialect(_tokenizer(template, *special)).format.name == found


def test_operators_know_better() -> None:
    tokenizer = _tokenizer("{{ tools }}<tool_call></think>")
    assert Dialect(tokenizer).tags == THINK
    dialect = Dialect(tokenizer, "llama4_pythonic", "none")
    assert (dialect.format.name, dialect.tags) == ("pythonic", None)
    assert Dialect(_tokenizer(None), reasoning_parser="qwen3").tags == THINK


def test_marks_that_are_special_tokens_are_seen_and_others_are_not() -> None:
    tokenizer = _tokenizer("{{ tools }}[TOOL_CALLS]</think>", "[TOOL_CALLS]", "<think>", plain=("</think>",))
    ids = {token.content: token_id for token_id, token in tokenizer.added_tokens().items()}
    dialect = Dialect(tokenizer)
    shown, without_calls = dialect.token_bytes(_CALLING), dialect.token_bytes(None)
    assert [shown[ids[text]] for text in ("[TOOL_CALLS]", "<think>", "</think>", "</s>")] == [
        *(b"[TOOL_CALLS]", b"<think>", b"</think>", b"")
    ]
    assert [without_calls[ids[text]] for text in ("[TOOL_CALLS]", "<think>")] == [b"", b"<think>"]


def test_a_reader_tells_thoughts_text_and_calls_apart() -> None:
    reader = Dialect(_tokenizer("{{ tools }}<tool_call></think>")).reader(_CALLING, opened=True)
    events = reader.feed('Hm.</think>\n\nSo:<tool_call>{"name": "now"}</tool_call>', final=True)
    assert events[:3] == [Reasoning("Hm."), Content("So:"), CallBegun(0, "now")]
    assert reader.num_calls == 1


def test_without_tools_calls_are_text() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>'
    reader = Dialect(_tokenizer("{{ tools }}<tool_call>")).reader(None)
    assert reader.feed(text, final=True) == [Content(text)]
    assert reader.num_calls == 0


@pytest.mark.parametrize("calling", [Calling(tools=TOOLS, parallel=False), Calling(tools=TOOLS, is_required=True, is_named=True)])
def test_one_call_is_one_call(calling: Calling) -> None:
    reader = Dialect(_tokenizer("{{ tools }}<tool_call>")).reader(calling)
    events = reader.feed('<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "add"}</tool_call>.', final=True)
    assert put_together(events) == (".", [("now", "{}")])
    assert reader.num_calls == 1


def test_when_a_grammar_is_needed() -> None:
    hermes, generic = Dialect(_tokenizer("{{ tools }}<tool_call>")), Dialect(_tokenizer("{{ messages }}"))
    assert hermes.grammar_for(_CALLING) is None
    assert hermes.grammar_for(Calling(tools=TOOLS, is_required=True)) is not None
    assert generic.grammar_for(_CALLING) is not None
    strict = Calling(tools=[TOOLS[0], _STRICT])
    assert hermes.grammar_for(strict) is not None


_STRICT = Tool("strict", None, {"type": "object", "properties": {}, "additionalProperties": False}, strict=True)


def test_thoughts_go_before_what_is_structured() -> None:
    schema = Grammar("json_schema", json.dumps({"type": "integer"}))
    assert Dialect(_tokenizer("{{ messages }}")).after_thoughts(schema) == schema
    dialect = Dialect(_tokenizer("{{ messages }}</think>"))
    assert dialect.after_thoughts(schema).kind == "lark"
    assert dialect.after_thoughts(Grammar("structural_tag", "{}")) == Grammar("structural_tag", "{}")
