"""What a request needs of the sampler. Without JAX, so that every device's worker can tell."""

from protocol.params import EngineParams

# What a row needs besides the most likely token, as bits: a step pays for no more than its rows need.
DRAWS = 1  # a temperature
FILTERS = 2  # top-k, top-p or min-p
EDITS = 4  # penalties or min_tokens: logits differ from the model's
LOGPROBS = 8
RULES = 16  # logit_bias, allowed_token_ids or bad_words


def needs(params: EngineParams) -> int:
    """What this request needs; 0: the most likely token, and no more."""
    bits = LOGPROBS if params.logprobs >= 0 else 0
    if params.has_penalties or (params.min_tokens and params.stop_token_ids):
        bits |= EDITS
    if params.has_rules:
        bits |= RULES
    if not params.is_greedy:
        bits |= DRAWS
        if params.top_k > 0 or params.top_p < 1 or params.min_p > 0:
            bits |= FILTERS
    return bits
