"""What masks allow, jsonschema approves, whatever is chosen among it."""

import json
import random

import pytest

from frontend.server.text.tokenizer import Tokenizer
from protocol.params import Grammar
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import allowed
from tests.scheduler_proc.grammar.schemas import Schema, complaint, random_schema

_LONGEST = 2000  # tokens


def random_answer(tokens: Tokens, tokenizer: Tokenizer, schema: Schema, rng: random.Random) -> str:
    matcher = tokens.compile(tokens.translate(Grammar("json_schema", json.dumps(schema))))
    answer = b""
    for _ in range(_LONGEST):
        choices = allowed(tokens.mask(matcher))
        if tokens.eos_ids[0] in choices and rng.random() < 0.5:
            return answer.decode()
        token_id = rng.choice(choices)
        if token_id in tokens.eos_ids:
            return answer.decode()
        assert matcher.consume_token(token_id)
        answer += tokenizer.bytes[token_id]
    raise AssertionError(f"it does not end: {schema}")


def check(tokens: Tokens, tokenizer: Tokenizer, seeds: range) -> None:
    for seed in seeds:
        rng = random.Random(seed)
        schema = random_schema(rng)
        answer = random_answer(tokens, tokenizer, schema, rng)
        assert not complaint(schema, answer), f"seed {seed}: {answer} for {json.dumps(schema)}"


def test_random_answers_to_random_schemas_are_valid(tokens: Tokens, tokenizer: Tokenizer) -> None:
    check(tokens, tokenizer, range(60))


@pytest.mark.slow
def test_random_answers_to_many_random_schemas_are_valid(tokens: Tokens, tokenizer: Tokenizer) -> None:
    check(tokens, tokenizer, range(60, 2000))
