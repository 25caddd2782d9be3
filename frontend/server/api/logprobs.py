"""Log-probabilities in OpenAI's two formats."""

from collections.abc import Sequence

from frontend.server.generation import TokenLogprob
from frontend.server.text.token_bytes import TokenBytes
from frontend.server.text.tokenizer import Tokenizer


def for_completions(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> dict[str, list[object]]:
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


def for_chats(tokenizer: Tokenizer, shown: TokenBytes, tokens: Sequence[TokenLogprob]) -> dict[str, object]:
    """One entry per token. A part of a character shows as U+FFFD; its bytes tell.

    The bytes of all chosen tokens are the text: a hidden token, one that ended the text or was cut off with a stop string, has a
    name and no bytes. `shown`: the bytes of the tokens that were not chosen.
    """

    def entry(token_id: int, logprob: float, data: bytes) -> dict[str, object]:
        return {"token": tokenizer.bytes[token_id].decode(errors="replace"), "logprob": logprob, "bytes": list(data)}

    def candidate(token: TokenLogprob, token_id: int, logprob: float) -> dict[str, object]:
        return entry(token_id, logprob, token.data if token_id == token.token_id else shown[token_id])

    return {
        "content": [
            {
                **entry(token.token_id, token.logprob, token.data),
                "top_logprobs": [candidate(token, token_id, logprob) for token_id, logprob in token.top],
            }
            for token in tokens
        ]
    }
