"""What is read of a model before anything starts, and which models are refused."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, ModelError
from protocol.model_files import ModelFacts, check_length, read_model_facts
from protocol.model_sizes import ModelSizes
from protocol.safetensors_header import read_safetensors_header
from protocol.sharding import LayerSizes
from tests.model_writer import (
    CONFIG,
    METADATA,
    NAMES,
    POINTER,
    TENSORS,
    Tensor,
    gguf_bytes,
    safetensors_bytes,
    write_gguf,
    write_huggingface,
)

SIZES = ModelSizes(2, 8, 1, 1, 8, 8, 0, 10)


def test_facts_of_a_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    wanted = ModelFacts("llama", 10, 256, f"llama.context_length in {path}", LayerSizes(1, 1, 8), SIZES)
    assert read_model_facts(path, "gguf") == wanted


@pytest.mark.parametrize("shards", [1, 3])
def test_facts_of_a_directory(tmp_path: Path, shards: int) -> None:
    path = write_huggingface(tmp_path / "m", shards)
    context = f"max_position_embeddings in {path / 'config.json'}"
    wanted = ModelFacts("LlamaForCausalLM", 10, 256, context, LayerSizes(1, 1, 8), SIZES)
    assert read_model_facts(path, "huggingface") == wanted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": None}, "general.architecture is missing"),
        ({"general.architecture": "mamba"}, "general.architecture 'mamba' is not supported, only llama"),
        ({"general.architecture": 3}, "general.architecture 3 is not supported"),
        ({"general.type": "adapter"}, "general.type is 'adapter': a file that holds a whole model is wanted"),
        ({"llama.context_length": None}, r"llama\.context_length is missing"),
        ({"llama.context_length": 0}, r"llama\.context_length is 0, a whole number from 1"),
        ({"llama.context_length": 2**40}, r"llama\.context_length is 1099511627776, a whole number"),
        ({"llama.context_length": "8k"}, r"llama\.context_length is '8k', a whole number"),
        ({"llama.context_length": True}, r"llama\.context_length is True, a whole number"),
        ({"llama.block_count": None}, r"llama\.block_count is missing"),
        ({"llama.block_count": 2**31}, r"llama\.block_count is 2147483648, a whole number"),
        (
            {"llama.block_count": 2**31 - 1},
            "is 2147483647, but the weights hold tensors of 2 layers, up to number 1",
        ),
        ({"llama.block_count": 1}, r"llama\.block_count is 1, but the weights hold tensors of 2 layers"),
    ],
)
def test_a_gguf_file_that_cannot_be_served(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", **changes)
    with pytest.raises(ModelError, match=rf"m\.gguf: .*{message}"):
        read_model_facts(path, "gguf")


@pytest.mark.parametrize("tensors", [TENSORS[1:], (Tensor("token_embd.weight", (8,)), *TENSORS[1:])])
def test_a_gguf_file_without_embeddings(tmp_path: Path, tensors: tuple[Tensor, ...]) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(METADATA, tensors))
    with pytest.raises(ModelError, match=r"m\.gguf: tensor token_embd\.weight of two dimensions is missing"):
        read_model_facts(tmp_path / "m.gguf", "gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "architectures is missing"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM': a list of a name"),
        ({"architectures": ["MambaForCausalLM"]}, "architecture 'MambaForCausalLM' is not supported, only LlamaForCausalLM"),
        ({"architectures": [["LlamaForCausalLM"]]}, r"architecture \['LlamaForCausalLM'\] is not supported"),
        (
            {"quantization_config": {"quant_method": "hqq"}},
            "quantization_config.quant_method 'hqq' is not supported, only compressed-tensors",
        ),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": 3.5}, "vocab_size is 3.5, a whole number"),
        ({"max_position_embeddings": None}, "max_position_embeddings is missing"),
        ({"max_position_embeddings": -1}, "max_position_embeddings is -1, a whole number"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, but the weights hold tensors of 2 layers"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647, but the weights"),
    ],
)
def test_a_directory_that_cannot_be_served(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"config\.json: {message}"):
        read_model_facts(write_huggingface(tmp_path, **changes), "huggingface")


SOUND = safetensors_bytes()
SHARD, INDEX = "model-00002-of-00003.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", r"config\.json: no JSON object to be read: Input data was truncated"),
        ("config.json", b"[]", r"config\.json: no JSON object to be read: Expected `object`"),
        ("config.json", b'{"a": "\xff"}', r"config\.json: no JSON object to be read"),
        ("config.json", b'{"a":' * 10_000, r"config\.json: no JSON object to be read"),
        ("config.json", b" " * ((1 << 24) + 1), r"config\.json: more than 16777216 bytes"),
        ("config.json", POINTER, r"config\.json: no JSON object to be read: it is a Git LFS pointer"),
        ("config.json", b"<!DOCTYPE html>", "it is a web page"),
        ("model.safetensors", None, "neither model.safetensors nor model.safetensors.index.json is here"),
        ("model.safetensors", b"", r"model\.safetensors: not a safetensors file but empty"),
        ("model.safetensors", POINTER, r"model\.safetensors: not a safetensors file but a Git LFS pointer"),
        ("model.safetensors", b"PK\x03\x04" + bytes(99), "a ZIP archive, perhaps PyTorch weights"),
        ("model.safetensors", SOUND[:-1], r"model\.safetensors: cut short: its tensors end at byte"),
        ("model.safetensors", SOUND[:99], r"model\.safetensors: cut short within its header"),
        ("model.safetensors", SOUND + b"x", r"model\.safetensors: not what its header describes"),
        ("model.safetensors", struct.pack("<Q", 1 << 40) + SOUND[8:], "not a safetensors file but"),
        ("model.safetensors", SOUND.replace(b"data_offsets", b"data_0ffsets"), "its header is damaged: .*data_offsets"),
        ("model.safetensors", SOUND.replace(b"layers.1", b"layers.2"), "is 2, but .* 2 layers, up to number 2"),
        ("model.safetensors", SOUND.replace(b"model.layers", b"modules.abc_"), "is 2, but the weights hold tensors of 0"),
    ],
)  # fmt: skip
def test_files_of_a_directory_that_are_not_what_they_should_be(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    write_huggingface(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model_facts(tmp_path, "huggingface")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (SHARD, None, rf"{SHARD}: {INDEX} names this file, but it is not here: download it too"),
        (SHARD, safetensors_bytes(NAMES[:1]), "tensor model.embed_tokens.weight is in model-00001-of-00003.safetensors too"),
        (SHARD, safetensors_bytes(["other"]), rf"{SHARD}: {INDEX} says that tensor {NAMES[1]} is in this file, but it is not"),
        (INDEX, b"{}", rf"{INDEX}: no weight_map to be read"),
        (INDEX, b'{"weight_map": {"a": 3}}', rf"{INDEX}: no weight_map to be read"),
        (INDEX, b'{"weight_map": {}}', rf"{INDEX}: its weight_map names no file"),
        (INDEX, b'{"weight_map": {"a": "' + b"b" * 300 + b'"}}', rf"b{{300}}: {INDEX} names this file, but it is not here"),
        (INDEX, b'{"weight_map": {"a": "../b.safetensors"}}', r"'\.\./b\.safetensors' is no plain file name"),
        (INDEX, POINTER, rf"{INDEX}: no weight_map to be read: it is a Git LFS pointer"),
    ],
)
def test_shards_that_do_not_fit_their_index(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    write_huggingface(tmp_path, shards=3)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_model_facts(tmp_path, "huggingface")


def test_the_length_is_bounded_by_the_model() -> None:
    assert check_length(None, 256, "x") == check_length(256, 256, "x") == 256
    assert check_length(2, 256, "x") == 2
    with pytest.raises(ConfigError, match=r"--max-model-len 257 is more than the 256 tokens that the model was made for \(x\)"):
        check_length(257, 256, "x")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*CONFIG, "quantization_config"]), JSON))
def test_any_config_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]) -> None:
    path = write_huggingface(tmp_path_factory.mktemp("m"), **changes)
    try:
        read_model_facts(path, "huggingface")
    except ModelError as error:
        assert "config.json: " in str(error)


@given(st.data())
def test_a_damaged_safetensors_file_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("m") / "model.safetensors"
    path.write_bytes(content)
    try:
        read_safetensors_header(path)
    except ModelError as error:
        assert "model.safetensors: " in str(error)
