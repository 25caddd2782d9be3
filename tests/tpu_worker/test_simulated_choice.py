"""What the simulated device chooses can be worked out by hand."""

import math

import numpy as np
import pytest

from protocol.codec import pack_bits, unpack_float32, unpack_int32
from protocol.params import EngineParams
from tests.tpu_worker.device_driver import pack_bits as pack_masks
from tpu_worker.simulated_choice import Choice, has_choice, pick_allowed, simulated_logprobs
from tpu_worker.simulator import simulated_token

VOCAB = 10
LN_2 = math.log(2)


def choose(params: EngineParams, drawn: int, history: tuple[int, ...] = (1, 2, 3, 4), num_prompt: int = 2) -> int:
    assert has_choice(params)
    return Choice(params, num_prompt, VOCAB).choose(drawn, np.array(history, np.int32))


def only(*token_ids: int) -> bytes:
    return pack_bits(np.isin(np.arange(VOCAB), token_ids))


@pytest.mark.parametrize(
    ("params", "drawn", "chosen"),
    [
        (EngineParams(1, allowed_bits=only(2, 7)), 7, 7),
        (EngineParams(1, allowed_bits=only(2, 7)), 3, 7),
        (EngineParams(1, allowed_bits=only(2, 7)), 8, 2),  # round and round
        (EngineParams(1, logit_bias={5: -100.0, 6: -100.0}), 5, 7),
        (EngineParams(1, logit_bias={9: 3.0 * LN_2 + 0.1}), 6, 9),  # rank 4 against rank 1
        (EngineParams(1, logit_bias={9: 3.0 * LN_2 - 0.1}), 6, 6),
        (EngineParams(1, logit_bias={5: -0.6}), 5, 5),  # ln 2 would be even
        (EngineParams(1, logit_bias={5: -0.7}), 5, 6),
        (EngineParams(1, bad_words=((5,),)), 5, 6),
        (EngineParams(1, bad_words=((3, 4, 5),)), 5, 6),
        (EngineParams(1, bad_words=((2, 3, 4, 5),)), 5, 5),  # begins in the prompt
        (EngineParams(1, bad_words=((4, 4, 5),)), 5, 5),
        (EngineParams(1, min_tokens=3, stop_token_ids=(5, 6)), 5, 7),
        (EngineParams(1, min_tokens=2, stop_token_ids=(5, 6)), 5, 5),
        (EngineParams(1, allowed_bits=only(5), bad_words=((4, 5),)), 5, -1),
    ],
)
def test_by_hand(params: EngineParams, drawn: int, chosen: int) -> None:
    assert choose(params, drawn) == chosen


def test_log_probabilities() -> None:
    found = simulated_logprobs(8, 1, 4, VOCAB)
    assert found.logprob == pytest.approx(-4 * LN_2) and found.rank == 4
    assert unpack_int32(found.token_ids_i32).tolist() == [8, 9, 0, 1]
    np.testing.assert_allclose(unpack_float32(found.logprobs_f32), [-LN_2, -2 * LN_2, -3 * LN_2, -4 * LN_2], rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [50, 300, 1000])
def test_masks_leave_the_first_sixteen_that_they_allow(vocab_size: int) -> None:
    """Many rows together, and each by the formula."""
    rng = np.random.default_rng(vocab_size)
    allowed = [sorted(rng.choice(vocab_size, size=size, replace=False).tolist()) for size in (1, 2, 15, 16, 17, 40, vocab_size)]
    drawn = rng.integers(2**63, size=len(allowed)).astype(np.uint64)
    picked = pick_allowed(drawn, pack_masks(allowed, vocab_size), vocab_size)
    assert picked.tolist() == [ids[int(d) % min(16, len(ids))] for ids, d in zip(allowed, drawn.tolist(), strict=True)]


def test_a_mask_of_ones_allows_no_more_than_the_vocabulary() -> None:
    """Its last word has bits that stand for no token."""
    ones = np.full((64, 1), 0xFFFFFFFF, np.uint32)
    picked = pick_allowed(np.arange(64, dtype=np.uint64), ones, 9)
    assert picked.tolist() == [n % 9 for n in range(64)]
    assert pick_allowed(np.arange(2, dtype=np.uint64), np.zeros((2, 40), np.uint32), 1000).tolist() == [-1, -1]


def test_what_is_ruled_out_is_not_picked_from_a_mask() -> None:
    params = EngineParams(9, min_tokens=2, stop_token_ids=(3, 5), allowed_bits=pack_bits(np.isin(np.arange(40), [2, 3, 5, 7, 11])))
    choice, early, late = Choice(params, 2, 40), np.array([1, 1], np.int32), np.array([1, 1, 2, 2], np.int32)
    (mask,) = pack_masks([[1, 2, 3, 5, 7]], 40)
    assert choice.among(mask, early) == [2, 7] and choice.among(mask, late) == [2, 3, 5, 7]
    (ends,) = pack_masks([[3, 5]], 40)
    assert choice.among(ends, early) == [3, 5]  # there is nothing else


def test_simulated_token_with_a_mask() -> None:
    context = [4, 5, 6]
    assert simulated_token(context, 3, 100, [17]) == 17
    assert {simulated_token([*context, n], 3, 100, list(range(0, 100, 2))) for n in range(300)} == set(range(0, 32, 2))
