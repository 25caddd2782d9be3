"""Log-probabilities in OpenAI's two formats."""

import pytest

from frontend.server.api import logprobs
from frontend.server.generation import TokenLogprob
from frontend.server.text.tokenizer import Tokenizer, load_tokenizer
from tests.frontend.server.api.running import demo_config


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(demo_config())


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> list[TokenLogprob]:
    """A whole word, which was not the likeliest, and the first part of an emoji, which was."""
    (hello,) = tokenizer.encode("Hello")
    part = tokenizer.encode("\N{GRINNING FACE}")[0]
    return [
        TokenLogprob(hello, -0.5, 2, [(33, -0.25), (2, -9.0)], 0, b"Hello"),
        TokenLogprob(part, -1.0, 1, [(part, -1.0)], 5, tokenizer.bytes[part]),
    ]


def test_completions_have_parallel_lists_and_the_chosen_token_among_its_candidates(
    tokenizer: Tokenizer, tokens: list[TokenLogprob]
) -> None:
    part = tokenizer.text_of(tokens[1].token_id)
    assert part.startswith("bytes:\\x")
    assert logprobs.for_completions(tokenizer, tokens) == {
        "tokens": ["Hello", part],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"1": -0.25, "<|im_end|>": -9.0, "Hello": -0.5}, {part: -1.0}],
        "text_offset": [0, 5],
    }


def test_chats_have_an_entry_per_token_with_its_bytes(tokenizer: Tokenizer, tokens: list[TokenLogprob]) -> None:
    part = {"token": "\ufffd", "logprob": -1.0, "bytes": list(tokenizer.bytes[tokens[1].token_id])}
    assert logprobs.for_chats(tokenizer, tokenizer.bytes_without_special, tokens) == {
        "content": [
            {
                "token": "Hello",
                "logprob": -0.5,
                "bytes": [72, 101, 108, 108, 111],
                "top_logprobs": [
                    {"token": "1", "logprob": -0.25, "bytes": [49]},
                    {"token": "<|im_end|>", "logprob": -9.0, "bytes": []},
                ],
            },
            {**part, "top_logprobs": [part]},
        ]
    }
