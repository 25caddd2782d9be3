"""The follower against the plain way: a fresh matcher, fed with all tokens, asked for its mask."""

import json
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import Int32Array, pack_int32, pack_uint64, unpack_int32
from protocol.grammar_messages import Advance, ConstraintFailed, Forced, WantMasks
from protocol.params import Grammar
from scheduler_proc.grammar.follower import Follower
from scheduler_proc.grammar.suspect import SEVERAL, Suspect
from scheduler_proc.grammar.tokens import Tokens
from tests.scheduler_proc.grammar.accepting import allowed

NAMES = json.dumps(
    {
        "type": "object",
        "properties": {
            "a_rather_long_name": {"enum": ["one of several values", "one of many values", 17]},
            "list": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
            "text": {"type": "string", "maxLength": 5},
        },
        "required": ["a_rather_long_name", "list", "text"],
        "additionalProperties": False,
    }
)
GRAMMARS = (
    Grammar("json_schema", NAMES),
    Grammar("regex", r"(yes|no|maybe so){1,4}"),
    Grammar("choice", '["yes", "yes please", "no"]'),
    Grammar("gbnf", 'root ::= "(" root? ")" | [a-z]{1,3}'),
)


@dataclass
class Row:
    """A request as its engine sees it."""

    request_id: int
    grammar: Grammar
    output: list[int] = field(default_factory=list)


class Desk:
    """Wants masks of a follower, and checks each against the plain way."""

    def __init__(self, tokens: Tokens, threads: int = 1) -> None:
        self.tokens = tokens
        with tempfile.TemporaryDirectory() as run_dir:
            self.follower = Follower(tokens, Suspect(run_dir), threads)
        self.step = 0
        self.forced: dict[int, list[Forced]] = {}
        self.failed: list[ConstraintFailed] = []

    def add(self, row: Row, min_tokens: int = 0) -> None:
        self.follower.constrain(row.request_id, min_tokens, row.output)
        self.follower.begin(row.request_id, self.compile(row.grammar))

    def compile(self, grammar: Grammar):  # type: ignore[no-untyped-def]
        return self.tokens.compile(self.tokens.translate(grammar))

    def want(self, rows: list[Row], ahead: int = 0) -> int:
        self.step += 1
        positions = pack_int32([len(row.output) + ahead for row in rows])
        ids = pack_uint64([row.request_id for row in rows])
        self.follower.want(WantMasks(0, 0, self.step, pack_int32(range(len(rows))), ids, positions))
        return self.step

    def masks(self) -> dict[tuple[int, int], Int32Array]:
        """By step and row."""
        found = {}
        while self.follower.has_work:
            for worker, message in self.follower.masks():
                assert (worker, message.epoch) == (0, 0)
                bits = np.frombuffer(message.bits, np.int32).reshape(-1, self.tokens.num_words)
                for row, mask in zip(unpack_int32(message.rows_i32).tolist(), bits, strict=True):
                    assert (message.step_id, row) not in found
                    found[message.step_id, row] = mask
        for said in self.follower.said():
            if isinstance(said, Forced):
                self.forced.setdefault(said.request_id, []).append(said)
            else:
                self.failed.append(said)
        return found

    def advance(self, row: Row, token_id: int) -> None:
        row.output.append(token_id)
        self.follower.advance(Advance(pack_uint64([row.request_id]), pack_int32([len(row.output) - 1]), pack_int32([token_id])))

    def plain(self, row: Row) -> list[int]:
        matcher = self.compile(row.grammar)
        for token_id in row.output:
            assert matcher.is_stopped() or matcher.consume_token(token_id)
        return allowed(self.tokens.mask(matcher))


@pytest.mark.parametrize("grammar", GRAMMARS)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), replays=st.sets(st.integers(0, 30), max_size=3))
def test_masks_are_those_of_a_fresh_matcher_at_any_point(tokens: Tokens, grammar: Grammar, seed: int, replays: set[int]) -> None:
    """Also behind a replay: whoever follows from the middle says the same."""
    desk, rng = Desk(tokens), random.Random(seed)
    row = Row(1, grammar)
    desk.add(row)
    for length in range(40):
        if length in replays:
            desk = Desk(tokens)
            desk.add(row)
        step = desk.want([row])
        masks = desk.masks()
        expected = desk.plain(row)
        assert allowed(masks[step, 0]) == expected
        for forced in desk.forced.pop(1, ()):  # what is forced must be what any way of choosing would have chosen
            probe = Row(1, grammar, list(row.output))
            assert forced.position == len(row.output)
            for token_id in unpack_int32(forced.token_ids_i32).tolist():
                assert desk.plain(probe) == [token_id]
                probe.output.append(token_id)
        desk.advance(row, rng.choice(expected))
        if row.output[-1] in tokens.eos_ids:
            break
    assert not desk.failed


