"""What the ranks of a worker must agree on: else they would run different programs, and wait for each other for ever."""

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from protocol.config import EngineConfig

# What each host has for itself, or what rank 0 alone looks at. Whatever is not named here is compared.
OWN = frozenset(
    {
        "model_path", "served_model_names", "workers", "host_rank", "hosts_secret", "seed", "queue_depth", "enable_prefix_caching",
        "host", "port", "ipc_path", "tool_call_parser", "reasoning_parser", "api_keys", "allowed_origins", "allow_credentials",
        "allowed_hosts", "stream_keep_alive", "shared_prefix_cache", "sampling_defaults", "embedding", "strict_max_tokens",
        "scheduling_policy", "frontends", "ui", "step_timeout", "drain_timeout", "compilation_cache", "simulated", "pulse_timeout",
        "boot_timeout", "max_restarts", "restart_delay", "log_format", "log_level", "otlp_traces_endpoint", "log_prompts",
    }
)  # fmt: skip

_PACKAGES = ("twodeep", "jax", "jaxlib", "numpy", "libtpu")
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64")  # that change programs
_HEAD = 1 << 20  # bytes of a file of weights that are read: its header, and enough of the weights to know them again


def gather_facts(config: EngineConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """By flag, variable or file what this rank has. Raises OSError when the model cannot be read."""
    values = {name: getattr(config, name) for name in config.__struct_fields__ if name not in OWN}
    if config.load_format == "dummy":
        values["seed"] = config.seed
    return {
        **{f"--{name.replace('_', '-')}": _shown(value) for name, value in values.items()},
        **{f"the variable {name}": environ.get(name, "unset") for name in _VARIABLES},
        "the version of Python": f"{sys.version_info.major}.{sys.version_info.minor}",
        **{f"the version of {name}": _version(name) for name in _PACKAGES},
        **{f"--model's {name}": fact for name, fact in _files(config)},
    }


def find_disagreement(facts: Mapping[int, Mapping[str, str]], hosts: Sequence[str]) -> str:
    """A sentence about all that ranks, of these hosts, have otherwise than rank 0; empty: they agree."""
    ours, found = facts[0], []
    for rank, theirs in facts.items():
        for name in dict.fromkeys((*ours, *theirs)):
            one, other = ours.get(name, "unknown"), theirs.get(name, "unknown")
            if one != other:
                found.append(f"{name} is {one} on rank 0 ({hosts[0]}), {other} on rank {rank} ({hosts[rank]})")
    return f"the ranks disagree: {'; '.join(found)}" if found else ""


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _files(config: EngineConfig) -> Iterator[tuple[str, str]]:
    """The files that say what the model is, and what stands for their contents."""
    path = Path(config.model_path)
    files = [path] if path.is_file() else [path / "config.json"]
    if path.is_dir() and config.load_format != "dummy":
        files += sorted(path.glob("*.safetensors"))
    for file in files:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD)
            size = stream.seek(0, 2)
        yield "file" if file == path else file.name, f"{size} bytes ({hashlib.sha256(head).hexdigest()[:12]} …)"
