"""How a model writes is found in its template and vocabulary."""

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as FastTokenizer

from frontend.errors import InvalidRequest
from frontend.server.text.dialect import Dialect, Reading
from frontend.server.text.thinking import PARSERS, THINK
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer
from frontend.server.text.tools.calling import Calling
from frontend.server.text.tools.events import CallBegun, Content, Reasoning
from frontend.server.text.tools.formats import FORMATS
from frontend.server.text.tools.harmony import MARKS
from frontend.tools import REASONING_PARSERS, TOOL_PARSERS
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


def _dialect(template: str | None, *special: str) -> Dialect:
    return Dialect(_tokenizer(template, *special), takes_tools="tools" in (template or ""))


def _reading(dialect: Dialect, calling: Calling | None, tail: str = "") -> Reading:
    reading = dialect.reading(calling, tail)
    assert reading is not None
    return reading


@pytest.mark.parametrize(
    ("template", "special", "found"),
    [
        ("{{ tools }}<tool_call>", (), "hermes"),
        ("{{ tools }}<|channel|>analysis<|message|>", (), "openai"),
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
    assert _dialect(template, *special).format.name == found


def test_operators_name_what_is_there() -> None:
    assert set(TOOL_PARSERS) == set(FORMATS)
    assert set(REASONING_PARSERS) == set(PARSERS)


def test_operators_know_better() -> None:
    tokenizer = _tokenizer("{{ tools }}<tool_call></think>")
    assert Dialect(tokenizer, takes_tools=True).tags == THINK
    dialect = Dialect(tokenizer, takes_tools=True, tool_parser="llama4_pythonic", reasoning_parser="none")
    assert (dialect.format.name, dialect.tags, dialect.rewrites_tools) == ("pythonic", None, False)
    assert Dialect(_tokenizer(None), takes_tools=False, reasoning_parser="qwen3").tags == THINK
    assert Dialect(tokenizer, takes_tools=False, tool_parser="hermes").rewrites_tools


def test_marks_that_are_special_tokens_are_seen_and_others_are_not() -> None:
    tokenizer = _tokenizer("{{ tools }}[TOOL_CALLS]</think>", "[TOOL_CALLS]", "<think>", plain=("</think>",))
    ids = {token.content: token_id for token_id, token in tokenizer.added_tokens().items()}
    dialect = Dialect(tokenizer, takes_tools=True)
    shown, without_calls = _reading(dialect, _CALLING).token_bytes, _reading(dialect, None).token_bytes
    assert [shown[ids[text]] for text in ("[TOOL_CALLS]", "<think>", "</think>", "</s>")] == [
        *(b"[TOOL_CALLS]", b"<think>", b"</think>", b"")
    ]
    assert [without_calls[ids[text]] for text in ("[TOOL_CALLS]", "<think>")] == [b"", b"<think>"]


def test_a_reader_tells_thoughts_text_and_calls_apart() -> None:
    reader = _reading(_dialect("{{ tools }}<tool_call></think>"), _CALLING, "<|assistant|>\n<think>\n").reader()
    events = reader.feed('Hm.</think>\n\nSo:<tool_call>{"name": "now"}</tool_call>', final=True)
    assert events[:3] == [Reasoning("Hm."), Content("So:"), CallBegun(0, "now")]
    assert reader.num_calls == 1


def test_channels_are_read_with_and_without_tools() -> None:
    dialect = _dialect("{{ tools }}<|channel|>analysis<|message|>", *MARKS)
    ids = {token.content: token_id for token_id, token in _tokenizer(None, *MARKS).added_tokens().items()}
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>So."
    for calling in (None, _CALLING):
        reading = _reading(dialect, calling, "<|start|>assistant")
        assert [reading.token_bytes[ids[mark]] for mark in MARKS] == [mark.encode() for mark in MARKS]
        assert reading.reader().feed(text, final=True) == [Reasoning("Hm."), Content("So.")]
    (more,) = _reading(dialect, None, "<|channel|>final<|message|>Well").reader().feed(" then.", final=True)
    assert more == Content(" then.")


def test_operators_tell_of_channels() -> None:
    tokenizer = _tokenizer("{{ tools }}<tool_call></think>")
    for parsers in ({"tool_parser": "openai"}, {"reasoning_parser": "openai_gptoss"}):
        dialect = Dialect(tokenizer, takes_tools=True, **parsers)
        assert dialect.channels and dialect.tags is None and not dialect.rewrites_tools
    aloud = Dialect(_tokenizer("<|channel|>analysis"), takes_tools=True, reasoning_parser="none")
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>So."
    assert _reading(aloud, None).reader().feed(text, final=True) == [Content("Hm."), Content("So.")]


def test_one_call_is_one_call_in_channels() -> None:
    calling = Calling(tools=TOOLS, parallel=False)
    call = "<|channel|>commentary to=functions.now<|message|>{}<|call|><|start|>assistant"
    events = _reading(_dialect("<|channel|>analysis"), calling).reader().feed(2 * call, final=True)
    assert put_together(events) == ("", [("now", "{}")])


def test_without_tools_calls_are_text() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>'
    assert _dialect("{{ tools }}<tool_call>").reading(None) is None
    reader = _reading(_dialect("{{ tools }}<tool_call></think>"), None).reader()
    assert reader.feed(text, final=True) == [Content(text)]
    assert reader.num_calls == 0


@pytest.mark.parametrize("calling", [Calling(tools=TOOLS, parallel=False), Calling(tools=TOOLS, is_required=True, parallel=False)])
def test_one_call_is_one_call(calling: Calling) -> None:
    reader = _reading(_dialect("{{ tools }}<tool_call>"), calling).reader()
    events = reader.feed('<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "add"}</tool_call>.', final=True)
    assert put_together(events) == (".", [("now", "{}")])
    assert reader.num_calls == 1


_STRICT = Tool("strict", None, {"type": "object", "properties": {}, "additionalProperties": False}, strict=True)
_INTEGER = Grammar("json_schema", '{"type": "integer"}')


def test_when_a_grammar_is_needed() -> None:
    hermes, generic = _dialect("{{ tools }}<tool_call>"), _dialect("{{ messages }}")
    assert hermes.grammar_for(_CALLING, None) is None
    assert hermes.grammar_for(Calling(tools=TOOLS, is_required=True), None) is not None
    assert hermes.grammar_for(Calling(tools=[*TOOLS, _STRICT]), None) is not None
    assert generic.grammar_for(_CALLING, None) is not None
    assert _dialect("{{ tools }}", "<|python_tag|>").grammar_for(Calling(tools=[_STRICT]), None) is None  # no mark to know it by


def test_an_answer_of_a_certain_form_may_be_calls_instead() -> None:
    dialect = _dialect("{{ tools }}<tool_call>")
    grammar = dialect.grammar_for(_CALLING, _INTEGER)
    assert grammar is not None
    assert "<tool_call>" in grammar.text
    assert '%json {"type": "integer"' in grammar.text
    with pytest.raises(InvalidRequest, match="combined"):
        dialect.grammar_for(_CALLING, Grammar("gbnf", "root ::= x"))


def test_thoughts_go_before_what_is_structured() -> None:
    assert _dialect("{{ messages }}").grammar_for(None, _INTEGER) == _INTEGER
    dialect = _dialect("{{ messages }}</think>")
    assert dialect.grammar_for(None, None) is None
    grammar = dialect.grammar_for(None, _INTEGER)
    assert grammar is not None
    assert grammar.kind == "lark"
    assert dialect.grammar_for(None, Grammar("structural_tag", "{}")) == Grammar("structural_tag", "{}")
