"""A directory that stands in for a model on the simulated device: sizes, and a tokenizer that works."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from frontend.bench.stand_in import write_stand_in
from protocol.errors import ConfigError
from protocol.model_files import read_model_facts
from protocol.model_sizes import ModelSizes
from tests.roofline_report import LLAMA_1B


@pytest.mark.parametrize("sizes", [LLAMA_1B, ModelSizes(4, 64, 8, 2, 16, 24, 6, 300)])
def test_its_files_say_the_sizes(tmp_path: Path, sizes: ModelSizes) -> None:
    facts = read_model_facts(write_stand_in(tmp_path, sizes, 4096), "huggingface", "dummy")
    assert (facts.sizes, facts.context_length) == (sizes, 4096)


def test_each_token_is_a_text_of_its_own(tmp_path: Path) -> None:
    write_stand_in(tmp_path, ModelSizes(4, 64, 8, 2, 16, 24, 0, 20_000), 4096)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 20_000
    assert tokenizer.encode("Grüße, Welt\n").ids == list("Grüße, Welt\n".encode())  # there are no merges
    texts = [tokenizer.decode([index]) for index in range(256, 19_999)]
    assert len(set(texts)) == len(texts) and texts[:2] == [" aaa", " aab"]
    assert tokenizer.decode([19_999]) == ""  # the end, which no text shows


def test_a_vocabulary_that_holds_no_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a model of .* vocabulary 256 cannot be stood in for: name a --model"):
        write_stand_in(tmp_path, ModelSizes(4, 64, 8, 2, 16, 24, 0, 256), 4096)
