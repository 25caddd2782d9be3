"""Prompts with a gap: by the tokens that a vocabulary has for it, or not at all."""

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from frontend.errors import InvalidRequest
from frontend.server.text.fill_in import FillIn, fill_in_of_gguf, find_fill_in
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer
from tests.frontend.server.text.kinds import SENTENCEPIECE

CODER = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|endoftext|>")


def coder() -> Tokenizer:
    """Byte-level, with Qwen 2.5 Coder's tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, normalized=False) for text in CODER])
    return Tokenizer(fast, SpecialTokens((), None, {}), None)


def test_a_gap_is_written_as_the_model_knows_it() -> None:
    tokenizer = coder()
    ids = tokenizer.encode_around("def f():\n", "\n    return x")
    assert tokenizer._fast.decode(ids, skip_special_tokens=False) == (
        "<|fim_prefix|>def f():\n<|fim_suffix|>\n    return x<|fim_middle|>"
    )
    assert tokenizer.fill_in is not None
    assert tokenizer.names_of(tokenizer.fill_in.ends) == ["<|fim_pad|>", "<|endoftext|>"]
    assert len(tokenizer.encode_around("", "")) == 3


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_a_suffix_has_no_space_of_its_own(kind: str) -> None:
    tokenizer = SENTENCEPIECE[kind]
    tokenizer = Tokenizer(tokenizer._fast, tokenizer.special, None, FillIn(0, 1, 2, ()))
    ids = tokenizer.encode_around("a", "bc", add_special_tokens=False)
    suffix = ids[ids.index(1) + 1 : -1]
    assert b"".join(tokenizer.bytes[token_id] for token_id in suffix) == b"bc"


def test_a_model_without_such_tokens_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no tokens for what is to be filled in") as caught:
        SENTENCEPIECE["llama2"].encode_around("a", "b")
    assert (caught.value.param, caught.value.code) == ("suffix", "unsupported_parameter")


def test_vocabularies_that_name_them_otherwise() -> None:
    def named(*texts: str) -> FillIn | None:
        return find_fill_in({text: index for index, text in enumerate(texts)}.get)

    assert named("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>") == FillIn(0, 1, 2, (3,))
    assert named("▁<MID>", "▁<SUF>", "▁<PRE>", "▁<EOT>") == FillIn(2, 1, 0, (3,))
    assert named("<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜fim▁hole｜>") == FillIn(0, 2, 1, ())
    assert named("<fim_prefix>", "<fim_suffix>") is None


def test_gguf_files_say_it_themselves() -> None:
    ids = {"tokenizer.ggml.fim_pre_token_id": 7, "tokenizer.ggml.fim_suf_token_id": 8, "tokenizer.ggml.fim_mid_token_id": 9}
    nothing: dict[str, int] = {}
    assert fill_in_of_gguf({**ids, "tokenizer.ggml.fim_pad_token_id": 6}, nothing.get, 10) == FillIn(7, 8, 9, (6,))
    assert fill_in_of_gguf({key.replace("fim_pre", "prefix").replace("fim_suf", "suffix").replace("fim_mid", "middle"): value
                            for key, value in ids.items()}, nothing.get, 10) == FillIn(7, 8, 9, ())  # fmt: skip
    assert fill_in_of_gguf(dict(ids), nothing.get, 9) is None  # an id outside the vocabulary
