"""What ranks compare, and what they say of it."""

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from protocol.config import EngineConfig
from protocol.host_messages import HostHello
from tests.model_writer import write_gguf, write_huggingface
from tpu_worker.hosts.facts import OWN, find_disagreement, gather_facts
from tpu_worker.hosts.roll import Roll

HOSTS = ("a", "b", "c")


def config(path: Path, **changes: Any) -> EngineConfig:
    whole = EngineConfig(model_path=str(path), model_format="huggingface", served_model_names=("m",), hosts=HOSTS)
    return replace(whole, **changes)


def test_every_field_is_compared_but_those_that_are_named() -> None:
    assert set(EngineConfig.__struct_fields__) >= OWN
    compared = set(EngineConfig.__struct_fields__) - OWN
    assert compared >= {"hosts", "tensor_parallel_size", "max_num_seqs", "dtype", "quantization", "kv_cache_memory", "block_size"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_num_seqs": 8}, "--max-num-seqs is 256 on rank 0 (a), 8 on rank 1 (b)"),
        ({"max_model_len": 64}, "--max-model-len is not given on rank 0 (a), 64 on rank 1 (b)"),
        ({"hosts": ("a", "x")}, '--hosts is ["a","b","c"] on rank 0 (a), ["a","x"] on rank 1 (b)'),
        ({"dtype": "float32"}, "--dtype is auto on rank 0 (a), float32 on rank 1 (b)"),
        ({"seed": 1, "port": 1, "host_rank": 2, "api_keys": ("k",), "hosts_secret": "s"}, ""),
    ],
)
def test_flags_that_differ_are_named_with_both_values(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    path = write_huggingface(tmp_path / "m")
    ours, theirs = gather_facts(config(path), {}), gather_facts(config(path, **changes), {})
    assert find_disagreement({0: ours, 1: theirs}, HOSTS) == (f"the ranks disagree: {text}" if text else "")


def test_the_seed_of_random_weights_and_variables_of_the_compiler_are_compared(tmp_path: Path) -> None:
    dummy = config(write_huggingface(tmp_path / "m"), load_format="dummy")
    ours, theirs = gather_facts(dummy, {}), gather_facts(replace(dummy, seed=3), {"XLA_FLAGS": "--x"})
    text = find_disagreement({0: ours, 2: theirs}, HOSTS)
    assert "--seed is not given on rank 0 (a), 3 on rank 2 (c)" in text
    assert "the variable XLA_FLAGS is unset on rank 0 (a), --x on rank 2 (c)" in text


@pytest.mark.parametrize("form", ["gguf", "huggingface"])
def test_models_are_known_by_their_files_wherever_they_lie(tmp_path: Path, form: str) -> None:
    def write(name: str, length: int) -> Path:
        if form == "gguf":
            return write_gguf(tmp_path / f"{name}.gguf", **{"llama.context_length": length})
        return write_huggingface(tmp_path / name, max_position_embeddings=length)

    one, same, other = (gather_facts(config(write(name, size)), {}) for name, size in (("one", 64), ("same", 64), ("other", 128)))
    assert find_disagreement({0: one, 1: same}, HOSTS) == ""
    file = "file" if form == "gguf" else "config.json"
    assert f"the ranks disagree: --model's {file} is " in find_disagreement({0: one, 1: other}, HOSTS)


def test_the_roll_of_those_who_come_and_go() -> None:
    facts = {"--x": "1"}
    roll = Roll(HOSTS, facts)
    assert roll.missing() == [1, 2]
    assert roll.describe(roll.missing()) == "rank 1 (b), rank 2 (c)"
    roll.came(HostHello(1, 11, facts), connection=5)
    roll.came(HostHello(1, 11, facts), connection=5)
    roll.came(HostHello(2, 22, facts), connection=6)
    assert (roll.missing(), roll.incarnations, roll.connections, roll.wrong) == ([], (11, 22), {5: 1, 6: 2}, "")
    roll.left(6)
    assert roll.missing() == [2]
    roll.came(HostHello(2, 23, facts), connection=7)  # its successor
    assert (roll.missing(), roll.incarnations, roll.wrong) == ([], (11, 23), "")


def test_what_the_roll_objects_to() -> None:
    roll = Roll(HOSTS, {"--x": "1"})
    roll.came(HostHello(1, 11, {"--x": "2"}), 5)
    assert roll.wrong == "the ranks disagree: --x is 1 on rank 0 (a), 2 on rank 1 (b)"
    roll.came(HostHello(1, 12, {"--x": "1"}), 6)
    assert roll.wrong == ""
    roll.came(HostHello(1, 11, {"--x": "1"}), 5)  # it lives, and so does the other one
    assert roll.wrong == "two processes say that they are rank 1: every host needs a --host-rank of its own"
    for rank in (0, 3):
        roll = Roll(HOSTS, {})
        roll.came(HostHello(rank, 1, {}), 5)
        assert roll.wrong == f"a host came with --host-rank {rank}, where ranks 1 to 2 are waited for"
