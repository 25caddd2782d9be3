"""Flags of a worker over several hosts, and the variables that stand for them."""

from pathlib import Path
from typing import Any

import pytest

from frontend.launcher.hosts import settle_hosts
from frontend.launcher.options import read_options
from protocol.errors import ConfigError
from tests.model_writer import write_huggingface


def settle(values: dict[str, Any], device: str = "cpu", **environ: str) -> tuple[dict[str, Any], list[str]]:
    remarks: list[str] = []
    settle_hosts(values, environ, device, remarks)
    return values, remarks


def test_hosts_are_names_with_commas_between_them_or_a_list() -> None:
    for given in (("a,b",), ("a", "b"), ("a, b",)):
        values, remarks = settle({"hosts": given, "host_rank": 1, "tensor_parallel_size": 8})
        assert values == {"hosts": ("a", "b"), "host_rank": 1, "hosts_secret": "", "tensor_parallel_size": 8}
        assert remarks == []
    assert settle({"hosts": ("a",), "host_rank": 0})[0] == {}  # one host is none


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"hosts": ("a,b",)}, r"--hosts a,b: --host-rank is wanted too: which of them this one is, from 0"),
        ({"hosts": ("a,b",), "host_rank": 0, "compiled": "/d"}, r"--compiled with --hosts: programs of several hosts are neither"),
        ({"host_rank": 1}, r"--host-rank 1: --hosts is wanted too"),
        ({"hosts": ("a,b",), "host_rank": 2}, r"--host-rank 2: with 2 hosts, 0 to 1 are possible"),
        ({"hosts": ("a",), "host_rank": 1}, r"--host-rank 1: with 1 hosts, 0 to 0 are possible"),
        ({"hosts": ("a,b",), "host_rank": 0, "workers": 2, "tensor_parallel_size": 2}, r"--workers 2 with --hosts: one worker"),
        (
            {"hosts": ("a,b",), "host_rank": 0, "tensor_parallel_size": 3},
            r"--tensor-parallel-size 3 over 2 hosts.* a multiple of 2",
        ),
        ({"hosts": ("a,b",), "host_rank": 0}, r"--tensor-parallel-size 1 over 2 hosts"),
        (
            {"hosts": ("a,b",), "host_rank": 0, "tensor_parallel_size": 2, "hosts_token_file": "/none"},
            r"--hosts-token-file /none: No",
        ),
    ],
)
def test_what_is_refused(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        settle(values)


def test_the_simulated_device_is_on_one_host() -> None:
    with pytest.raises(ConfigError, match="--hosts: the simulated device has no chips on other hosts"):
        settle({"hosts": ("a,b",), "host_rank": 0, "tensor_parallel_size": 2}, "sim")


def test_the_variables_of_a_slice_stand_for_the_flags_and_flags_win() -> None:
    slices = {"TPU_WORKER_HOSTNAMES": "t-0,t-1", "TPU_WORKER_ID": "1"}
    values, (remark,) = settle({"tensor_parallel_size": 8}, "tpu", **slices)
    assert (values["hosts"], values["host_rank"]) == (("t-0", "t-1"), 1)
    assert remark == "rank 1 of a worker over 2 hosts, as TPU_WORKER_HOSTNAMES and TPU_WORKER_ID have it"
    values, remarks = settle({"hosts": ("x,y",), "host_rank": 0, "tensor_parallel_size": 8}, "tpu", **slices)
    assert (values["hosts"], values["host_rank"], remarks) == (("x", "y"), 0, [])
    assert settle({}, "cpu", **slices) == ({}, [])  # they are about TPUs
    assert settle({}, "tpu", TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0") == ({}, [])
    for rank in ("", "x", "²"):
        with pytest.raises(ConfigError, match=r"TPU_WORKER_HOSTNAMES names 2 hosts, but TPU_WORKER_ID is .*: give --hosts and"):
            settle({}, "tpu", TPU_WORKER_HOSTNAMES="t-0,t-1", TPU_WORKER_ID=rank)


def test_flags_without_hosts_have_no_effect() -> None:
    assert settle({"hosts_port": 9000})[1] == ["--hosts-port has no effect without --hosts"]
    assert settle({"hosts_token_file": "/none"})[1] == ["--hosts-token-file has no effect without --hosts"]


def test_tokens(tmp_path: Path) -> None:
    file = tmp_path / "token"
    flags = {"hosts": ("a,b",), "host_rank": 0, "tensor_parallel_size": 2, "hosts_token_file": str(file)}
    file.write_text("0123456789abcdef\n")
    assert settle(dict(flags))[0]["hosts_secret"] == "0123456789abcdef"
    for content in (b"short\n", b"x" * 5000, "zu wenig sind fünfzehn".encode()):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=f"--hosts-token-file {file}: a token of"):
            settle(dict(flags))


def test_only_the_first_host_needs_addresses_for_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = str(write_huggingface(tmp_path / "m", num_attention_heads=2, num_key_value_heads=2))
    line = ["--model", model, "--device", "cpu", "--hosts", "a,b", "--tensor-parallel-size", "2", "--ipc", "/none/at/all"]
    config, _ = read_options([*line, "--host-rank", "1"], {})
    assert (config.hosts, config.host_rank, config.ipc_path) == (("a", "b"), 1, "")
    with pytest.raises(ConfigError, match="--ipc /none/at/all"):
        read_options([*line, "--host-rank", "0"], {})
    with pytest.raises(ConfigError, match="--hosts a/b: names or addresses of hosts are wanted"):
        read_options(["--model", model, "--hosts", "a/b", "--host-rank", "1"], {})
