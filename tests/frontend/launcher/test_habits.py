"""The command lines of other engines."""

from pathlib import Path

import pytest

from frontend.launcher.flags import FLAGS, flag_names, read_flags
from frontend.launcher.habits import _MISSING, _NEEDLESS, _NEEDLESS_VALUES, OTHER_NAMES, accept
from protocol.errors import ConfigError

KNOWN = flag_names()


def read(*arguments: str) -> dict[str, object]:
    own, _ = accept(arguments, KNOWN)
    return read_flags(own)


@pytest.mark.parametrize(
    "line",
    [
        "some/model",
        "serve some/model",
        "--port 8001 some/model",
        "serve --port 8001 some/model",
        "serve some/model --port 8001",
        "--port 8001 serve some/model --workers 2",
        "--no-enable-prefix-caching some/model --port 8001",
        "--model some/model",
        "some/model --model some/model",
        "--port=8001 -- some/model",
    ],
)
def test_the_model_stands_without_its_flag(line: str) -> None:
    assert read(*line.split())["model"] == "some/model"


def test_serve_alone_is_the_demo() -> None:
    assert read("serve") == read() == {}
    assert read("./serve") == {"model": "./serve"}


@pytest.mark.parametrize("line", ["one two", "serve one two", "one --model two", "one --port 80 two"])
def test_one_model_is_wanted(line: str) -> None:
    with pytest.raises(ConfigError, match="one MODEL is wanted"):
        read(*line.split())


def test_other_names_and_spellings() -> None:
    assert read(
        "--data-parallel-size", "3", "-tp", "2", "--api-server-count=4", "--max_model_len=100", "--enable_prefix_caching"
    ) == {
        "workers": 3,
        "tensor_parallel_size": 2,
        "frontends": 4,
        "max_model_len": 100,
        "enable_prefix_caching": True,
    }
    assert read("-tp=2", "--no-enable_prefix_caching") == {"tensor_parallel_size": 2, "enable_prefix_caching": False}


def test_what_changes_nothing_is_left_out_with_a_remark() -> None:
    line = "--trust-remote-code --no-enable-chunked-prefill --swap-space=4 m --disable-log-requests --port 1"
    own, remarks = accept(line.split(), KNOWN)
    assert own == ["m", "--port", "1"]
    assert remarks[0] == "--trust-remote-code is left out: a model's own code is never run"
    assert [remark.split()[0][2:] for remark in remarks] == [
        "trust-remote-code", "no-enable-chunked-prefill", "swap-space", "disable-log-requests",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--max-model-length", "did you mean --max-model-len?"),
        ("--tensor-parallel", "did you mean --tensor-parallel-size?"),
        ("--gpu-memory", "did you mean --gpu-memory-utilization?"),
        ("--prot=8000", "did you mean --port?"),
        ("--no-enable-prefix-cache", "did you mean --no-enable-prefix-caching?"),
        ("--xyzzy", "see --help"),
        ("--" + "x" * 5000, "see --help"),
        ("--lora-modules", "adapters are not supported"),
        ("--ssl-keyfile", "put a proxy in front"),
        ("--pipeline-parallel-size", "--tensor-parallel-size cuts"),
        ("--num-gpu-blocks-override", "--kv-cache-memory says"),
        ("--speculative_config", "not speculated on"),
        ("--chat-template", "the model's own chat template"),
        ("--chat-template-content-format", "the model's own chat template"),
        ("-pp=2", "layers are not spread"),
    ],
)
def test_what_is_not_there_is_told_with_the_way_out(flag: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read("model", flag, "1")
    assert text in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_of_flags_is_told_too(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text("max-model-length = 5\n")
    with pytest.raises(ConfigError, match="did you mean --max-model-len"):
        read("--config", str(file))


def test_the_table_names_nothing_that_is_there() -> None:
    assert set(OTHER_NAMES.values()) <= {flag.name for flag in FLAGS}
    assert not KNOWN & {*OTHER_NAMES, *_NEEDLESS, *_NEEDLESS_VALUES, *_MISSING}


def test_help_shows_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    assert "[MODEL" in capsys.readouterr().out
