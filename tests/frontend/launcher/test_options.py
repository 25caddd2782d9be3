"""Flags and files to one EngineConfig; every bad value names the flag, the value and what would be right."""

import contextlib
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.launcher.options import read_options
from frontend.launcher.values import Parser, power_of_two, size
from protocol.config import EngineConfig
from protocol.errors import AddressError, CapacityError, ConfigError, ModelError
from tests.model_writer import write_gguf, write_huggingface


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ENGINE_SOCKET", raising=False)
    return str(write_gguf(tmp_path / "Small-1B.Q4_1.gguf", **{"llama.context_length": 1024}))


def read(gguf: str, *arguments: str) -> EngineConfig:
    """With a free port, since a port that somebody has is refused."""
    config, remarks = read_options(["--model", gguf, "--device", "sim", "--port", "0", *arguments])
    assert remarks == []
    return config


def test_defaults_are_those_of_the_configuration(gguf: str, tmp_path: Path) -> None:
    wanted = EngineConfig(
        model_path=gguf,
        model_format="gguf",
        served_model_names=("Small-1B", gguf),
        device="sim",
        port=0,
        ipc_path=str(tmp_path / "twodeep.sock"),
    )
    assert read(gguf) == wanted


def options(gguf: str, *arguments: str, **environ: str) -> tuple[EngineConfig, list[str]]:
    return read_options(["--model", gguf, "--device", "sim", "--port", "0", *arguments], environ)


