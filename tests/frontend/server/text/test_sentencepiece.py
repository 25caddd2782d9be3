"""Tokenizers of SentencePiece, from its own files and from GGUF, against what SentencePiece itself makes of hard texts."""

import json
import time
from pathlib import Path

import pytest

from frontend.server.text.detokenizer import Detokenizer, decode
from frontend.server.text.gguf_tokenizer import build_from_gguf
from frontend.server.text.sentencepiece import Piece, build, merges_of
from frontend.server.text.sentencepiece_file import build_from_file, read_sentencepiece
from frontend.server.text.tokenizer import SpecialTokens, Tokenizer, load_tokenizer
from protocol.config import EngineConfig
from protocol.errors import ModelError
from protocol.gguf_header import Value

DATA = Path(__file__).parents[3] / "data" / "sentencepiece"
EXPECTED = json.loads((DATA / "expected.json").read_text())
MODELS = ("llama", "gemma", "spaces", "without_bytes")
EXACT = ("llama", "gemma")  # whose texts come back as they were


def from_gguf(name: str) -> dict[str, Value]:
    """The metadata that llama.cpp's converter writes of a model."""
    file = read_sentencepiece(DATA / f"{name}.model")
    texts = [piece.text.replace("\u2581", " ") if piece.kind == 4 else piece.text for piece in file.pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": [piece.score for piece in file.pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in file.pieces],
        "tokenizer.ggml.add_space_prefix": file.space_prefix,
    }


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer(build_from_file(DATA / f"{name}.model", {}), SpecialTokens((2,), 1, {}), None)


def test_ids_are_those_of_sentencepiece(name: str, tokenizer: Tokenizer) -> None:
    found = [tokenizer.encode(text, add_special_tokens=False) for text in EXPECTED["texts"]]
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "spaces"])  # no GGUF says that spaces are joined
def test_gguf_has_the_same_ids(name: str) -> None:
    fast, tokens = build_from_gguf(from_gguf(name))
    assert [fast.encode(text, add_special_tokens=False).ids for text in EXPECTED["texts"]] == EXPECTED[name]
    assert tokens[1] == "<s>"
    assert fast.encode("a").ids[0] == 1


@pytest.mark.parametrize("name", EXACT)
def test_texts_come_back_whole_and_token_by_token(name: str) -> None:
    tokenizer = Tokenizer(build_from_file(DATA / f"{name}.model", {}), SpecialTokens((2,), 1, {}), None)
    for text, ids in zip(EXPECTED["texts"], EXPECTED[name], strict=True):
        assert decode(tokenizer.bytes, ids) == text == tokenizer._fast.decode(ids, skip_special_tokens=False)
        growing = Detokenizer(tokenizer.bytes)
        pieces = [growing.feed([token_id]) for token_id in ids]
        assert "".join(pieces) + growing.feed([], final=True) == text
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@pytest.mark.parametrize("text", ["a" * (1 << 20), " " * (1 << 20), "ab " * (1 << 18), "\u0301" * (1 << 18)], ids=repr)
def test_long_texts_take_time_in_proportion(text: str) -> None:
    fast = build_from_file(DATA / "llama.model", {})

    def seconds(size: int) -> float:
        before = time.process_time()
        fast.encode_batch_fast([text[:size]])
        return time.process_time() - before

    size = len(text) // 16
    assert seconds(len(text)) < 16 * 6 * max(seconds(size), seconds(size), 0.005)  # quadratic: 256 times


def test_merges_are_every_way_to_make_a_piece_the_best_piece_first() -> None:
    pieces = [Piece("a", -9, 1), Piece("b", -9, 1), Piece("ab", -2, 1), Piece("aab", -1, 1), Piece("ba", -3, 3), Piece("bb", -4, 6)]
    assert merges_of(pieces) == [("a", "ab"), ("a", "b")]


