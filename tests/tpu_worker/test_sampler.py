"""The sampler against definitions written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from protocol.params import MAX_LOGPROBS, EngineParams
from tests.margins import ROUNDOFF, TYPICAL, Margins
from tpu_worker.contexts import Contexts
from tpu_worker.needs import needs
from tpu_worker.rules import SlotRules, pack_rules
from tpu_worker.sampler import ROW_WIDTH, Sampled, greedy, pack_params, sample, unpack_params

VOCAB, HISTORY = 211, 300
Floats = npt.NDArray[np.float32]


@jax.jit
def run(logits: jax.Array, packed: jax.Array, history: jax.Array, lengths: jax.Array, rules: SlotRules) -> Sampled:
    contexts = Contexts(history, jnp.arange(len(logits)), lengths)
    return sample(logits, greedy(logits), unpack_params(packed), contexts, rules)


def draw(
    logits: Floats, params: list[EngineParams], lengths: list[int], num_prompt: int = 0, history: npt.ArrayLike | None = None
) -> Sampled:
    """Rows side by side, as a step would sample them."""
    packed = jnp.asarray(np.stack([pack_params(num_prompt, p) for p in params]))
    tokens = np.zeros((len(params), HISTORY), np.int32) if history is None else np.asarray(history, np.int32)
    rules = SlotRules(jnp.asarray(np.stack([pack_rules(p, VOCAB) for p in params])), jnp.arange(len(params)))
    sampled: Sampled = run(jnp.asarray(logits), packed, jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), rules)
    return sampled


def random_logits(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCAB)).astype(np.float32)


def allowed(logits: Floats, params: EngineParams) -> set[int]:
    """The candidates that min-p, then top-k, then top-p leave, by sorting."""
    x = logits.astype(np.float64) / params.temperature
    kept = np.flatnonzero(np.exp(x - x.max()) >= params.min_p)
    kept = kept[np.argsort(-x[kept], kind="stable")]
    if params.top_k > 0:
        kept = kept[: params.top_k]
    shares = np.exp(x[kept] - x.max())
    shares /= shares.sum()
    before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])  # of the candidates that are more likely
    return set(kept[before < params.top_p].tolist())


@pytest.mark.parametrize(
    "params",
    [
        EngineParams(1, temperature=1.0, top_k=1),
        EngineParams(1, temperature=0.7, top_k=5),
        EngineParams(1, temperature=1.5, top_p=0.6),
        EngineParams(1, temperature=1.0, top_p=1e-6),
        EngineParams(1, temperature=2.0, min_p=0.1),
        EngineParams(1, temperature=3.0, top_k=12, top_p=0.8, min_p=0.02),
        EngineParams(1, temperature=3.0, top_k=10**6, top_p=0.5),
    ],
)
def test_filters_leave_exactly_the_defined_candidates(params: EngineParams) -> None:
    logits, rows = random_logits(1), 128
    expected = allowed(logits[0], params)
    seen: set[int] = set()
    for start in range(0, 4096, rows):
        drawn = draw(np.repeat(logits, rows, 0), [params] * rows, list(range(start, start + rows)))
        seen |= set(np.asarray(drawn.token_ids).tolist())
    assert seen <= expected
    likely = np.exp(logits[0] / params.temperature)
    total = likely[list(expected)].sum()
    assert {t for t in expected if likely[t] / total > 0.01} <= seen  # missing one in 4096 draws: below 1e-17


def test_draws_follow_the_softmax() -> None:
    logits, rows, draws = random_logits(1, seed=3) / 2, 128, 12800
    params = EngineParams(1, temperature=0.8, seed=11)
    counts = np.zeros(VOCAB)
    for start in range(0, draws, rows):
        tokens = draw(np.repeat(logits, rows, 0), [params] * rows, list(range(start, start + rows))).token_ids
        counts += np.bincount(np.asarray(tokens), minlength=VOCAB)
    expected = np.exp(logits[0] / 0.8)
    expected *= draws / expected.sum()
    often = expected > 5
    chi_squared = ((counts - expected)[often] ** 2 / expected[often]).sum()
    assert chi_squared < often.sum() + 5 * np.sqrt(2 * often.sum())  # five standard deviations; the draws are always the same


def test_seed_and_position_decide_alone() -> None:
    logits = np.zeros((6, VOCAB), np.float32)
    seeds = [1, 1, 2, 1 << 32, -1, 1]
    params = [EngineParams(1, temperature=1.0, seed=seed) for seed in seeds]
    tokens = np.asarray(draw(logits, params, [9, 9, 9, 9, 9, 10]).token_ids).tolist()
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 5  # both halves of the seed and the position count


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.zeros((2, VOCAB), np.float32)
    logits[0, [7, 9]] = 2.0
    tokens = draw(logits, [EngineParams(1), EngineParams(1, temperature=1.0)], [1, 1]).token_ids
    assert int(tokens[0]) == 7


@pytest.mark.parametrize(
    "params",
    [
        EngineParams(1, temperature=1.0, top_k=1),
        EngineParams(1, temperature=0.7, top_p=0.2),
        EngineParams(1, temperature=1.5, top_k=3, top_p=0.9, min_p=1.0),
    ],
)
def test_filters_take_zeros_of_either_sign_for_equals(params: EngineParams) -> None:
    """All of them stay, so that what is drawn is the same as of zeros that have the same bits."""
    random, rows = np.random.default_rng(4), 64
    logits = np.where(random.random((rows, VOCAB)) < 0.5, np.float32(0), np.float32(-5))
    signed = logits * random.choice([1, -1], logits.shape).astype(np.float32)
    signed[logits < 0] = -5
    assert {bool(sign) for sign in np.signbit(signed[logits == 0])} == {False, True}
    expected, found = (np.asarray(draw(one, [params] * rows, list(range(rows))).token_ids) for one in (logits, signed))
    np.testing.assert_array_equal(found, expected)
    assert len(set(expected.tolist())) > rows // 2


def test_candidates_take_zeros_of_either_sign_for_equals() -> None:
    logits = np.random.default_rng(5).choice(np.array([0.0, -0.0], np.float32), (2, VOCAB))
    logits[1] -= 3 * (np.arange(VOCAB) % 5 > 0)
    ranks = np.asarray(draw(logits, [EngineParams(1, logprobs=MAX_LOGPROBS)] * 2, [1, 1]).ranks)
    assert ranks[0, 1:].tolist() == list(range(MAX_LOGPROBS))
    assert ranks[1, 1:].tolist() == list(range(0, 5 * MAX_LOGPROBS, 5))
    assert ranks[:, 0].tolist() == [VOCAB, -(-VOCAB // 5)]  # all that are as likely count


def test_penalties() -> None:
    """vLLM's formulas, over a history whose tail is not yet written."""
    prompt, output = [4, 4, 5], [6, 6, 7]
    history = np.full((1, HISTORY), 8)  # whatever follows the known tokens must not count
    history[0, : len(prompt) + len(output)] = prompt + output
    logits = random_logits(1, seed=5)
    params = EngineParams(1, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=-0.3, logprobs=0)
    expected = logits[0].astype(np.float64).copy()
    for token in {4, 5, 6, 7}:
        expected[token] *= 1 / 1.7 if expected[token] > 0 else 1.7
    for token, count in ((6, 2), (7, 1)):
        expected[token] -= -0.3 * count + 0.4
    for token in (4, 5, 6, 7, 8):  # compare each with the rest by raising it to the brink
        raised = logits.copy()
        penalty = expected[token] - float(logits[0, token])
        others = np.delete(expected, token).max()
        raised[0, token] = 0.0
        at = _solve(others, token, params, set(prompt + output), output)
        for margin, wins in ((0.01, True), (-0.01, False)):
            raised[0, token] = at + margin
            chosen = int(draw(raised, [params], [6], 3, history).token_ids[0])
            assert (chosen == token) is wins, (token, margin, penalty)


