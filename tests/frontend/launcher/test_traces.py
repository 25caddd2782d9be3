"""Where spans go: flag and standard variables."""

import pytest

from frontend.launcher import traces
from frontend.launcher.traces import traces_endpoint
from protocol.errors import ConfigError

_BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_OWN = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("given", "environ", "endpoint"),
    [
        ("", {}, ""),
        ("http://a:4318", {}, "http://a:4318/v1/traces"),
        ("http://a:4318/", {}, "http://a:4318/v1/traces"),
        ("https://a/own/path", {_BASE: "http://b"}, "https://a/own/path"),
        ("", {_BASE: "http://b:4318"}, "http://b:4318/v1/traces"),
        ("", {_BASE: "http://b", _OWN: "http://c/spans"}, "http://c/spans"),
        ("http://a", {"OTEL_SDK_DISABLED": "true"}, ""),
    ],
)
def test_the_flag_comes_before_the_variables(given: str, environ: dict[str, str], endpoint: str) -> None:
    remarks: list[str] = []
    assert traces_endpoint(given, environ, remarks) == endpoint
    assert not remarks


def test_what_is_no_address_is_an_error_of_the_flag_and_a_remark_on_the_variable() -> None:
    with pytest.raises(
        ConfigError, match=r"--otlp-traces-endpoint: .*localhost:4317.* is no address of a collector: http://HOST:4318"
    ):
        traces_endpoint("localhost:4317", {}, [])
    remarks: list[str] = []
    assert traces_endpoint("", {_OWN: "collector"}, remarks) == ""
    assert remarks and "no spans are sent" in remarks[0]


def test_without_the_library_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'twodeep\[otel\]'"):
        traces_endpoint("http://a:4318", {}, [])
    remarks: list[str] = []
    assert traces_endpoint("", {_BASE: "http://a:4318"}, remarks) == ""
    assert "pip install 'twodeep[otel]'" in remarks[0]
