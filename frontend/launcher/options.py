"""From the command line to one EngineConfig: resolved, checked as a whole, complete."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec

from frontend.launcher.flags import read_flags
from frontend.launcher.models import resolve_model
from frontend.launcher.placement import resolve_device
from protocol.cache_directory import default_cache, private_directory, temporary_cache
from protocol.config import Device, EngineConfig
from protocol.endpoints import LONGEST_SOCKET_PATH, default_client_socket
from protocol.errors import ConfigError

_KEY_FILE_LIMIT = 1 << 16  # bytes; the keys travel to the children in one packet


def read_options(arguments: Sequence[str]) -> tuple[EngineConfig, list[str]]:
    """The configuration, and remarks for the operator.

    Raises ConfigError or ModelError; `--help` and `--version` raise SystemExit.
    """
    values = read_flags(arguments)
    model = resolve_model(cast(str, values.pop("model", "demo")))
    served = cast(tuple[str, ...], values.pop("served_model_name", ())) or model.names
    device, remark = resolve_device(cast(Device, values.pop("device", "auto")))
    remarks = [remark] if remark else []
    times = {key.removeprefix("sim_"): values.pop(key) for key in list(values) if key.startswith("sim_")}
    if times and device != "sim":
        remarks.append(f"--sim-{next(iter(times)).replace('_', '-')} has no effect without --device sim")
    asynchronous = values.pop("async_scheduling", None)
    if asynchronous is not None:
        depth = 2 if asynchronous else 1
        if values.setdefault("queue_depth", depth) != depth:
            flag = "--async-scheduling" if asynchronous else "--no-async-scheduling"
            raise ConfigError(f"{flag} means --queue-depth {depth}, but --queue-depth is {values['queue_depth']}: give one of them")
    values["ipc_path"] = _socket_path(cast("str | None", values.pop("ipc", None)))
    if key_file := cast("str | None", values.pop("api_key_file", None)):
        values["api_keys"] = _read_keys(key_file)
    if "compilation_cache" not in values:
        values["compilation_cache"] = str(default_cache(os.environ)) if device != "sim" else ""
    if values["compilation_cache"]:
        values["compilation_cache"] = _prepare_cache(Path(cast(str, values["compilation_cache"])).expanduser(), remarks)
    values |= {
        "model_path": model.path,
        "model_format": model.format,
        "served_model_names": served,
        "device": device,
        "simulated": times,
    }
    config = msgspec.convert(values, EngineConfig)
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {config.max_num_batched_tokens}: at least --max-num-seqs ({config.max_num_seqs}) is wanted, "
            "since a step decodes one token of every running request"
        )
    return config, remarks


def _socket_path(given: str | None) -> str:
    path = Path(given.removeprefix("unix://")).expanduser().absolute() if given else default_client_socket().absolute()
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise ConfigError(f"--ipc {path}: a socket's path has at most {LONGEST_SOCKET_PATH} bytes")
    if not path.parent.is_dir():
        raise ConfigError(f"--ipc {path}: the directory {path.parent} does not exist")
    if path.exists() and not path.is_socket():
        raise ConfigError(f"--ipc {path}: there is something else at this path; a new path or a socket is wanted")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--ipc {path}: the directory {path.parent} is not writable")
    return str(path)


def _read_keys(path: str) -> tuple[str, ...]:
    try:
        with open(path, "rb") as file:
            data = file.read(_KEY_FILE_LIMIT + 1)
        keys = tuple(dict.fromkeys(line.strip() for line in data.decode("ascii").splitlines() if line.strip()))
    except OSError as error:
        raise ConfigError(f"--api-key-file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--api-key-file {path}: keys are ASCII, since they travel in a header") from error
    if not keys or len(data) > _KEY_FILE_LIMIT:
        raise ConfigError(f"--api-key-file {path}: at least one key, one per line, and at most {_KEY_FILE_LIMIT} bytes are wanted")
    return keys


def _prepare_cache(path: Path, remarks: list[str]) -> str:
    """The directory, or one in its place; none is no error, since without it the engine only starts more slowly."""
    for directory, otherwise in ((path, temporary_cache()), (temporary_cache(), "none")):
        try:
            return str(private_directory(directory))
        except OSError as error:
            remarks.append(f"--compilation-cache {directory}: {error}; {otherwise} is used instead")
    return ""