def test_keys_come_from_several_places_and_are_taken_together(gguf: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("filed\ntwice\n")
    line = ("--api-key", "one", "twice", "--api-key-file", str(tmp_path / "keys"))
    config, (remark,) = options(gguf, *line, ENGINE_API_KEY=" secret ")
    assert config.api_keys == ("one", "twice", "secret", "filed")
    assert "whoever lists this machine's processes reads it" in remark
    assert not any(key in remark for key in config.api_keys)
    config, remarks = options(gguf, ENGINE_API_KEY="secret")
    assert (config.api_keys, remarks) == (("secret",), [])
    assert options(gguf, ENGINE_API_KEY=" ")[0].api_keys == ()


@pytest.mark.parametrize(("arguments", "key"), [(("--api-key", "a b"), ""), (("--api-key", "ä"), ""), ((), "a b"), ((), "ä")])
def test_a_key_that_no_header_carries_is_refused(gguf: str, arguments: tuple[str, ...], key: str) -> None:
    with pytest.raises(ConfigError, match="a key of visible ASCII characters is wanted"):
        options(gguf, *arguments, ENGINE_API_KEY=key)


def test_how_weights_are_quantised_is_said_by_the_files(gguf: str, tmp_path: Path) -> None:
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    directory = str(write_huggingface(tmp_path / "Tiny", quantization_config=awq))
    config, (remark,) = options(directory, "--quantization", "awq")
    assert (config.quantization, remark) == ("auto", "--quantization awq is left out: config.json says that")
    assert options(directory, "--quantization", "none")[0].quantization == "none"
    with pytest.raises(ConfigError, match=r"--quantization gptq: the weights of .*Tiny are awq, and nothing is quantised so as"):
        options(directory, "--quantization", "gptq")
    plain = str(write_huggingface(tmp_path / "Plain"))
    assert options(plain, "--quantization", "fp8")[0].quantization == "fp8"
    assert options(directory, "--quantization", "fp8")[0].quantization == "fp8"
    fp8 = str(write_huggingface(tmp_path / "Fp8", quantization_config={"quant_method": "fp8"}))
    config, (remark,) = options(fp8, "--quantization", "fp8")
    assert (config.quantization, remark) == ("auto", "--quantization fp8 is left out: config.json says that")
    for quantization in ("int8", "fp8"):
        with pytest.raises(ConfigError, match=f"--dtype float32 rounds nothing, --quantization {quantization} rounds all"):
            options(plain, "--quantization", quantization, "--dtype", "float32")
    with pytest.raises(ConfigError, match="--quantization mxfp4: the weights of .* are a GGUF file's"):
        options(gguf, "--quantization", "mxfp4")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--quantization fp8", "--quantization fp8: a CPU keeps weights in 8 bits as --quantization int8 has it: give that"),
        ("--kv-cache-dtype fp8", "--kv-cache-dtype fp8_e4m3: a CPU keeps keys and values as --dtype says, or as bfloat16"),
        ("--kv-cache-dtype int8", "--kv-cache-dtype int8: a CPU keeps keys and values as --dtype says, or as bfloat16"),
    ],
)
def test_what_the_kernels_of_a_cpu_do_not_know(gguf: str, flags: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options(gguf, "--device", "cpu", *flags.split())
    with pytest.raises(ConfigError, match="--tensor-parallel-size 2 does not divide 1 heads"):  # several chips go without these
        options(gguf, "--device", "cpu", "--tensor-parallel-size", "2", "--kv-cache-dtype", "int8")


def test_types_of_the_kv_cache(gguf: str) -> None:
    assert options(gguf)[0].kv_cache_dtype == "auto"
    for value, meant in {"fp8": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2", "int8": "int8", "bfloat16": "bfloat16"}.items():
        assert options(gguf, "--kv-cache-dtype", value)[0].kv_cache_dtype == meant
    with pytest.raises(ConfigError, match="--kv-cache-dtype int4: .*auto, bfloat16, fp8, fp8_e4m3, fp8_e5m2, int8"):
        options(gguf, "--kv-cache-dtype", "int4")


def test_where_weights_come_from(gguf: str, tmp_path: Path) -> None:
    directory = write_huggingface(tmp_path / "Tiny")
    (directory / "model.safetensors").unlink()
    config, (remark,) = options(str(directory), "--load-format", "dummy")
    assert config.load_format == "dummy"
    assert remark == "--load-format dummy: the weights are random, so answers mean nothing"
    assert options(gguf, "--load-format", "auto") == options(gguf)
    config, (remark,) = options(gguf, "--load_format=gguf")
    assert config == read(gguf)
    assert remark == "--load-format gguf is left out: the format is read off the files"
    with pytest.raises(ConfigError, match="--load-format tensorizer: one of auto, dummy, safetensors, gguf is wanted"):
        options(gguf, "--load-format", "tensorizer")


def test_what_a_number_format_means_here(gguf: str) -> None:
    assert options(gguf, "--dtype", "auto") == options(gguf)
    for said, meant in (("bfloat16", "bfloat16"), ("float32", "float32"), ("float", "float32")):
        config, remarks = options(gguf, "--dtype", said)
        assert (config.dtype, remarks) == (meant, [])
    config, (remark,) = options(gguf, "--dtype", "half")
    assert config.dtype == "bfloat16"
    assert "computed in bfloat16" in remark
    with pytest.raises(ConfigError, match="--dtype float32 rounds nothing, --quantization int8 rounds all weights"):
        options(gguf, "--dtype", "float32", "--quantization", "int8")


def test_shares_of_memory_and_seeds(gguf: str) -> None:
    config, (remark,) = options(gguf, "--gpu-memory-utilization", "0.9", "--seed", "7")
    assert (config.gpu_memory_utilization, config.seed) == (0.9, 7)
    assert remark == "--gpu-memory-utilization has no effect with --device sim"
    with pytest.raises(ConfigError, match="parts of the whole from 0.01 to 1"):
        options(gguf, "--gpu-memory-utilization", "90")


def test_who_may_ask_is_read_as_browsers_and_clients_write_it(gguf: str) -> None:
    assert (read(gguf).allowed_origins, read(gguf).allowed_hosts) == ((), ())
    config = read(gguf, "--allowed-origins", "HTTPS://Chat.Example.com/", "http://localhost:3000", "app://obsidian.md")
    assert config.allowed_origins == ("https://chat.example.com", "http://localhost:3000", "app://obsidian.md")
    assert read(gguf, "--allowed-origins", '["http://a.example", "http://b.example"]').allowed_origins == (
        "http://a.example",
        "http://b.example",
    )
    config = read(gguf, "--allowed-hosts", "Engine.Example.com", "[::1]:8000", "*.lan", "--allow-credentials")
    assert config.allowed_hosts == ("engine.example.com", "[::1]:8000", "*.lan")
    config = read(gguf, "--scheduling-policy", "priority", "--stream-keep-alive", "0", "--strict-max-tokens", "--frontends", "3")
    assert (config.scheduling_policy, config.stream_keep_alive, config.strict_max_tokens, config.frontends) == (
        "priority",
        0,
        True,
        3,
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--allowed-origins", "chat.example.com"], "an origin is wanted"),
        (["--allowed-origins", "https://a.example/path"], "an origin is wanted"),
        (["--allowed-origins", "https://user@a.example"], "an origin is wanted"),
        (["--allowed-origins", "*", "--allow-credentials"], "name the --allowed-origins"),
        (["--allowed-origins", *["https://a.example"] * 65], "at most 64 values"),
        (["--allowed-hosts", "http://a.example"], "a host is wanted"),
        (["--allowed-hosts", "a.example:99999999"], "a host is wanted"),
        (["--frontends", "65"], "from 1 to 64"),
        (["--stream-keep-alive", "-1"], "seconds from 0 to 3600"),
    ],
)
def test_who_may_ask_is_checked(gguf: str, flags: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read(gguf, *flags)


def test_keys_come_from_the_service_manager_where_no_file_is_named(
    gguf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert read(gguf).api_keys == ()
    (credentials / "api-keys").write_text("one\ntwo\n")
    (tmp_path / "mine").write_text("three\n")
    assert read(gguf).api_keys == ("one", "two")
    assert read(gguf, "--api-key-file", str(tmp_path / "mine")).api_keys == ("three",)
    (credentials / "api-keys").write_text("")
    with pytest.raises(ConfigError, match="at least one key"):
        read(gguf)


def test_every_flag_reaches_its_field(gguf: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\n\n  beta \nalpha\n")
    flags = (
        "--workers 3 --tensor-parallel-size 2 --queue-depth 4 --max-model-len 800 --max-num-seqs 16 --max-num-batched-tokens 64 "
        "--block-size 32 --kv-cache-memory 2GiB --no-enable-prefix-caching --host 127.0.0.2 --served-model-name a b "
        "--step-timeout 5 --pulse-timeout 3 --boot-timeout 7 --restart-delay 2 --drain-timeout 0 --no-compilation-cache "
        f"--quantization int8 --ipc {tmp_path}/x.sock --api-key-file {keys} "
        "--enable-auto-tool-choice --tool-call-parser mistral --reasoning-parser none "
        "--sim-decode-us 500 --sim-decode-us-per-seq 2.5 --sim-prefill-us-per-token 1"
    )
    config = read(gguf, *flags.split())
    assert (config.workers, config.tensor_parallel_size, config.queue_depth) == (3, 2, 4)
    assert (config.max_model_len, config.max_num_seqs, config.max_num_batched_tokens, config.block_size) == (800, 16, 64, 32)
    assert (config.kv_cache_memory, config.enable_prefix_caching, config.quantization) == (2 << 30, False, "int8")
    assert (config.tool_call_parser, config.reasoning_parser) == ("mistral", "none")
    assert (config.host, config.port, config.ipc_path) == ("127.0.0.2", 0, f"{tmp_path}/x.sock")
    assert (config.served_model_names, config.api_keys) == (("a", "b"), ("alpha", "beta"))
    assert (config.step_timeout, config.drain_timeout, config.compilation_cache) == (5.0, 0.0, "")
    assert (config.pulse_timeout, config.boot_timeout, config.restart_delay) == (3.0, 7.0, 2.0)
    assert (config.simulated.decode_us, config.simulated.decode_us_per_seq, config.simulated.prefill_us_per_token) == (500, 2.5, 1)


def test_a_model_that_cannot_be_cut_is_refused_at_once(gguf: str) -> None:
    with pytest.raises(ConfigError, match=r"--tensor-parallel-size 2 does not divide 1 heads, .* \(.*gguf\): possible are 1$"):
        read_options(["--model", gguf, "--device", "cpu", "--port", "0", "--tensor-parallel-size", "2"])


def test_a_file_gives_the_same_flags_and_the_command_line_wins(gguf: str, tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text(
        'max-num-seqs = 8\nqueue_depth = 3\nkv-cache-memory = "512M"\nenable-prefix-caching = false\nserved-model-name = ["x"]\n'
    )
    config = read(gguf, "--config", str(file), "--max-num-seqs", "9")
    assert (config.max_num_seqs, config.queue_depth, config.kv_cache_memory) == (9, 3, 512_000_000)
    assert (config.enable_prefix_caching, config.served_model_names) == (False, ("x",))


@pytest.mark.parametrize(("flag", "depth"), [("--async-scheduling", 2), ("--no-async-scheduling", 1)])
def test_async_scheduling_is_a_depth(gguf: str, flag: str, depth: int) -> None:
    assert read(gguf, flag).queue_depth == depth
    assert read(gguf, flag, "--queue-depth", str(depth)).queue_depth == depth
    with pytest.raises(ConfigError, match=f"{flag} means --queue-depth {depth}, but --queue-depth is 3"):
        read(gguf, flag, "--queue-depth", "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--queue-depth 0", "--queue-depth 0: a whole number from 1"),
        ("--workers two", "--workers two: a whole number from 1"),
        ("--workers 1.5", "--workers 1.5: a whole number from 1"),
        ("--port 70000", "--port 70000: a whole number from 0 to 65535"),
        ("--block-size 24", "--block-size 24: a power of two"),
        ("--kv-cache-memory lots", "--kv-cache-memory lots: a size in bytes"),
        ("--kv-cache-memory 0", "--kv-cache-memory 0: a size in bytes"),
        ("--sim-decode-us -1", "--sim-decode-us -1: a number of microseconds from 0"),
        ("--sim-decode-us nan", "--sim-decode-us nan: a number of microseconds from 0"),
        ("--drain-timeout inf", "--drain-timeout inf: a number of seconds"),
        ("--device gpu", "--device gpu: one of auto, cpu, tpu, cuda, sim"),
        ("--quantization int4", "--quantization int4: one of auto, none, int8"),
        ("--max-num-seqs 64 --max-num-batched-tokens 32", "--max-num-batched-tokens 32: at least --max-num-seqs \\(64\\)"),
        ("--no-such-flag", "--no-such-flag: there is no such flag"),
        ("--worker 2", "--worker: there is no such flag; did you mean --workers"),
        ("--port", "--port: expected one argument"),
        ("--max-model-len 1", "--max-model-len 1: a whole number from 2"),
        ("--max-model-len 1025", r"--max-model-len 1025 is more than the 1024 tokens .* \(llama.context_length in .*gguf\)"),
        ("--kv-cache-memory " + "9" * 400, "999…: a size in bytes"),
        ("--served-model-name \udcff", "a text in UTF-8 is wanted"),
        ("--served-model-name " + " ".join(f"{n:0>4000}" for n in range(9)), "at most 16384 bytes of names"),
        ("--model " + "m" * 5000, "mmm…: a text of 1 to 4096 characters"),
        ("--tensor-parallel-size " + "1" * 5000, "111…: a whole number from 1 to 256"),
        ("--host no-such-host.invalid", "--host no-such-host.invalid: no known host"),
        ("--ipc /no/such/directory/x", "--ipc /no/such/directory/x: the directory /no/such/directory does not exist"),
        ("--ipc /tmp/" + "x" * 120, "at most 107 bytes"),
        ("--ipc /etc/passwd", "there is something else at this path"),
        ("--ipc /etc/passwd/x", "the directory /etc/passwd does not exist"),
        ("--api-key-file /no/keys", "--api-key-file /no/keys: No such file"),
        ("--api-key-file /dev/null", "--api-key-file /dev/null: at least one key"),
        ("--config /no/file.toml", "--config /no/file.toml: No such file"),
        ("--config /dev/zero", "--config /dev/zero: more than 1048576 bytes: a TOML file with flags is wanted"),
        ("--config /", "--config /: Is a directory"),
    ],
)
def test_bad_values_name_flag_value_and_what_is_right(gguf: str, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(gguf, *arguments.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-num-seqs = true", "max-num-seqs = True: a whole number"),
        ("max-num-seqs = [1]", r"max-num-seqs = \[1\]: a whole number"),
        ("enable-prefix-caching = 1", "enable-prefix-caching = 1: true or false"),
        ("speed = 3", "speed: there is no such flag; did you mean --seed"),
        ("port = 0x" + "f" * 5000, r"port = \(a number of very many digits\): a whole number"),
        ("port = " + "9" * 5000, "not a TOML file: Exceeds the limit"),
        ("a = " + "[" * 9000, "not a TOML file"),
        ("port = ", "not a TOML file"),
        ('port = "\udcff"', "not a TOML file"),
    ],
)
def test_bad_files_name_the_file_and_the_entry(gguf: str, tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "engine.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read(gguf, "--config", str(file))


def test_a_cache_that_cannot_be_had_or_that_others_may_write_is_a_remark(
    gguf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for unusable, why in (("/proc/none", "No such file"), (str(tmp_path / "open"), "others may write")):
        config, (remark,) = read_options(["--model", gguf, "--device", "cpu", "--port", "0", "--compilation-cache", unusable])
        assert Path(config.compilation_cache).stat().st_mode & 0o777 == 0o700
        assert f"--compilation-cache {unusable}: " in remark and why in remark
        assert f"{config.compilation_cache} is used instead" in remark


def test_what_is_not_the_model_is_checked_before_a_download_is_advised(
    gguf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    absent = ["--model", "Org/Absent", "--device", "sim"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        for arguments, error, message in (
            (["--port", "0"], ModelError, "no such file or directory, and the Hugging Face cache .* has no whole copy"),
            (["--port", taken], AddressError, f"port {taken} on 127.0.0.1 is taken"),
            (["--port", "0", "--max-num-seqs", "513"], ConfigError, "at least --max-num-seqs"),
            (["--port", "0", "--kv-cache-memory", "500T"], CapacityError, "--kv-cache-memory 500000000000000: this host has"),
        ):
            with pytest.raises(error, match=message):
                read_options([*absent, *arguments])


@given(st.text(max_size=12), st.sampled_from([size, power_of_two(1, 1024)]))
def test_any_text_is_a_positive_number_or_a_clear_error(text: str, parse: Parser) -> None:
    with contextlib.suppress(ValueError):
        value = parse(text)
        assert isinstance(value, int)
        assert value >= 1


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("512M", 512_000_000), ("1.5GiB", 3 << 29), ("2gi", 2 << 30), ("7kb", 7000)])
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value
