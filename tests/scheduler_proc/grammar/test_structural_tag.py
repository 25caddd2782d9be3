"""Free text with marked parts, in both shapes that clients write."""

import json
from typing import Any

import pytest

from frontend.server.text.tokenizer import Tokenizer
from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import accepts

INTEGER = {"type": "integer"}
OLDER = {
    "structures": [
        {"begin": "<f=a>", "schema": INTEGER, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "boolean"}, "end": "</f>"},
        {"begin": "<g>", "schema": INTEGER, "end": "</g>"},
    ],
    "triggers": ["<f=", "<g"],
}


def tag(content: dict[str, Any], begin: str = "<t>", end: str = "</t>") -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


SCHEMA = {"type": "json_schema", "json_schema": INTEGER}
TEXT = {"type": "any_text"}


@pytest.mark.parametrize(
    ("asked", "text", "wanted"),
    [
        (OLDER, "no tags at all", True),
        (OLDER, "some < text <f=a>12</f> and <f=b>true</f><g>3</g> more", True),
        (OLDER, "text <f=a>x", False),
        (OLDER, "text <f=c>1</f>", False),
        (OLDER, "text <f=a>1", False),
        ({"format": SCHEMA}, "12", True),
        ({"format": SCHEMA}, "x", False),
        ({"format": {"type": "const_string", "value": 'a "b"\n'}}, 'a "b"\n', True),
        ({"format": {"type": "regex", "pattern": "[a-c]+/"}}, "abc/", True),
        ({"format": tag(SCHEMA)}, "<t>5</t>", True),
        ({"format": tag(SCHEMA)}, "<t>5", False),
        ({"format": tag(TEXT)}, "<t>any text\n</t>", True),
        ({"format": tag(TEXT)}, "<t>any text", False),
        ({"format": {"type": "sequence", "elements": [tag(TEXT, "<think>", "</think>"), SCHEMA]}}, "<think>hm</think>7", True),
        ({"format": {"type": "sequence", "elements": [tag(TEXT, "<think>", "</think>"), SCHEMA]}}, "<think>hm</think>x", False),
        ({"format": {"type": "or", "elements": [SCHEMA, {"type": "const_string", "value": "none"}]}}, "none", True),
        ({"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag(SCHEMA)]}}, "text <t>1</t> text", True),
        ({"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag(SCHEMA)]}}, "text", True),
        ({"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag(SCHEMA)], "at_least_one": True}}, "text", False),
        (
            {"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag(SCHEMA)], "at_least_one": True}},
            "text <t>1</t>",
            True,
        ),
        (
            {"format": {"type": "triggered_tags", "triggers": ["<t"], "tags": [tag(SCHEMA)], "stop_after_first": True}},
            "text <t>1</t> text",
            False,
        ),
        ({"format": {"type": "tags_with_separator", "tags": [tag(SCHEMA)], "separator": ","}}, "<t>1</t>,<t>2</t>", True),
        ({"format": {"type": "tags_with_separator", "tags": [tag(SCHEMA)], "separator": ","}}, "", True),
        ({"format": {"type": "tags_with_separator", "tags": [tag(SCHEMA)], "separator": ",", "at_least_one": True}}, "", False),
        ({"format": {"type": "tags_with_separator", "tags": [tag(SCHEMA)], "separator": ","}}, "<t>1</t><t>2</t>", False),
    ],
)
def test_both_shapes_allow_what_they_say(
    tokens: Tokens, tokenizer: Tokenizer, asked: dict[str, Any], text: str, wanted: bool
) -> None:
    assert accepts(tokens, tokenizer, Grammar("structural_tag", json.dumps(asked)), text) is wanted


def test_a_tag_may_begin_with_a_token_that_has_no_text(tokens: Tokens, tokenizer: Tokenizer) -> None:
    """As models' own marks of calls are."""
    asked = {"format": {"type": "triggered_tags", "triggers": ["<|im_start|>"], "tags": [tag(SCHEMA, "<|im_start|>call ", "")]}}
    grammar = Grammar("structural_tag", json.dumps(asked))
    assert accepts(tokens, tokenizer, grammar, "text <|im_start|>call 5")  # the tokenizer makes the token of its name
    assert not accepts(tokens, tokenizer, grammar, "text <|im_start|>call x")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"structures": [], "triggers": ["<t"]}, "no trigger of the structural tag begins one of its tags"),
        ({"structures": 5, "triggers": []}, "`structures` of a structural tag must be a list"),
        ({"structures": [{"begin": "<x>", "end": ""}], "triggers": ["<y"]}, "no trigger of the structural tag"),
        (
            {"structures": [{"begin": "<x>", "end": ""}, {"begin": "z", "end": ""}], "triggers": ["<x"]},
            "no trigger begins the tag 'z'",
        ),
        ({"structures": [{"begin": "<x>", "end": "", "schema": 5}], "triggers": ["<x"]}, "a schema is a JSON object"),
        ({"structures": [{"begin": "<x>", "end": "", "schema": {"not": {}}}], "triggers": ["<x"]}, "'not' is not supported"),
        ({"format": {"type": "poem"}}, "a format of type 'poem' is not supported"),
        ({"format": {"type": "or", "elements": []}}, "a choice among nothing"),
        ({"format": {"type": "regex", "pattern": "("}}, "unclosed group"),
        ([], "a structural tag is a JSON object"),
    ],
)
def test_what_is_wrong_is_named(tokens: Tokens, asked: Any, said: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        tokens.compile(tokens.translate(Grammar("structural_tag", json.dumps(asked))))
    assert said in str(refusal.value)
