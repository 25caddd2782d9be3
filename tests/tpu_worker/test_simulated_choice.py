"""What the simulated device chooses can be worked out by hand."""

import math

import numpy as np
import pytest

from protocol.codec import pack_bits, unpack_float32, unpack_int32
from protocol.params import EngineParams
from tpu_worker.simulated_choice import Choice, has_choice, simulated_logprobs

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
