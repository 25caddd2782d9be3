"""Where spans of requests go, if anywhere."""

from collections.abc import Mapping
from importlib.util import find_spec
from urllib.parse import urlsplit

from frontend.launcher.values import shown
from protocol.errors import ConfigError


def traces_endpoint(given: str, environ: Mapping[str, str], remarks: list[str]) -> str:
    """Where spans go. Raises ConfigError where the flag asks for what cannot be; the variables are meant for many programs."""
    endpoint = _wanted(given, environ)
    problem = ""
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        problem = f"{shown(endpoint)} is no address of a collector: http://HOST:4318 is wanted"
    elif endpoint and find_spec("opentelemetry") is None:
        problem = "OpenTelemetry is not installed: pip install 'twodeep[otel]'"
    if problem and given:
        raise ConfigError(f"--otlp-traces-endpoint: {problem}")
    if problem:
        remarks.append(f"no spans are sent: {problem}")
    return "" if problem else endpoint


def _wanted(given: str, environ: Mapping[str, str]) -> str:
    """Where spans go: as the flag says, else the standard variables; empty: nowhere."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    if given:
        return given if urlsplit(given).path.strip("/") else given.rstrip("/") + "/v1/traces"
    if own := environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", ""):
        return own
    base = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    return base.rstrip("/") + "/v1/traces" if base else ""
