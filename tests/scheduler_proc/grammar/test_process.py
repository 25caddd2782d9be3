"""The grammar process as a whole: hogs, deaths, and masks that come where they are wanted."""

import json
import signal
from collections.abc import Iterator

import psutil
import pytest

from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import pack_int32, pack_uint64, unpack_int32
from protocol.config import EngineConfig
from protocol.grammar_messages import Advance, Constrain, ConstraintFailed, Forced, Forget, WantMasks
from protocol.params import Grammar
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import allowed
from tests.scheduler_proc.grammar.process import GrammarProcess, grammar_process

DIGITS = Grammar("regex", "[0-9]{30}")


def web(size: int, uses: int = 8) -> Grammar:
    """A schema whose definitions all use each other."""
    definitions = {
        f"d{i}": {"type": "object", "properties": {f"p{j}": {"$ref": f"#/$defs/d{(i * j + 1) % size}"} for j in range(uses)}}
        for i in range(size)
    }
    return Grammar("json_schema", json.dumps({"$defs": definitions, "$ref": "#/$defs/d0"}))


def deep(depth: int) -> Grammar:
    return Grammar("json_schema", '{"items":' * depth + "{}" + "}" * depth)


def hog(number: int) -> Grammar:
    """It takes more time than it gets."""
    patterns = [{"type": "string", "pattern": f"^.*a.{{{index}}}b"} for index in range(40)]
    return Grammar("json_schema", json.dumps({"title": str(number), "allOf": patterns}))


PATHOLOGICAL = {
    "a hog": hog(0),
    "nested quantifiers": Grammar("regex", "((a{1,1000}){1,1000}){1,1000}b"),
    "nested stars": Grammar("regex", "(((a*)*)*)*b"),
    "states": Grammar("regex", "(a|b)*a(a|b){5000}"),
    "ambiguous": Grammar("regex", "(.*a.*){3000}"),
    "classes": Grammar("regex", "(\\p{L}{1,3000}\\p{N}{1,3000}){1,300}"),
    "ten thousand values": Grammar("json_schema", json.dumps({"enum": [f"value {i} of many" for i in range(10_000)]})),
    "ten thousand choices": Grammar("choice", json.dumps([f"choice {i}" for i in range(10_000)])),
    "depth 500": deep(500),
    "depth 20,000": deep(20_000),
    "references": web(50),
    "more references": web(900),
    "itself": Grammar("json_schema", '{"$ref": "#"}'),
    "a circle": Grammar("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
    "all of": Grammar(
        "json_schema",
        json.dumps({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"minLength": j}}} for j in range(6)]} for i in range(12)]}),
    ),
    "properties": Grammar("json_schema", json.dumps({"properties": {f"p{i}": {"type": "string"} for i in range(5000)}})),
    "a long array": Grammar("json_schema", json.dumps({"items": {"type": "string"}, "minItems": 10**9})),
    "a long text": Grammar("json_schema", json.dumps({"type": "string", "minLength": 10**9})),
    "a wide range": Grammar("json_schema", json.dumps({"type": "number", "minimum": 1.5e-300, "maximum": 1e300})),
    "left recursion": Grammar("lark", 'start: start start | "a"'),
    "nothing but itself": Grammar("lark", "start: start"),
    "groups": Grammar("gbnf", "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "rules": Grammar(
        "gbnf", "root ::= r0\n" + "".join(f'r{i} ::= r{i + 1} r{i + 1} | "a"\n' for i in range(3000)) + 'r3000 ::= "b"'
    ),
    "formats": Grammar("structural_tag", '{"format":' + '{"type":"sequence","elements":[' * 3000 + "]}" * 3000 + "}"),
}


@pytest.fixture(scope="module")
def running(config: EngineConfig, tokenizer: Tokenizer) -> Iterator[GrammarProcess]:
    with grammar_process(config, tokenizer) as process:
        yield process


def want(process: GrammarProcess, step: int, *rows: tuple[int, int]) -> None:
    """`rows`: (request id, position)."""
    ids, positions = zip(*rows, strict=True)
    process.send(WantMasks(0, 0, step, pack_int32(range(len(rows))), pack_uint64(ids), pack_int32(positions)))


