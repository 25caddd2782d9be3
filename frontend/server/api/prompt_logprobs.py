"""Log-probabilities of prompts: as vLLM shows them, and as OpenAI's completions show those of an echo."""

import math
from collections.abc import Sequence

from frontend.server.api.logprobs import for_completions
from frontend.server.generation import LOWEST_LOGPROB, TokenLogprob
from frontend.server.prompt_scores import PromptLogprobs
from frontend.server.text.detokenizer import Detokenizer
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer


def as_vllm(tokenizer: Tokenizer, token_ids: Sequence[int], scores: PromptLogprobs, candidates: int) -> list[object]:
    """For each token of the prompt None, as nothing predicts it, or by id: the token itself, then the most likely candidates."""

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, object]:
        return {"logprob": logprob, "rank": rank, "decoded_token": tokenizer.bytes[token_id].decode(errors="replace")}

    shown: list[object] = [None]
    for token in _tokens(token_ids, scores, candidates):
        top = {str(other): entry(other, logprob, rank) for rank, (other, logprob) in enumerate(token.top, 1)}
        own = str(token.token_id)
        shown.append({own: entry(token.token_id, token.logprob, token.rank)} | {key: top[key] for key in top if key != own})
    return shown


def as_echo(
    tokenizer: Tokenizer, shown: TokenBytes, token_ids: Sequence[int], scores: PromptLogprobs, candidates: int, length: int
) -> dict[str, list[object]]:
    """OpenAI's parallel lists for a prompt whose text of `length` characters goes before the completion. `shown`: the bytes that
    its tokens bring to a text."""
    detokenizer, offset, offsets = Detokenizer(shown), 0, []
    for token_id in token_ids:
        offsets.append(min(offset, length))
        offset += len(detokenizer.decode(detokenizer.take(token_id)))
    lists = for_completions(tokenizer, _tokens(token_ids, scores, candidates))
    return {
        "tokens": [tokenizer.text_of(token_ids[0]), *lists["tokens"]],
        "token_logprobs": [None, *lists["token_logprobs"]],
        "top_logprobs": [None, *lists["top_logprobs"]],
        "text_offset": [*offsets],
    }


def _tokens(token_ids: Sequence[int], scores: PromptLogprobs, candidates: int) -> list[TokenLogprob]:
    """All but the first."""
    logprobs = [[value if math.isfinite(value) else LOWEST_LOGPROB for value in row] for row in scores.logprobs.tolist()]
    best = slice(1, 1 + candidates)
    return [
        TokenLogprob(token_id, values[0], ranks[0], list(zip(ranks[best], values[best], strict=True)), 0)
        for token_id, values, ranks in zip(token_ids[1:], logprobs, scores.ranks.tolist(), strict=True)
    ]