def _solve(target: float, token: int, params: EngineParams, seen: set[int], output: list[int]) -> float:
    """The raw logit of `token` whose penalised value is `target`, which is positive."""
    count = output.count(token)
    value = target + params.frequency_penalty * count + (params.presence_penalty if count else 0.0)
    factor = params.repetition_penalty if token in seen else 1.0
    return value * factor if value > 0 else value / factor


def test_penalties_count_beyond_one_chunk_of_history() -> None:
    history = np.zeros((1, HISTORY), np.int32)
    history[0, [10, 280, 290]] = 42
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, 42], logits[0, 43] = 3.0, 0.5
    for penalty, token in ((0.8, 42), (0.9, 43)):  # counted three times: 3.0 - 3 × 0.8 = 0.6, 3.0 - 3 × 0.9 = 0.3
        params = EngineParams(1, frequency_penalty=penalty)
        assert int(draw(logits, [params], [295], 0, history).token_ids[0]) == token


@pytest.mark.parametrize(("length", "chosen"), [(24, 9), (25, 3)])
def test_min_tokens_forbids_stop_ids_until_then(length: int, chosen: int) -> None:
    logits = np.zeros((1, VOCAB), np.float32)
    logits[0, [3, 4, 9]] = 3.0, 2.5, 2.0
    params = EngineParams(9, min_tokens=5, stop_token_ids=(3, 4))
    assert int(draw(logits, [params], [length], num_prompt=20).token_ids[0]) == chosen