def test_a_mask_waits_for_the_tokens_before_it(tokens: Tokens, tokenizer: Tokenizer) -> None:
    desk = Desk(tokens)
    row = Row(1, Grammar("regex", "a[0-9][0-9]"))
    desk.add(row)
    first, second = desk.want([row]), desk.want([row], ahead=1)
    masks = desk.masks()
    assert masks.keys() == {(first, 0)}
    desk.advance(row, allowed(masks[first, 0])[0])
    masks = desk.masks()
    assert masks.keys() == {(second, 0)}
    assert allowed(masks[second, 0]) == desk.plain(row)


def test_forced_tokens_are_said_once_and_masked_before_they_are_known(tokens: Tokens, tokenizer: Tokenizer) -> None:
    desk = Desk(tokens)
    row = Row(1, Grammar("json_schema", '{"const": "an answer that is one long text"}'))
    desk.add(row)
    step = desk.want([row])
    desk.masks()
    (forced,) = desk.forced.pop(1)
    token_ids = unpack_int32(forced.token_ids_i32).tolist()
    assert len(token_ids) >= 3
    assert forced.position == 0
    later = [desk.want([row], ahead=index) for index in range(len(token_ids))]
    masks = desk.masks()
    assert [allowed(masks[step, 0]) for step in later] == [[token_id] for token_id in token_ids]
    behind = desk.want([row], ahead=len(token_ids))
    assert len(allowed(desk.masks()[behind, 0])) >= 1
    for token_id in token_ids:
        desk.advance(row, token_id)
    assert step
    assert not desk.failed
    assert not desk.forced


def test_rows_of_requests_that_ended_or_are_unknown_may_have_anything(tokens: Tokens) -> None:
    desk = Desk(tokens)
    row, stranger = Row(1, GRAMMARS[0]), Row(2, GRAMMARS[0])
    desk.add(row)
    step = desk.want([row, stranger], ahead=1)
    everything = list(range(tokens.vocab_size))
    assert {key: allowed(mask) for key, mask in desk.masks().items()} == {(step, 1): everything}
    desk.follower.forget(1)
    assert {key: allowed(mask) for key, mask in desk.masks().items()} == {(step, 0): everything}
    assert len(desk.follower) == 0


def test_a_request_waits_for_its_matcher(tokens: Tokens) -> None:
    desk = Desk(tokens)
    row = Row(1, GRAMMARS[1])
    desk.follower.constrain(1, 0, [])
    step = desk.want([row])
    assert desk.masks() == {}
    desk.follower.begin(1, desk.compile(row.grammar))
    assert allowed(desk.masks()[step, 0]) == desk.plain(row)


def test_a_request_that_cannot_be_followed_fails_alone_and_holds_up_nobody(tokens: Tokens, tokenizer: Tokenizer) -> None:
    desk = Desk(tokens)
    lost, well = Row(1, Grammar("regex", "[0-9]{5}")), Row(2, Grammar("regex", "[0-9]{5}"))
    desk.add(lost)
    desk.add(well)
    desk.advance(lost, tokenizer.encode("x", add_special_tokens=False)[0])
    step = desk.want([lost, well])
    masks = desk.masks()
    assert [failed.request_id for failed in desk.failed] == [1]
    assert "left the grammar" in desk.failed[0].message
    assert len(allowed(masks[step, 0])) == tokens.vocab_size
    assert allowed(masks[step, 1]) == desk.plain(well)


