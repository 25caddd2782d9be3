"""A model in several files is one model, or is refused with the file at fault."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from frontend.launcher.models import examine_model, resolve_model
from protocol.errors import ModelError
from protocol.gguf_header import read_gguf_header
from tests.model_writer import METADATA, TENSORS, Tensor, gguf_bytes, write_gguf

COUNT = 3


def write_part(
    directory: Path, number: int, tensors: Sequence[Tensor] | None = None, changes: Mapping[str, object] | None = None
) -> Path:
    """One of three parts of the small model, as `llama-gguf-split` writes them: the first has its metadata."""
    of_all: Mapping[str, object] = METADATA if number == 0 else {}
    metadata = {**of_all, "split.no": number, "split.count": COUNT, "split.tensors.count": len(TENSORS), **(changes or {})}
    path = directory / f"m.Q4_K_M-{number + 1:05}-of-{COUNT:05}.gguf"
    path.write_bytes(gguf_bytes(metadata, TENSORS[number::COUNT] if tensors is None else tensors))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [write_part(tmp_path, number) for number in range(COUNT)]


def test_any_part_stands_for_the_model(parts: list[Path], tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = read_gguf_header(write_gguf(tmp_path / "whole" / "m.gguf"))
    for path in parts:
        header = read_gguf_header(path)
        assert header.metadata.items() >= whole.metadata.items()
        assert header.tensors.keys() == whole.tensors.keys()
        for name, info in header.tensors.items():
            assert (info.shape, info.ggml_type, info.num_bytes) == (
                whole.tensors[name].shape,
                whole.tensors[name].ggml_type,
                whole.tensors[name].num_bytes,
            )
            assert info.path in parts
        files = resolve_model(str(path))
        assert files.names[0] == "m"
        assert examine_model(files).vocab_size == 10


def test_a_directory_of_parts_is_a_model(parts: list[Path], tmp_path: Path) -> None:
    files = resolve_model(str(tmp_path))
    assert (files.path, files.format, files.names) == (str(parts[0]), "gguf", ("m", str(tmp_path)))
    assert examine_model(files).architecture == "llama"
    write_gguf(tmp_path / "other.gguf")
    with pytest.raises(ModelError, match="did you mean --model"):
        resolve_model(str(tmp_path))


def test_no_tensors_in_the_first_part(tmp_path: Path) -> None:
    write_part(tmp_path, 0, ())
    write_part(tmp_path, 1, TENSORS[:2])
    assert read_gguf_header(write_part(tmp_path, 2, TENSORS[2:])).tensors.keys() == {tensor.name for tensor in TENSORS}


def test_missing_parts_are_named(parts: list[Path], tmp_path: Path) -> None:
    parts[1].unlink()
    for given in (parts[0], tmp_path):
        with pytest.raises(ModelError, match=r"not beside it: m\.Q4_K_M-00002-of-00003\.gguf: download"):
            examine_model(resolve_model(str(given)))
    parts[0].unlink()
    with pytest.raises(
        ModelError, match=r"part 3 of 3 .* not beside it: .*-00001-of-00003\.gguf, .*-00002-of-00003\.gguf: download"
    ):
        examine_model(resolve_model(str(tmp_path)))


def test_a_part_cut_short_is_named(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes()[:-40])
    with pytest.raises(ModelError, match=r"m\.Q4_K_M-00003-of-00003\.gguf: cut short: tensor"):
        read_gguf_header(parts[0])


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (1, {"split.count": 4}, "by its name part 2 of 3, but it says that it is part 2 of 4: download the parts again"),
        (1, {"split.no": 2}, "but it says that it is part 3 of 3"),
        (1, {"split.count": 1}, "but it says that it is a whole model"),
        (2, {"split.tensors.count": 9}, "split.tensors.count is 9, and in m.Q4_K_M-00001-of-00003.gguf 4: parts of two models"),
        (2, {"general.architecture": "qwen2"}, "general.architecture is 'qwen2', and in .* 'llama': parts of two models"),
        (1, {"split.no": "x"}, "split.no is 'x', a number from 0 to 2"),
    ],
)
def test_parts_of_different_models(parts: list[Path], number: int, change: dict[str, object], message: str) -> None:
    write_part(parts[0].parent, number, changes=change)
    with pytest.raises(ModelError, match=rf"{re.escape(parts[number].name)}: .*{message}"):
        read_gguf_header(parts[0])


def test_tensors_twice_or_too_few(parts: list[Path], tmp_path: Path) -> None:
    write_part(tmp_path, 1, TENSORS[:1])
    with pytest.raises(
        ModelError, match=r"00002-of-00003\.gguf: tensor token_embd\.weight is in m\.Q4_K_M-00001-of-00003\.gguf, too"
    ):
        read_gguf_header(parts[0])
    write_part(tmp_path, 1, ())
    with pytest.raises(ModelError, match=r"split\.tensors\.count is 4, but its 3 parts hold 3 tensors"):
        read_gguf_header(parts[0])


def test_a_part_under_another_name(parts: list[Path]) -> None:
    renamed = parts[1].rename(parts[1].with_name("second.gguf"))
    with pytest.raises(ModelError, match=r"second\.gguf: it is part 2 of 3 .* to be called second-00002-of-00003\.gguf"):
        read_gguf_header(renamed)
    swapped = parts[2].rename(parts[1])
    with pytest.raises(ModelError, match=r"it is part 3 of 3 .* to be called m\.Q4_K_M-00003-of-00003\.gguf"):
        read_gguf_header(swapped)
