"""Log-probabilities in OpenAI's two formats."""

from collections.abc import Sequence

from frontend.server.generation import TokenLogprob
from frontend.server.text.tokenizer import Tokenizer


def for_completions(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, object]:
    """Parallel lists. The chosen token is among its candidates always."""
    text_of = tokenizer.text_of
    return {
        "tokens": [text_of(token.token_id) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            {text_of(token_id): logprob for token_id, logprob in (*token.top, (token.token_id, token.logprob))} for token in tokens
        ],
        "text_offset": [token.text_offset for token in tokens],
    }


def for_chats(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, object]:
    """One entry per token. A part of a character shows as U+FFFD; its bytes tell."""

    def candidate(token_id: int, logprob: float) -> dict[str, object]:
        data = tokenizer.bytes[token_id]
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    return {
        "content": [
            {**candidate(token.token_id, token.logprob), "top_logprobs": [candidate(*item) for item in token.top]}
            for token in tokens
        ]
    }