def test_tokens_come_once_and_without_a_gap(tokens: Tokens) -> None:
    desk = Desk(tokens)
    row = Row(1, Grammar("regex", "[0-9]{5}"))
    desk.add(row)
    digit = desk.plain(row)[0]
    for position in (0, 0, 0):  # what is told twice counts once
        desk.follower.advance(Advance(pack_uint64([1]), pack_int32([position]), pack_int32([digit])))
    row.output.append(digit)
    step = desk.want([row])
    assert allowed(desk.masks()[step, 0]) == desk.plain(row)
    desk.follower.advance(Advance(pack_uint64([1]), pack_int32([3]), pack_int32([digit])))
    desk.masks()
    assert [failed.request_id for failed in desk.failed] == [1]


def test_a_minimum_holds_back_the_end_only_where_the_output_may_go_on(tokens: Tokens, tokenizer: Tokenizer) -> None:
    desk = Desk(tokens)
    row = Row(1, Grammar("regex", "(ab)*"))
    desk.add(row, min_tokens=3)
    ends = set(tokens.eos_ids)
    (ab,) = tokenizer.encode("ab", add_special_tokens=False)
    for length in range(5):
        step = desk.want([row])
        assert bool(ends & set(allowed(desk.masks()[step, 0]))) is (length >= 3)
        desk.advance(row, ab)
    row = Row(2, Grammar("choice", '["a"]'))
    desk.add(row, min_tokens=9)
    desk.advance(row, tokenizer.encode("a", add_special_tokens=False)[0])
    step = desk.want([row])
    assert set(allowed(desk.masks()[step, 0])) == ends


def test_behind_the_end_there_is_nothing_but_ends(tokens: Tokens, tokenizer: Tokenizer) -> None:
    """As `ignore_eos` has it."""
    desk = Desk(tokens)
    row = Row(1, Grammar("choice", '["a"]'))
    desk.add(row)
    desk.advance(row, tokenizer.encode("a", add_special_tokens=False)[0])
    for _ in range(3):
        step = desk.want([row])
        assert allowed(desk.masks()[step, 0]) == sorted(tokens.eos_ids)
        desk.advance(row, tokens.eos_ids[0])
    assert not desk.failed


def test_several_threads_say_the_same_as_one(tokens: Tokens) -> None:
    desk, rng = Desk(tokens, threads=2), random.Random(1)
    rows = [Row(number, GRAMMARS[number % len(GRAMMARS)]) for number in range(40)]
    for row in rows:
        desk.add(row)
    for _ in range(8):
        going_on = [row for row in rows if row.output[-1:] != [tokens.eos_ids[0]]]
        step = desk.want(going_on)
        masks = desk.masks()
        for index, row in enumerate(going_on):
            expected = desk.plain(row)
            assert allowed(masks[step, index]) == expected
            desk.advance(row, rng.choice(expected))
    assert not desk.failed


@pytest.mark.parametrize("threads", [1, 2])
def test_a_mask_that_is_wanted_twice_is_the_same(tokens: Tokens, threads: int) -> None:
    """As the scheduler wants again what a predecessor may have said."""
    desk = Desk(tokens, threads)
    rows = [Row(number, GRAMMARS[0]) for number in range(20)]
    for row in rows:
        desk.add(row)
    first, second = desk.want(rows), desk.want(rows)
    masks = desk.masks()
    assert len(masks) == 40
    assert all((masks[first, index] == masks[second, index]).all() for index in range(20))


def test_a_request_that_several_processes_died_over_is_failed(tokens: Tokens, tmp_path: Path) -> None:
    for deaths in range(4):
        suspect = Suspect(str(tmp_path))
        assert suspect.last == (7 if deaths else None)
        assert suspect.culprit == (7 if deaths >= 2 else None)
        suspect.begin(5)
        suspect.begin(7)  # and that is its end
    follower = Follower(tokens, Suspect(str(tmp_path)))
    follower.constrain(7, 0, [])
    assert [said.request_id for said in follower.said() if isinstance(said, ConstraintFailed)] == [7]


def test_a_death_at_rest_or_over_somebody_else_accuses_nobody(tmp_path: Path) -> None:
    for request_id in (1, 2, 1, 2):
        suspect = Suspect(str(tmp_path))
        assert suspect.culprit is None
        suspect.begin(request_id)
    suspect = Suspect(str(tmp_path))
    suspect.begin(SEVERAL)
    assert Suspect(str(tmp_path)).culprit is None
    suspect.begin(1)
    suspect.end()
    assert Suspect(str(tmp_path)).last is None
