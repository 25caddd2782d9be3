"""The flags of `engine-aot`: those of `engine-launch`, of which some say what is compiled, and its own."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from frontend.launcher.download import Download
from frontend.launcher.flags import FLAGS, Command, Flag, flag_names, read_flags
from frontend.launcher.habits import accept
from frontend.launcher.models import resolve_model
from frontend.launcher.options import check_batch, read_dtype, settle_quantization
from frontend.launcher.values import integer, text
from frontend.output_files import check_output_file
from protocol.chips import CHIPS, Topology, check_fits, parse_topology
from protocol.config import EngineConfig
from protocol.errors import ConfigError, ModelError
from protocol.host_memory import memory_limit
from protocol.model_files import check_length, read_model_facts
from protocol.model_shapes import shape_names
from protocol.quantization_config import METHODS
from protocol.safetensors_header import weight_files
from protocol.sharding import check_shards

_COMPILED = frozenset(  # flags of the engine that say what is compiled, or where the model is
    (
        "model", "revision", "download_dir", "load_format", "tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens",
        "max_model_len", "block_size", "dtype", "quantization", "kv_cache_dtype", "kv_cache_memory", "gpu_memory_utilization",
    )
)  # fmt: skip
_DEFAULT_MODEL, _DEFAULT_TOPOLOGY, _DEFAULT_CONTEXT = "llama-3.2-1b", "v6e:1x1", 500
_MEMORY_OF_A_JOB = 3 << 30  # bytes that the compiler may take for one program of a large model
_PICTURES = (".png", ".svg", ".pdf")
_GROUP = "compiling"
_CHIPS = ", ".join(f"{chip.name}:{chip.shapes[0]}" for chip in CHIPS.values())
OWN_FLAGS = (
    Flag("topology", _GROUP, f"the chips: {_CHIPS}, or several, such as v6e:2x2 ({_DEFAULT_TOPOLOGY})", text, "CHIPS"),
    Flag(
        "context", _GROUP, f"tokens of each row that times are estimated for ({_DEFAULT_CONTEXT})", integer(1, 1 << 20), "N"
    ),
    Flag("jobs", _GROUP, "processes that compile (one for each processor, as far as memory goes)", integer(1, 64), "N"),
    Flag("plot", _GROUP, "picture of the time of a step by its rows", text, "FILE.png"),
    Flag("json", _GROUP, "the report, to keep, and for --sim-report", text, "FILE"),
    Flag("save", _GROUP, "directory for the compiled programs, for engine-launch --compiled", text, "DIR"),
)  # fmt: skip
COMMAND = Command(
    "engine-aot",
    "Compiles all programs of an engine for chips that need not be here, and reports whether they fit and how fast they would be.",
    (*OWN_FLAGS, *FLAGS),
    frozenset(flag.key for flag in FLAGS) - _COMPILED,
    f"Models that need no files: {', '.join(shape_names())}. Flags of engine-launch that change no program are taken and left out.",
)


@dataclass(frozen=True, slots=True)
class Options:
    """What one run is to do."""

    config: EngineConfig
    model: str  # as it was named
    topology: Topology
    context: int  # tokens of each row that times are estimated for
    jobs: int  # processes that compile
    plot: str  # files and a directory; empty: not wanted
    json: str
    save: str


def read_options(
    arguments: Sequence[str], environ: Mapping[str, str] = os.environ, download: Download | None = None
) -> tuple[Options, list[str]]:
    """Also remarks for the operator. `download`: how a model comes that is not here; None: it does not.

    Raises EngineError naming flag, value and what is possible; `--help` and `--version` raise SystemExit.
    """
    own, remarks = accept(arguments, flag_names(COMMAND))
    values = read_flags(own, COMMAND)
    # JAX's cache would never be hit: its keys hold where the compiler writes its schedules. And it does not keep these.
    if values.get("compilation_cache") == "":
        del values["compilation_cache"]
    if useless := [f"--{key.replace('_', '-')}" for key in values if key in COMMAND.hidden]:
        remarks.append(f"{', '.join(useless)}: left out, since nothing of the report depends on it")
    values = {key: value for key, value in values.items() if key not in COMMAND.hidden}
    topology = parse_topology(cast(str, values.pop("topology", _DEFAULT_TOPOLOGY)))
    context, jobs = (cast("int | None", values.pop(key, None)) for key in ("context", "jobs"))
    plot, json, save = (os.path.expanduser(cast(str, values.pop(key, ""))) for key in ("plot", "json", "save"))
    for flag, path in (("--plot", plot), ("--json", json)):
        if path:
            check_output_file(flag, path)
    if plot:
        check_plot(plot, topology)
    model = cast(str, values.pop("model", _DEFAULT_MODEL))
    config = _config(model, values, topology, environ, download, remarks)
    wide = max(1, min(len(os.sched_getaffinity(0)), memory_limit() // _MEMORY_OF_A_JOB))
    options = Options(
        config, model, topology, context or _DEFAULT_CONTEXT, jobs or wide, plot, json, os.path.abspath(save) if save else ""
    )
    if options.context > (length := config.max_model_len or options.context):
        raise ConfigError(f"--context {options.context}: is more than a row may have, {length} tokens (--max-model-len)")
    return options, remarks


def check_plot(path: str, topology: Topology) -> None:
    """Raises ConfigError when a picture cannot be drawn, which is better known before minutes of compiling."""
    if not topology.chip.clock:
        raise ConfigError(f"--plot {path}: the compiler for {topology.chip.description} estimates no times: leave the flag out")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"--plot {path}: matplotlib is not installed: add twodeep[plot], or leave the flag out")
    if Path(path).suffix.lower() not in _PICTURES:
        raise ConfigError(f"--plot {path}: a name that ends in one of {', '.join(_PICTURES)} is wanted")


def _config(
    model: str,
    values: dict[str, object],
    topology: Topology,
    environ: Mapping[str, str],
    download: Download | None,
    remarks: list[str],
) -> EngineConfig:
    """The engine's, with all that changes a program."""
    read_dtype(values, remarks)
    if "gpu_memory_utilization" in values and "kv_cache_memory" in values:
        remarks.append("--gpu-memory-utilization has no effect beside --kv-cache-memory")
    method = cast(str, values.get("quantization", "auto"))
    if method in METHODS:
        del values["quantization"]
    load_format = values.pop("load_format", "auto")
    revision, directory = (cast("str | None", values.pop(key, None)) for key in ("revision", "download_dir"))
    draft = msgspec.convert(
        {**values, "model_path": "", "model_format": "gguf", "served_model_names": (), "device": topology.chip.platform},
        EngineConfig,
    )
    check_batch(draft)
    check_fits(topology, draft.tensor_parallel_size)
    # No weight is read, so none is fetched.
    files = resolve_model(model, download, revision=revision, download_dir=directory, environ=environ, weights=False)
    is_dummy = files.format == "huggingface" and (load_format == "dummy" or not _has_weights(Path(files.path)))
    if load_format == "dummy" and files.format == "gguf":
        raise ModelError(f"--load-format dummy: {files.path} is a GGUF file, which has weights: leave the flag out")
    config = msgspec.structs.replace(
        draft,
        model_path=files.path,
        model_format=files.format,
        served_model_names=files.names,
        load_format="dummy" if is_dummy else "auto",
    )
    config = settle_quantization(method, files, config, remarks)
    facts = read_model_facts(config.model_path, config.model_format, config.load_format)
    check_length(config.max_model_len, facts.context_length, facts.context_field)
    if facts.layers is not None:
        check_shards(config.tensor_parallel_size, [facts.layers], config.model_path)
    return config


def _has_weights(directory: Path) -> bool:
    try:
        return all(path.is_file() for path in weight_files(directory))
    except ModelError:
        return False
