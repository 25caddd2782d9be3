"""Tokenizers from GGUF files and Hugging Face directories."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from frontend.errors import InvalidRequest
from frontend.server.text.gguf_tokenizer import build_from_gguf, pre_tokenizer
from frontend.server.text.splits import SPLITS
from frontend.server.text.token_bytes import _from_byte_level
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer, load_tokenizer
from protocol.config import EngineConfig
from protocol.errors import ModelError
from protocol.gguf_header import Value
from tests.model_writer import METADATA, gguf_bytes


def _config(path: Path) -> EngineConfig:
    return EngineConfig(model_path=str(path), model_format="huggingface", served_model_names=("m",))


def _tiny() -> dict[str, Value]:
    """Metadata of a byte-level BPE tokenizer with a few merges."""
    letters = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144))]
    tokens = [*letters, "ab", "\u0120ab", "12", "<s>", "</s>", "<eot>", "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 4) + [3, 3, 3, 4],
        "tokenizer.ggml.merges": ["a b", "\u0120 ab", "1 2"],
        "tokenizer.ggml.bos_token_id": len(tokens) - 4,
    }


def _texts(fast: FastTokenizer, text: str) -> list[str]:
    return list(fast.encode(text).tokens)


def test_the_demo_models_ids(demo_tokenizer: Tokenizer) -> None:
    # From transformers' AutoTokenizer on the same vocabulary.
    assert demo_tokenizer.encode("Hello world 123") == [19556, 905, 216, 33, 34, 35]
    assert demo_tokenizer.encode("<|im_start|>user") == [1, 4093]
    assert demo_tokenizer.special.eos_ids == (2,)
    assert demo_tokenizer.special.texts["bos_token"] == "<|im_start|>"
    assert demo_tokenizer.vocab_size == 49152


@settings(max_examples=100)
@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], max_codepoint=0x1FFFF), max_size=200))
def test_any_text_survives_the_way_to_ids_and_back(demo_tokenizer: Tokenizer, text: str) -> None:
    ids = demo_tokenizer.encode(text)
    assert b"".join(demo_tokenizer.bytes[token_id] for token_id in ids).decode() == text


def test_lone_surrogates_are_refused(demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogates"):
        demo_tokenizer.encode("a\ud800b")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenized(demo_tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="cannot fit"):
        demo_tokenizer.encode("x" * 10_000, limit=10)


def test_a_part_of_a_character_is_named_by_its_bytes(demo_tokenizer: Tokenizer) -> None:
    ids = demo_tokenizer.encode("\N{GRINNING FACE}")
    assert demo_tokenizer.text_of(ids[0]).startswith("bytes:\\xf0")
    assert demo_tokenizer.text_of(demo_tokenizer.encode("Hello")[0]) == "Hello"


def test_gguf_splits_by_the_named_rules() -> None:
    metadata = _tiny()
    assert _texts(build_from_gguf(metadata)[0], "ab ab12") == ["ab", "\u0120ab", "12"]
    metadata["tokenizer.ggml.pre"] = "smollm"
    assert _texts(build_from_gguf(metadata)[0], "ab ab12") == ["ab", "\u0120ab", "1", "2"]
    metadata["tokenizer.ggml.pre"] = "qwen2"
    assert _texts(build_from_gguf(metadata)[0], "ab ab12<tool>") == ["ab", "\u0120ab", "1", "2", "<tool>"]
    metadata["tokenizer.ggml.pre"] = "llama-bpe"
    assert _texts(build_from_gguf(metadata)[0], "ab12</s>") == ["<s>", "ab", "12", "</s>"]


@pytest.mark.parametrize("pre", SPLITS)
def test_every_rule_splits_into_pieces_that_make_up_the_text(pre: str) -> None:
    text = "I'LL cafe\u0301s 12345 x²  CamelCase3\n\n //a/b!\n  ½d \u0939\u093f don'T \0\t"
    pieces = [piece for piece, _ in pre_tokenizer(SPLITS[pre]).pre_tokenize_str(text)]
    assert b"".join(map(_from_byte_level, pieces)).decode() == text


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "I'LL don't", "I|'|LL| don|'t"),
        ("llama-bpe", "I'LL don't", "I|'LL| don|'t"),
        ("gpt-4o", "I'LL don't", "I'LL| don't"),
        ("tekken", "I'LL don't", "I|'LL| don|'t"),
        ("gpt-2", "12345 ½x", "12345| ½|x"),
        ("refact", "12345 ½x", "1|2|3|4|5| |½|x"),
        ("dbrx", "12345 ½x", "123|45| |½|x"),
        ("qwen2", "12345 ½x", "1|2|3|4|5| |½|x"),
        ("tekken", "12345", "1|2|3|4|5"),
        ("gpt-4o", "12345", "123|45"),
        ("llama-bpe", "CamelCase", "CamelCase"),
        ("gpt-4o", "CamelCase HTTPServer", "Camel|Case| HTTPServer"),
        ("tekken", "CamelCase HTTPServer", "Camel|Case| HTTPServer"),
        ("qwen35", "हिन्दी", "हिन्दी"),
        ("gpt-4o", "हिन्दी", "हिन्दी"),
        ("qwen2", "a //\n/b", "a| //\n|/b"),
        ("gpt-4o", "a //\n/b", "a| //\n/|b"),
        ("llama-bpe", "a  \n \n  b", "a|  \n \n| | b"),
    ],
)
def test_rules_split_as_the_models_do(pre: str, text: str, pieces: str) -> None:
    found = [_from_byte_level(piece).decode() for piece, _ in pre_tokenizer(SPLITS[pre]).pre_tokenize_str(text)]
    assert "|".join(found) == pieces


def test_a_whole_word_is_its_token_where_merges_would_not_make_it() -> None:
    metadata = _tiny()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    metadata |= {
        "tokenizer.ggml.tokens": [*map(str, tokens[:-1]), "cd"],
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.add_bos_token": False,
    }
    for pre, whole in (("llama-bpe", True), ("tekken", True), ("dbrx", False), ("qwen2", False)):
        fast, _ = build_from_gguf(metadata | {"tokenizer.ggml.pre": pre})
        assert (fast.encode("cd").tokens == ["cd"]) is whole


@pytest.mark.parametrize(("last", "ends"), [("<|end|>", (0, 5, 6, 8)), ("<|eot_id|>", (0, 5, 6, 7, 8))])
def test_gguf_ends_are_known_by_name_too(tmp_path: Path, last: str, ends: tuple[int, ...]) -> None:
    # What the file calls the unknown token is none; <|end|> ends a message of gpt-oss, not its answer.
    tokens = [*"abcd", "ab", "<|return|>", "<|call|>", last, "<|im_end|>", "<|endoftext|>"]
    ids = {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.unknown_token_id": 9}
    kinds = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * 5 + [3, 4, 3, 3, 3]}
    (tmp_path / "m.gguf").write_bytes(gguf_bytes({**METADATA, **ids, **kinds}, ()))
    config = EngineConfig(model_path=str(tmp_path / "m.gguf"), model_format="gguf", served_model_names=("m",))
    assert load_tokenizer(config).special.eos_ids == ends


def test_gguf_begins_with_bos_where_the_model_says_so() -> None:
    fast, tokens = build_from_gguf(_tiny() | {"tokenizer.ggml.add_bos_token": True})
    assert fast.encode("ab").ids == [tokens.index("<s>"), tokens.index("ab")]
    assert fast.encode("ab", add_special_tokens=False).ids == [tokens.index("ab")]
    tokenizer = Tokenizer(fast, SpecialTokens((), None, {}), None)
    assert tokenizer.special_ids == {tokens.index(name) for name in ("<s>", "</s>", "<eot>")}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokenizer.ggml.model": "rwkv"}, "'rwkv'"),
        ({"tokenizer.ggml.pre": "mystery"}, "'mystery'"),
        ({"tokenizer.ggml.tokens": []}, r"tokens is \[\], a list of texts"),
        ({"tokenizer.ggml.merges": ["nopair"]}, "nopair"),
    ],
)
def test_gguf_names_what_it_cannot_read(change: dict[str, Value], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build_from_gguf(_tiny() | change)


def _write(path: Path, fast: FastTokenizer, **files: object) -> None:
    fast.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))


def test_huggingface_ends_of_sequence_come_from_every_place_that_names_them(tmp_path: Path) -> None:
    fast, tokens = build_from_gguf(_tiny())
    eos, eot = tokens.index("</s>"), tokens.index("<eot>")
    settings_of = {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": "old"}
    _write(tmp_path, fast, tokenizer_config=settings_of, generation_config={"eos_token_id": [eot]}, config={"eos_token_id": 7})
    tokenizer = load_tokenizer(_config(tmp_path))
    assert tokenizer.special.eos_ids == (eos, eot)
    assert tokenizer.special.bos_id == tokens.index("<s>")
    assert tokenizer.chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert load_tokenizer(_config(tmp_path)).chat_template == "new"


def test_huggingface_without_generation_config_reads_the_models_own(tmp_path: Path) -> None:
    _write(
        tmp_path,
        build_from_gguf(_tiny())[0],
        config={"eos_token_id": 7},
        tokenizer_config={"chat_template": [{"name": "default", "template": "t"}]},
    )
    tokenizer = load_tokenizer(_config(tmp_path))
    assert tokenizer.special.eos_ids == (7,)
    assert tokenizer.chat_template == "t"


def test_huggingface_problems_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_tokenizer(_config(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a readable tokenizer"):
        load_tokenizer(_config(tmp_path))
    _write(tmp_path, build_from_gguf(_tiny())[0])
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_tokenizer(_config(tmp_path))


def test_a_decoder_that_is_not_known_is_refused() -> None:
    fast = FastTokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    fast.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        Tokenizer(fast, SpecialTokens((), None, {}), None)