@pytest.mark.every_processor
def test_logprobs_are_those_of_the_model(margins: Margins) -> None:
    logits = random_logits(2)
    params = [EngineParams(1, temperature=5.0, top_k=40, logprobs=3), EngineParams(1, repetition_penalty=2.0, logprobs=0)]
    sampled = draw(logits, params, [4, 4])
    expected = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    for row in range(2):
        token, values, ranks = int(sampled.token_ids[row]), np.asarray(sampled.logprobs[row]), np.asarray(sampled.ranks[row])
        order = np.argsort(-expected[row])
        best = np.concatenate([[token], order[:MAX_LOGPROBS]])
        # The largest logit, what is added to it and the difference are rounded, and so are the exponentials' sum and its logarithm.
        typical = TYPICAL * ROUNDOFF * (np.abs(expected[row, best]) + 2 * np.abs(logits[row]).max() + 2)
        margins.check_rounding("log-probabilities", values, expected[row, best], typical)
        assert ranks[0] == order.tolist().index(token) + 1
        assert ranks[1:].tolist() == order[:MAX_LOGPROBS].tolist()


@pytest.mark.parametrize("params", [EngineParams(1), EngineParams(1, temperature=1.0, top_p=0.9), EngineParams(1, min_tokens=2)])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_told(params: EngineParams, poison: float) -> None:
    logits = random_logits(3)
    logits[1, 17] = poison
    tokens = np.asarray(draw(logits, [params] * 3, [1, 1, 1]).token_ids)
    assert tokens[1] == -1 and (tokens[[0, 2]] >= 0).all()


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-38, 9.9e-6])
def test_a_temperature_too_low_to_divide_by_is_greedy(temperature: float) -> None:
    logits = random_logits(3) * np.array([[1], [1e37], [1e-30]], np.float32)
    tokens = draw(logits, [EngineParams(1, temperature=temperature, seed=s) for s in range(3)], [1, 2, 3]).token_ids
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


@pytest.mark.parametrize("temperature", [1e-5, 1e-3])
def test_a_low_temperature_does_not_overflow(temperature: float) -> None:
    logits = random_logits(2) * np.array([[1], [1e37]], np.float32)
    tokens = draw(logits, [EngineParams(1, temperature=temperature, top_p=0.9, seed=s) for s in range(2)], [1, 2]).token_ids
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


def test_the_smallest_top_p_leaves_the_most_likely() -> None:
    logits = random_logits(3)
    params = [EngineParams(1, temperature=100.0, top_p=top_p, seed=4) for top_p in (1e-30, 1e-45, 5e-324)]
    np.testing.assert_array_equal(draw(logits, params, [1, 2, 3]).token_ids, logits.argmax(axis=1))


def test_penalties_beyond_their_range_are_the_nearest_within() -> None:
    logits, history = random_logits(4), np.tile(np.arange(HISTORY, dtype=np.int32) % VOCAB, (4, 1))
    params = [EngineParams(1, temperature=1.0, repetition_penalty=penalty, seed=1) for penalty in (1e-40, 0.01, 100.0, 1e38)]
    tokens = np.asarray(draw(logits[[0, 0, 1, 1]], params, [290] * 4, 0, history).token_ids)
    assert tokens[0] == tokens[1] == logits[0].argmax() and tokens[2] == tokens[3]


def test_min_tokens_gives_way_where_it_leaves_nothing() -> None:
    logits = np.full((2, VOCAB), -np.inf, np.float32)
    logits[:, [3, 4]] = 1.0
    params = [EngineParams(9, temperature=t, min_tokens=5, stop_token_ids=(3, 4)) for t in (0.0, 1.0)]
    assert set(np.asarray(draw(logits, params, [2, 2]).token_ids).tolist()) <= {3, 4}


def test_where_everything_is_ruled_out_nothing_is_drawn() -> None:
    logits = np.full((2, VOCAB), -np.inf, np.float32)
    logits[:, [3, 4]] = 1.0
    params = [EngineParams(9, temperature=t, bad_words=((3,),), logit_bias={4: -100.0}) for t in (0.0, 1.0)]
    np.testing.assert_array_equal(draw(logits, params, [2, 2]).token_ids, [-1, -1])


def test_needs_asks_for_no_more_than_a_request_uses() -> None:
    assert needs(EngineParams(1, top_k=5, top_p=0.1)) == 0  # greedy: filters change nothing
    assert len({needs(EngineParams(1, temperature=1.0)), needs(EngineParams(1, temperature=1.0, top_p=0.9))}) == 2
    assert pack_params(3, EngineParams(1, stop_token_ids=tuple(range(100)))).shape == (ROW_WIDTH,)
