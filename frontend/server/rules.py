"""What a request rules out or favours, from users' terms to the engine's: texts become tokens, lists become bits."""

from typing import NamedTuple

import numpy as np

from frontend.errors import InvalidRequest
from frontend.server.text.tokenizer import Tokenizer
from protocol.codec import BoolArray, pack_bits
from protocol.params import BANNED, MAX_BAD_WORD_TOKENS, SamplingParams


class Rules(NamedTuple):
    """As `EngineParams` has them."""

    logit_bias: dict[int, float]
    allowed_bits: bytes
    bad_words: tuple[tuple[int, ...], ...]


def resolve_rules(params: SamplingParams, stop_ids: list[int], vocab_size: int, tokenizer: Tokenizer) -> Rules:
    """`params` were checked; `stop_ids` are all that end an output. Raises InvalidRequest where no token is left to choose."""
    bad_words = tuple(dict.fromkeys(word for text in params.bad_words for word in _words(text, vocab_size, tokenizer)))
    if params.allowed_token_ids is None and not params.logit_bias and not bad_words:
        return Rules({}, b"", ())
    left = np.full(vocab_size, params.allowed_token_ids is None)
    left[params.allowed_token_ids or []] = True
    allowed_bits = b"" if params.allowed_token_ids is None else pack_bits(left)
    left[[token_id for token_id, bias in params.logit_bias.items() if bias <= BANNED]] = False
    left[[word[0] for word in bad_words if len(word) == 1]] = False
    _check_some_left(left, params, stop_ids)
    return Rules(params.logit_bias, allowed_bits, bad_words)


def _check_some_left(left: BoolArray, params: SamplingParams, stop_ids: list[int]) -> None:
    if not left.any():
        fields = ("allowed_token_ids", "bad_words", "logit_bias")
        given = [name for name in fields if getattr(params, name)]
        raise InvalidRequest(f"{', '.join(given)}: together they leave no token to choose", given[0])
    left[stop_ids] = False
    if params.min_tokens and not left.any():
        raise InvalidRequest("min_tokens: the tokens that may be chosen all end the output", "min_tokens")


def _words(text: str, vocab_size: int, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The tokens of a bad word where it begins a text, and behind a space. vLLM leaves the second out where it is of another number
    of tokens; so the word could be said."""
    found = []
    for spaced in (text.lstrip(), " " + text.lstrip()):
        token_ids = tuple(tokenizer.encode(spaced, add_special_tokens=False, field="bad_words"))
        if not 1 <= len(token_ids) <= MAX_BAD_WORD_TOKENS:
            message = f"bad_words: each must have 1 to {MAX_BAD_WORD_TOKENS} tokens, {text[:50]!r} has {len(token_ids)}"
            raise InvalidRequest(message, "bad_words")
        if max(token_ids) < vocab_size:  # else the model cannot say it
            found.append(token_ids)
    return found
