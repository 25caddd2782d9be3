import json

import pytest

from frontend.server.text.tokenizer import Tokenizer
from protocol.params import Grammar
from scheduler_proc.grammar.errors import GrammarError
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import accepts, allowed

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("grammar", "text", "wanted"),
    [
        (Grammar("json_object"), "{}", True),
        (Grammar("json_object"), '{"a": [1, null, {"b": "c"}]}', True),
        (Grammar("json_object"), "[]", False),
        (Grammar("json_schema", PERSON), '{"name":"Ada","age":36}', True),
        (Grammar("json_schema", PERSON), '{\n  "name": "Ada",\n  "age": 36\n}', True),
        (Grammar("json_schema", PERSON), '{"name":"Ada","age":-1}', False),
        (Grammar("json_schema", PERSON), '{"name":"Ada"}', False),
        (Grammar("json_schema", PERSON), '{"name":"Ada", "age":36, "x": 1}', False),
        (Grammar("json_schema", PERSON), '{"name":"Ada",\n\n\n"age":36}', False),  # white space is bounded
        (Grammar("json_schema", "true"), "[1]", True),
        (Grammar("json_schema", '{"enum": ["a", 5, null]}'), "5", True),
        (Grammar("json_schema", '{"enum": ["a", 5, null]}'), "6", False),
        (Grammar("regex", r"[A-Z][a-z]{2,4}/\d"), "Abc/7", True),
        (Grammar("regex", r"^abc$"), "abc", True),
        (Grammar("regex", r"a.c"), "a\nc", False),
        (Grammar("choice", '["yes", "yes please", "n\\u00f6 \\"quoted\\""]'), "yes", True),
        (Grammar("choice", '["yes", "yes please", "n\\u00f6 \\"quoted\\""]'), "yes please", True),
        (Grammar("choice", '["yes", "yes please", "n\\u00f6 \\"quoted\\""]'), 'nö "quoted"', True),
        (Grammar("choice", '["yes", "yes please"]'), "yes pl", False),
        (Grammar("lark", 'start: "a" b+\nb: /[0-9]/ ","'), "a1,2,", True),
        (Grammar("lark", 'start: "a" b+\nb: /[0-9]/ ","'), "a", False),
        (Grammar("gbnf", 'root ::= "a" b+\nb ::= [0-9] ","'), "a1,2,", True),
    ],
)
def test_each_kind_allows_what_it_says(tokens: Tokens, tokenizer: Tokenizer, grammar: Grammar, text: str, wanted: bool) -> None:
    assert accepts(tokens, tokenizer, grammar, text) is wanted


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("json_schema", '{"type": "array", "uniqueItems": true}'), "the schema's keyword 'uniqueItems' is not supported"),
        (
            Grammar("json_schema", '{"properties": {"a": {"type": "array", "uniqueItems": true, "contains": {}}}}'),
            "the schema's keywords 'contains', 'uniqueItems' are not supported",
        ),
        (Grammar("json_schema", '{"not": {}}'), "the schema's keyword 'not' is not supported"),
        (
            Grammar("json_schema", '{"not": {}, "x-guidance": {"lenient": true}}'),
            "the schema's keyword 'not' is not supported",
        ),
        (Grammar("json_schema", '{"type": "strin"}'), "Invalid type: strin"),
        (Grammar("json_schema", "{"), "the schema is no JSON"),
        (Grammar("json_schema", "false"), "no value fits the schema"),
        (Grammar("json_schema", '{"$ref": "#/$defs/x"}'), "$ref: '#/$defs/x' is not in the schema"),
        (Grammar("json_schema", '{"$ref": "http://127.0.0.1/x"}'), "nothing is fetched"),
        (Grammar("json_schema", '{"type": "string", "format": "shoe size"}'), "format: 'shoe size' is not supported"),
        (Grammar("json_schema", '{"type": "string", "pattern": "(?=a)b"}'), "look-around"),
        (Grammar("json_schema", "[" * 500), "it is nested too deeply"),
        (Grammar("json_schema", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}'), "oneOf: its parts may overlap"),
        (Grammar("regex", "("), "unclosed group"),
        (Grammar("choice", "[]"), "1 to 10000 choices"),
        (Grammar("choice", '{"a": 1}'), "a list of texts"),
        (Grammar("lark", "start: b"), "b"),
        (Grammar("gbnf", 'a ::= "x"'), "no rule `root`"),
        (Grammar("structural_tag", "{}"), "`structures` of a structural tag must be a list"),
    ],
)
def test_what_is_wrong_is_named(tokens: Tokens, grammar: Grammar, said: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        tokens.mask(tokens.compile(tokens.translate(grammar)))
    assert said in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_no_text_contains_a_control_token_or_an_id_beyond_the_tokenizer(tokens: Tokens, tokenizer: Tokenizer) -> None:
    control = {*tokenizer.special_ids, *tokenizer.special.eos_ids}
    matcher = tokens.compile(tokens.translate(Grammar("regex", r"(.|\n)*")))
    ids = allowed(tokens.mask(matcher))
    assert control.intersection(ids) == set(tokens.eos_ids)
    assert max(ids) < tokenizer.vocab_size
    matcher = tokens.compile(tokens.translate(Grammar("json_object")))
    assert matcher.consume_tokens(tokenizer.encode('{"a', add_special_tokens=False))
    assert not control.intersection(allowed(tokens.mask(matcher)))
