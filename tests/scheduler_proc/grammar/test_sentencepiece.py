"""Structured outputs with vocabularies of SentencePiece: spaces are letters, and some characters are bytes."""

import random
import re
from pathlib import Path

import jsonschema
import msgspec
import pytest

from frontend.server.text.detokenizer import decode
from frontend.server.text.sentencepiece_file import build_from_file
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer
from protocol.params import Grammar
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import allowed

DATA = Path(__file__).parents[2] / "data" / "sentencepiece"
SCHEMA = {
    "type": "object",
    "properties": {
        "größe": {"enum": ["klein wie ü", "日本 語", "\U0001f600"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "t": {"type": "string", "maxLength": 6},
    },
    "required": ["größe", "n", "t"],
    "additionalProperties": False,
}
REGEX = r"(ja|nein doch|😀 ß){1,3}\n  [0-9]{2}"


def written(tokens: Tokens, grammar: Grammar, seed: int) -> list[int]:
    """An output that takes any token that its masks leave, ends where it may."""
    draw = random.Random(seed)
    matcher = tokens.compile(tokens.translate(grammar))
    output: list[int] = []
    while len(output) < 400:
        choices = allowed(tokens.mask(matcher))
        if ends := [token_id for token_id in choices if token_id in tokens.eos_ids]:
            choices = ends
        token_id = draw.choice(choices)
        if token_id in tokens.eos_ids:
            return output
        assert matcher.consume_token(token_id)
        output.append(token_id)
    raise AssertionError("the output does not end")


@pytest.mark.parametrize("name", ["llama", "gemma"])
@pytest.mark.parametrize("kind", ["json_schema", "regex"])
def test_outputs_are_what_was_asked_for(name: str, kind: str) -> None:
    tokenizer = Tokenizer(build_from_file(DATA / f"{name}.model", {}), SpecialTokens((2,), 1, {}), None)
    tokens = Tokens(tokenizer.vocabulary(), tokenizer.vocab_size)
    grammar = Grammar("json_schema", msgspec.json.encode(SCHEMA).decode()) if kind == "json_schema" else Grammar("regex", REGEX)
    used: set[int] = set()
    for seed in range(30):
        output = written(tokens, grammar, seed)
        # As an answer behind a prompt, where no space is taken from the first token.
        text = b"".join(tokenizer.bytes[token_id] for token_id in output).decode()
        assert text == decode(tokenizer.bytes, [tokenizer.encode("a", add_special_tokens=False)[-1], *output])[1:]
        if kind == "regex":
            assert re.fullmatch(REGEX, text), text
        else:
            jsonschema.validate(msgspec.json.decode(text), SCHEMA)
        used.update(output)
    assert not used & tokenizer.special_ids
    assert any(tokenizer.names_of([token_id])[0].startswith("<0x") for token_id in used)  # 😀 has no piece
