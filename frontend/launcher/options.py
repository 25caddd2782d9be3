"""From the command line to one EngineConfig: resolved, checked as a whole, complete."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import msgspec

from frontend.launcher.accelerators.host import Places
from frontend.launcher.addresses import check_port, check_socket
from frontend.launcher.download import Download
from frontend.launcher.embeddings import embedding_settings
from frontend.launcher.flags import flag_names, read_flags
from frontend.launcher.generation_config import sampling_defaults
from frontend.launcher.habits import accept
from frontend.launcher.hosts import settle_hosts
from frontend.launcher.memory import check_memory
from frontend.launcher.models import ModelFiles, examine_model, resolve_model
from frontend.launcher.placement import check_accelerators, look_at_host, remarks_on, resolve_device
from frontend.launcher.sim_report import fit_report, take_report
from frontend.launcher.traces import traces_endpoint
from frontend.launcher.values import api_key
from protocol.cache_directory import default_cache, existing_private_directory, private_directory, temporary_cache
from protocol.config import DEFAULT_LOG_LEVEL, Device, EngineConfig, LoadFormat, LogLevel, Quantization
from protocol.eight_bits import check_on_cpu
from protocol.errors import ConfigError
from protocol.messages import Reload
from protocol.model_files import check_length, method_of
from protocol.model_shapes import is_shape
from protocol.params import Pooling
from protocol.quantization_config import METHODS
from protocol.sharding import check_shards

_KEY_FILE_LIMIT = 1 << 16  # bytes; the keys travel to the children in one packet
API_KEYS_CREDENTIAL = "api-keys"
_NAMES_LIMIT = 1 << 14  # bytes of all names of the model, for the same reason


def read_options(
    arguments: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    *,
    own_port: bool = True,
    download: Download | None = None,
    places: Places | None = None,
) -> tuple[EngineConfig, list[str]]:
    """The configuration, and remarks for the operator. `own_port`: whether --host and --port are to be had, and not handed over.
    `download`: how a model comes that is not here; None: it does not. `places`: where accelerators are looked for.

    Everything else is checked before the model: who has to download one first should not hear of a wrong port after that.
    Raises EngineError of the right kind; `--help` and `--version` raise SystemExit.
    """
    own, passed_over = accept(arguments, flag_names())
    values = read_flags(own)
    model = cast(str, values.pop("model", "demo"))
    load_format = _load_format(cast(str, values.pop("load_format", "auto")), passed_over)
    choice = cast(str, values.pop("generation_config", "auto"))
    override = cast(str, values.pop("override_generation_config", ""))
    method = cast(str, values.get("quantization", "auto"))
    if method in METHODS:
        del values["quantization"]
    revision, download_dir = (cast("str | None", values.pop(name, None)) for name in ("revision", "download_dir"))
    pooling = cast(Literal["auto", Pooling], values.pop("pooling", "auto"))
    matryoshka = cast("bool | None", values.pop("matryoshka", None))
    draft, remarks = _without_model(values, environ, places)
    remarks = passed_over + remarks
    if own_port and draft.host_rank == 0:
        check_port(draft.host, draft.port)
    files = resolve_model(
        model, download, revision=revision, download_dir=download_dir, environ=environ, weights=load_format != "dummy"
    )
    facts = examine_model(files, load_format)
    draft = settle_quantization(method, files, draft, remarks)
    if is_shape(Path(files.path)):
        remarks.append(
            f"--model {model}: only its sizes are known: one that makes a word of each token stands in for its tokenizer"
        )
    draft = fit_report(draft, facts)
    check_length(draft.max_model_len, facts.context_length, facts.context_field)
    if facts.layers is not None and draft.device != "sim":
        check_shards(draft.tensor_parallel_size, [facts.layers], files.path)
    names = draft.served_model_names or files.names
    if sum(len(name.encode()) for name in names) > _NAMES_LIMIT:
        raise ConfigError(f"--served-model-name: at most {_NAMES_LIMIT} bytes of names in all are possible")
    defaults, remark = sampling_defaults(choice, override, files)
    if remark:
        remarks.append(remark)
    embedding = embedding_settings(pooling, files, matryoshka=matryoshka)
    config = msgspec.structs.replace(draft, model_path=files.path, model_format=files.format, served_model_names=names)
    return msgspec.structs.replace(config, sampling_defaults=defaults, load_format=load_format, embedding=embedding), remarks


def read_reloadable(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Reload:
    """What may change while the engine runs, as flags, configuration file and key file say by now. Raises ConfigError."""
    own, _ = accept(arguments, flag_names())
    values = read_flags(own)
    return Reload(_keys(values, environ, []), cast(LogLevel, values.get("log_level", DEFAULT_LOG_LEVEL)))


def _without_model(values: dict[str, object], environ: Mapping[str, str], places: Places | None) -> tuple[EngineConfig, list[str]]:
    asked = cast(Device, values.pop("device", "auto"))
    host = look_at_host(asked, environ, places)
    device, remark = resolve_device(asked, host)
    remarks = [remark] if remark else []
    values.pop("enable_auto_tool_choice", None)
    take_report(values, device, remarks)
    times = {key.removeprefix("sim_"): values.pop(key) for key in list(values) if key.startswith("sim_")}
    if times and device != "sim":
        remarks.append(f"--sim-{next(iter(times)).replace('_', '-')} has no effect without --device sim")
    asynchronous = values.pop("async_scheduling", None)
    if asynchronous is not None:
        depth = 2 if asynchronous else 1
        if values.setdefault("queue_depth", depth) != depth:
            flag = "--async-scheduling" if asynchronous else "--no-async-scheduling"
            raise ConfigError(f"{flag} means --queue-depth {depth}, but --queue-depth is {values['queue_depth']}: give one of them")
    if values.get("allow_credentials") and "*" in cast("tuple[str, ...]", values.get("allowed_origins", ())):
        raise ConfigError("--allow-credentials: pages of every origin (*) cannot have that: name the --allowed-origins")
    values["api_keys"] = _keys(values, environ, remarks)
    values["otlp_traces_endpoint"] = traces_endpoint(cast(str, values.pop("otlp_traces_endpoint", "")), environ, remarks)
    read_dtype(values, remarks)
    if "gpu_memory_utilization" in values and (device == "sim" or "kv_cache_memory" in values):
        reason = "with --device sim" if device == "sim" else "beside --kv-cache-memory"
        remarks.append(f"--gpu-memory-utilization has no effect {reason}")
    settle_hosts(values, environ, device, remarks)
    ipc = cast("str | None", values.pop("ipc", None))
    values["ipc_path"] = check_socket(ipc, environ) if not values.get("host_rank") else ""  # where nobody is served
    if "compilation_cache" not in values:
        values["compilation_cache"] = str(default_cache(environ)) if device != "sim" else ""
    if values["compilation_cache"]:
        values["compilation_cache"] = prepare_cache(cast(str, values["compilation_cache"]), remarks)
    _check_compiled(values, device, remarks)
    values |= {
        "model_path": "",
        "model_format": "gguf",
        "served_model_names": values.pop("served_model_name", ()),
        "device": device,
        "simulated": times,
    }
    config = msgspec.convert(values, EngineConfig)
    check_batch(config)
    if _has_kernels_of_cpu(config):
        check_on_cpu(config.quantization, config.kv_cache_dtype)
    check_accelerators(config, host, environ, places=places)
    remarks += remarks_on(config, host)
    check_memory(config)
    return config, remarks


def check_batch(config: EngineConfig) -> None:
    """Raises ConfigError when a step has no room for the requests that may run."""
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {config.max_num_batched_tokens}: at least --max-num-seqs ({config.max_num_seqs}) is wanted, "
            "since a step decodes one token of every running request"
        )


def _has_kernels_of_cpu(config: EngineConfig) -> bool:
    return config.device == "cpu" and config.tensor_parallel_size == 1


def settle_quantization(method: str, files: ModelFiles, config: EngineConfig, remarks: list[str]) -> EngineConfig:
    """The configuration once the files are known, where --quantization gave a method that they may say themselves. Raises
    ConfigError."""
    if method == "fp8" and _method_of(files) != method:
        return _quantise_to_fp8(config)
    if method in METHODS:
        remarks.append(_check_method(method, files))
    return config


def _quantise_to_fp8(config: EngineConfig) -> EngineConfig:
    """With weights rounded as they are loaded, which the files do not hold so. Raises ConfigError where nothing is."""
    if _has_kernels_of_cpu(config):
        check_on_cpu("fp8", config.kv_cache_dtype)
    if config.dtype == "float32":
        raise _contradiction("fp8")
    return msgspec.structs.replace(config, quantization="fp8")


def _contradiction(quantization: Quantization) -> ConfigError:
    return ConfigError(f"--dtype float32 rounds nothing, --quantization {quantization} rounds all weights: leave one of them out")


def _keys(values: dict[str, object], environ: Mapping[str, str], remarks: list[str]) -> tuple[str, ...]:
    """The API keys of all sources together."""
    keys = cast("tuple[str, ...]", values.pop("api_key", ()))
    if keys:
        remarks.append("--api-key: whoever lists this machine's processes reads it, unlike ENGINE_API_KEY and --api-key-file")
    if given := environ.get("ENGINE_API_KEY", "").strip():
        try:
            keys += (api_key(given),)
        except ValueError as error:
            raise ConfigError(f"ENGINE_API_KEY: {error}") from error
    if key_file := cast("str | None", values.pop("api_key_file", None)) or _credential(environ):
        keys += _read_keys(key_file)
    keys = tuple(dict.fromkeys(keys))
    if sum(map(len, keys)) > _KEY_FILE_LIMIT:
        raise ConfigError(f"--api-key: at most {_KEY_FILE_LIMIT} bytes of keys in all are possible")
    return keys


def _method_of(files: ModelFiles) -> str | None:
    """How the files say that weights are quantised; None: they are floats."""
    return method_of(Path(files.path) / "config.json") if files.format == "huggingface" else "a GGUF file's"


def _check_method(method: str, files: ModelFiles) -> str:
    """A remark that the files say themselves how they are quantised. Raises ConfigError when they are not in this way."""
    found = _method_of(files)
    if found != method:
        raise ConfigError(
            f"--quantization {method}: the weights of {files.path} are {'in floats' if found is None else found}, and nothing is "
            "quantised so as it is loaded: leave the flag out, or give --quantization int8 or fp8"
        )
    return f"--quantization {method} is left out: config.json says that"


def _load_format(given: str, remarks: list[str]) -> LoadFormat:
    if given == "dummy":
        remarks.append("--load-format dummy: the weights are random, so answers mean nothing")
        return "dummy"
    if given != "auto":
        remarks.append(f"--load-format {given} is left out: the format is read off the files")
    return "auto"


def read_dtype(values: dict[str, object], remarks: list[str]) -> None:
    """Puts what --dtype means in the place of what was given. Raises ConfigError when --quantization contradicts it."""
    if values.get("kv_cache_dtype") == "fp8":
        values["kv_cache_dtype"] = "fp8_e4m3"
    given = values.get("dtype", "auto")
    if given in ("half", "float16"):
        remarks.append(f"--dtype {given}: computed in bfloat16, which rounds more, and overflows less")
    values["dtype"] = {"half": "bfloat16", "float16": "bfloat16", "float": "float32"}.get(cast(str, given), given)
    if values["dtype"] == "float32" and values.get("quantization") == "int8":
        raise _contradiction("int8")


def _credential(environ: Mapping[str, str]) -> str | None:
    """The file of API keys that the service manager hands over (LoadCredential), if it does."""
    directory = environ.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(directory, API_KEYS_CREDENTIAL) if directory else ""
    return path if path and os.path.lexists(path) else None


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


def _check_compiled(values: dict[str, object], device: str, remarks: list[str]) -> None:
    """The directories of compiled programs, made absolute. Raises ConfigError when they cannot serve."""
    if "compiled" in values and "save_compiled" in values:
        raise ConfigError("--compiled loads programs, --save-compiled puts them away: give one of them")
    for key, flag in (("compiled", "--compiled"), ("save_compiled", "--save-compiled")):
        if key not in values:
            continue
        if device == "sim":
            remarks.append(f"{flag} has no effect with --device sim")
            del values[key]
            continue
        path = os.path.expanduser(cast(str, values[key]))
        try:
            directory = existing_private_directory(flag, path) if key == "compiled" else private_directory(Path(path))
        except OSError as error:
            raise ConfigError(f"{flag} {path}: {error}") from error
        values[key] = str(directory)


def prepare_cache(path: str, remarks: list[str]) -> str:
    """The directory, or one in its place; none is no error, since without it the engine only starts more slowly."""
    try:
        return str(private_directory(Path(os.path.expanduser(path))))
    except OSError as error:
        why = f"--compilation-cache {path}: {error}"
    try:
        found = str(private_directory(temporary_cache()))  # which there is none of where nothing temporary can be written
    except OSError as error:
        remarks.append(f"{why}; none is used instead, since {error}")
        return ""
    remarks.append(f"{why}; {found} is used instead")
    return found
