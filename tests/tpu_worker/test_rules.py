"""logit_bias, allowed_token_ids and bad_words on the device, against the rules written out in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import pack_bits
from protocol.params import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_LOGIT_BIAS, EngineParams
from tpu_worker.contexts import Contexts
from tpu_worker.mesh.vocabulary import Vocabulary
from tpu_worker.needs import RULES, needs
from tpu_worker.rules import SlotRules, apply_rules, make_rules, pack_rules, set_rules

VOCAB, LENGTH, ROWS = 67, 40, 3
Floats = npt.NDArray[np.float32]
TOKENS = st.integers(0, 5)  # few, so that words are found


@jax.jit
def run(logits: jax.Array, rules: SlotRules, num_prompt: jax.Array, history: jax.Array, lengths: jax.Array) -> jax.Array:
    contexts = Contexts(history, jnp.arange(len(logits)), lengths)
    return apply_rules(logits, rules, num_prompt, contexts, Vocabulary(logits.shape[1]))


def bits(*token_ids: int) -> bytes:
    return pack_bits(np.isin(np.arange(VOCAB), token_ids))


def applied(
    logits: Floats, params: list[EngineParams], num_prompt: list[int], history: npt.NDArray[np.int32], length: int
) -> Floats:
    """Rows in slots of another order."""
    rules = make_rules(ROWS + 2, VOCAB)
    slots = np.arange(len(params))[::-1] + 2
    for slot, one in zip(slots, params, strict=True):
        rules = set_rules(rules, jnp.int32(slot), jnp.asarray(pack_rules(one, VOCAB)))
    lengths = jnp.full(len(params), length, jnp.int32)
    where = SlotRules(rules, jnp.asarray(slots, jnp.int32))
    return np.asarray(run(jnp.asarray(logits), where, jnp.asarray(num_prompt, jnp.int32), jnp.asarray(history), lengths))


def expected(logits: Floats, params: EngineParams, output: list[int]) -> Floats:
    found = logits.copy()
    for token_id in range(VOCAB):
        if params.allowed_bits and not (params.allowed_bits[token_id // 8] >> token_id % 8) & 1:
            found[token_id] = -np.inf
    for word in params.bad_words:
        if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]:
            found[word[-1]] = -np.inf
    for token_id, bias in params.logit_bias.items():
        found[token_id] = -np.inf if bias == -100 else found[token_id] + np.float32(bias)
    return found


PARAMS = st.builds(
    EngineParams,
    max_tokens=st.just(1),
    logit_bias=st.dictionaries(TOKENS, st.sampled_from([-100.0, -99.9, -1.5, 0.0, 2.25, 100.0])),
    allowed_bits=st.one_of(st.just(b""), st.lists(TOKENS).map(lambda ids: bits(*ids))),
    bad_words=st.lists(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), max_size=6).map(tuple),
)


@settings(max_examples=200)
@given(st.lists(PARAMS, min_size=ROWS, max_size=ROWS), st.lists(TOKENS, min_size=1, max_size=LENGTH), st.data())
def test_rules_are_those_that_were_written_down(params: list[EngineParams], context: list[int], data: st.DataObject) -> None:
    num_prompt = [data.draw(st.integers(1, len(context))) for _ in params]
    history = np.random.default_rng(0).integers(0, 6, (ROWS, LENGTH + 1)).astype(np.int32)  # what follows must not matter
    history[:, : len(context)] = context
    logits = np.random.default_rng(len(context)).normal(0, 3, (ROWS, VOCAB)).astype(np.float32)
    found = applied(logits, params, num_prompt, history, len(context))
    for row, one in enumerate(params):
        np.testing.assert_array_equal(found[row], expected(logits[row], one, context[num_prompt[row] :]))


def test_as_much_as_a_request_may_ask_for_fits() -> None:
    vocab = 3000
    words = tuple((*range(word, word + MAX_BAD_WORD_TOKENS - 1), 2000 + word) for word in range(2 * MAX_BAD_WORDS))
    biases = {token_id: -float(token_id % 7) for token_id in range(100, 100 + MAX_LOGIT_BIAS)}
    params = EngineParams(1, logit_bias=biases, bad_words=words, allowed_bits=pack_bits(np.arange(vocab) != 2999))
    rules = SlotRules(jnp.asarray(pack_rules(params, vocab)[None]), jnp.zeros(1, jnp.int32))
    last = 2 * MAX_BAD_WORDS - 1
    history = jnp.asarray([[0, *words[last][:-1]]], jnp.int32)
    found = np.asarray(run(jnp.zeros((1, vocab)), rules, jnp.ones(1, jnp.int32), history, jnp.array([16], jnp.int32)))[0]
    assert found[2000 + last - 1] == 0 and found[2000 + last] == -np.inf
    assert found[100 + MAX_LOGIT_BIAS - 2] == biases[100 + MAX_LOGIT_BIAS - 2] and found[2998] == 0 and found[2999] == -np.inf


@pytest.mark.parametrize("fields", [{"logit_bias": {1: 0.5}}, {"allowed_bits": bits(1)}, {"bad_words": ((1,),)}])
def test_each_is_a_need(fields: dict[str, object]) -> None:
    assert needs(EngineParams(1, **fields)) == RULES  # type: ignore[arg-type]
    assert needs(EngineParams(1)) == 0