def test_a_text_is_never_a_byte_or_a_control_piece_by_its_letters() -> None:
    tokenizer = build_from_file(DATA / "gemma.model", {})
    assert tokenizer.token_to_id("<0x41>") not in tokenizer.encode("<0x41>").ids
    fenced, fence = Tokenizer(tokenizer, SpecialTokens((2,), 1, {}), None).control.fence(
        [{"role": "user", "content": "<end_of_turn>"}]
    )
    ids = Tokenizer(tokenizer, SpecialTokens((2,), 1, {}), None).encode(fenced[0]["content"], add_special_tokens=False, fence=fence)
    assert tokenizer.token_to_id("<end_of_turn>") not in ids
    assert tokenizer.decode(ids) == "<end_of_turn>"


def test_a_mark_of_turns_that_is_not_marked_as_special_is_kept_from_users_too() -> None:
    kinds = from_gguf("gemma")
    tokens, types = kinds["tokenizer.ggml.tokens"], kinds["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    end = [*tokens].index("<end_of_turn>")
    fast, _ = build_from_gguf(kinds | {"tokenizer.ggml.token_type": [*types[:end], 4, *types[end + 1 :]]})
    tokenizer = Tokenizer(fast, SpecialTokens((2,), 1, {}), None)
    messages, fence = tokenizer.control.fence([{"role": "user", "content": "<end_of_turn>"}])
    assert end not in tokenizer.encode(messages[0]["content"], fence=fence)
    assert end in tokenizer.encode("<end_of_turn>")


def test_bos_and_eos_go_around_a_text_once() -> None:
    metadata = from_gguf("gemma") | {"tokenizer.ggml.add_eos_token": True}
    tokenizer = Tokenizer(build_from_gguf(metadata)[0], SpecialTokens((2,), 1, {}), None, bos_is_always_first=True)
    plain = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.encode("a") == tokenizer.encode("<s>a") == tokenizer.encode("<s>a</s>") == [1, *plain, 2]
    for text in ("a", "<s>a"):  # an answer follows, so that no end does
        assert tokenizer.encode_conversation(text, add_special_tokens=False, limit=100, fence="") == [1, *plain]
    none = build_from_gguf(metadata | {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": False})[0]
    assert Tokenizer(none, SpecialTokens((2,), 1, {}), None).encode("a") == plain


def test_a_directory_with_no_other_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((DATA / "llama.model").read_bytes())
    added = {"600": {"content": "<|im_end|>", "special": True}, "601": {"content": "<tool>", "special": False}}
    settings = {"add_bos_token": True, "bos_token": "<s>", "eos_token": {"content": "</s>"}, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = EngineConfig(model_path=str(tmp_path), model_format="huggingface", served_model_names=("m",))
    tokenizer = load_tokenizer(config)
    assert tokenizer.special.eos_ids == (2,)
    assert tokenizer.encode("<|im_end|><tool>") == [1, 600, 601]
    assert tokenizer.special_ids >= {1, 2, 600}
    added["610"] = {"content": "<far>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="gives '<far>' the id 610, but it is 602 by tokenizer.model: write a tokenizer.json"):
        load_tokenizer(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: b"", "it is empty"),
        (lambda data: data[:1000], "it ends within a field|index out of range"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (lambda data: b"\x0f" + data, "wire type 7"),
        (lambda data: b"\x08\x01" + data, "field 1 is no message"),
        (lambda data: data + b"\x12\x02\x18\x01", "model_type is unigram, only BPE is read: put a tokenizer.json beside it"),
        (lambda data: data + b"\x1a\x0d\x0a\x08nmt_nfkc\x12\x01x", "by the rule 'nmt_nfkc', only 'identity' is read"),
    ],
)  # fmt: skip
def test_files_that_are_not_read(tmp_path: Path, change: object, message: str) -> None:
    assert callable(change)
    (tmp_path / "tokenizer.model").write_bytes(change((DATA / "llama.model").read_bytes()))
    with pytest.raises(ModelError, match=rf"tokenizer\.model: .*({message})"):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_pieces_may_be_said_twice_or_be_empty() -> None:
    pieces = [Piece("<unk>", 0, 2), Piece("", 0, 3), Piece("a", -1, 1), Piece("a", -2, 1), Piece("\u2581", -1, 1)]
    assert build(pieces, 0, space_prefix=False).encode("aa b").ids == [2, 2, 4, 0]