def advance(process: GrammarProcess, request_id: int, position: int, token_id: int) -> None:
    process.send(Advance(pack_uint64([request_id]), pack_int32([position]), pack_int32([token_id])))


def test_grammars_are_answered_and_said_again_what_was_said(running: GrammarProcess) -> None:
    assert running.check(DIGITS).error == ""
    for _ in range(2):
        assert "'uniqueItems'" in running.check(Grammar("json_schema", '{"uniqueItems": true}')).error


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_a_pathological_grammar_is_answered_or_refused(running: GrammarProcess, name: str) -> None:
    answer = running.check(PATHOLOGICAL[name])
    assert len(answer.error) < 1000
    assert running.check(DIGITS).error == ""


def test_hogs_do_not_keep_others_from_their_answer(running: GrammarProcess) -> None:
    """Many at once that take all the time that they get."""
    hogs = [running.ask(hog(number)) for number in range(12)]
    assert running.check(Grammar("regex", "[a-z]{3,4}")).error == ""
    for question in hogs:
        assert running.answer(question).error


def test_masks_follow_the_tokens_and_forced_ones_are_said(running: GrammarProcess, tokens: Tokens, tokenizer: Tokenizer) -> None:
    grammar = Grammar("json_schema", '{"properties": {"a_long_property": {"type": "boolean"}}, "required": ["a_long_property"]}')
    running.send(Constrain(7, grammar, b""))
    want(running, 1, (7, 0), (99, 0))
    assert len(allowed(running.mask(1, 1))) == tokens.vocab_size  # nobody knows 99
    matcher = tokens.compile(tokens.translate(grammar))
    text = tokenizer.encode('{"a_long_property":true}', add_special_tokens=False)
    for position, token_id in enumerate(text):
        want(running, 1 + position, (7, position))
        assert allowed(running.mask(1 + position)) == allowed(tokens.mask(matcher))
        assert matcher.consume_token(token_id)
        advance(running, 7, position, token_id)
    forced = running.hear()
    assert isinstance(forced, Forced)
    assert unpack_int32(forced.token_ids_i32).tolist() == text[forced.position :][: len(forced.token_ids_i32) // 4]
    want(running, 100, (7, len(text) + 1))
    running.send(Forget(7))
    assert len(allowed(running.mask(100))) == tokens.vocab_size


def test_a_grammar_that_cannot_be_followed_fails_its_request_alone(running: GrammarProcess) -> None:
    running.send(Constrain(8, Grammar("regex", "("), b""))
    failed = running.hear()
    assert isinstance(failed, ConstraintFailed)
    assert failed.request_id == 8
    assert "unclosed group" in failed.message


def test_what_was_meant_for_a_predecessor_is_dropped_and_a_successor_goes_on(
    config: EngineConfig, tokenizer: Tokenizer, tokens: Tokens
) -> None:
    with grammar_process(config, tokenizer) as process:
        matcher = tokens.compile(tokens.translate(DIGITS))
        process.send(Constrain(1, DIGITS, b""))
        want(process, 1, (1, 0))
        digit = allowed(process.mask(1))[0]
        assert allowed(process.mask(1)) == allowed(tokens.mask(matcher))
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
        want(process, 2, (1, 0))  # for the dead one: its successor knows no request, and would allow everything
        process.start()
        process.send(Constrain(1, DIGITS, pack_int32([digit])))
        want(process, 3, (1, 1))
        assert matcher.consume_token(digit)
        assert allowed(process.mask(3)) == allowed(tokens.mask(matcher))
        assert (2, 0) not in process.masks


def test_nothing_is_left_of_it(config: EngineConfig, tokenizer: Tokenizer) -> None:
    """However it ends: the helper and its children go too."""
    with grammar_process(config, tokenizer) as process:
        assert process.check(DIGITS).error == ""
        helper = process.helper()
        for number in range(3):
            process.ask(hog(number))
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
        psutil.wait_procs([helper], timeout=20)
        assert not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE


def test_it_ends_without_its_helper(config: EngineConfig, tokenizer: Tokenizer) -> None:
    """Whoever starts it again starts both."""
    with grammar_process(config, tokenizer) as process:
        assert process.check(DIGITS).error == ""
        process.helper().kill()
        assert process.process.wait(timeout=20) != 0
