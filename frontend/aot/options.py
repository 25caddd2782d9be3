"""The flags of `engine-aot`: its own, and those of `engine-launch` that say what is compiled."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import msgspec

from frontend.launcher.flags import read_flags
from frontend.launcher.models import resolve_model
from protocol.cache_directory import default_cache
from protocol.chips import CHIPS, Topology, check_fits, parse_topology
from protocol.config import Dtype, EngineConfig
from protocol.errors import ConfigError
from protocol.host_memory import memory_limit
from protocol.model_files import check_length, read_model_facts
from protocol.model_shapes import shape_directory, shape_names
from protocol.sharding import check_shards

_OF_THE_ENGINE = (
    "model", "load_format", "tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size",
    "dtype", "quantization", "kv_cache_dtype", "kv_cache_memory", "gpu_memory_utilization", "compilation_cache",
)  # fmt: skip
_MEMORY_OF_A_JOB = 3 << 30  # bytes that the compiler may take for one program of a large model
_MOST = 1 << 20


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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see engine-aot --help")


def read_options(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Options:
    """Raises EngineError naming flag, value and what is possible; `--help` raises SystemExit."""
    parser = _Parser(
        prog="engine-aot",
        description="Compiles an engine's programs for chips that need not be here, and reports whether they fit and how long they "
        "would take.",
        epilog=f"Of engine-launch's flags these say what is compiled: {', '.join(_flag(name) for name in _OF_THE_ENGINE)}. Models "
        f"that need no files: {', '.join(shape_names())}.",
        allow_abbrev=False,
    )
    chips = ", ".join(f"{chip.name}:{chip.shapes[0]}" for chip in CHIPS.values())
    parser.add_argument("--topology", default="v6e:1x1", help=f"the chips: {chips} or larger ones, such as v6e:2x2 (v6e:1x1)")
    parser.add_argument(
        "--context", type=_number(1, _MOST), default=500, metavar="N", help="tokens of each row, for the times (500)"
    )
    parser.add_argument("--jobs", type=_number(1, 64), metavar="N", help="processes that compile (as many as processors)")
    parser.add_argument("--plot", default="", metavar="FILE.png", help="a picture of the time of a step by its rows")
    parser.add_argument("--json", default="", metavar="FILE", help="the report, to keep and for --sim-report")
    parser.add_argument("--save", default="", metavar="DIR", help="the compiled programs, for engine-launch --compiled")
    own, others = parser.parse_known_args(arguments)
    values = read_flags(others)
    for name in values:
        if name not in _OF_THE_ENGINE:
            raise ConfigError(f"{_flag(name)}: has nothing to do with what is compiled; see engine-aot --help")
    topology = parse_topology(own.topology)
    for name in (own.plot, own.json):
        if name and not Path(name).absolute().parent.is_dir():
            raise ConfigError(f"{'--plot' if name == own.plot else '--json'} {name}: there is no such directory")
    model = cast(str, values.pop("model", "llama-3.2-1b"))
    config = _config(model, values, environ)
    check_fits(topology, config.tensor_parallel_size)
    jobs = own.jobs or max(1, min(len(os.sched_getaffinity(0)), memory_limit() // _MEMORY_OF_A_JOB))
    return Options(config, model, topology, own.context, jobs, own.plot, own.json, own.save)


def _config(model: str, values: dict[str, object], environ: Mapping[str, str]) -> EngineConfig:
    dtype = values.get("dtype", "auto")
    values["dtype"] = cast(Dtype, {"half": "bfloat16", "float16": "bfloat16", "float": "float32"}.get(cast(str, dtype), dtype))
    values.setdefault("compilation_cache", str(default_cache(environ)))
    if values["compilation_cache"]:
        Path(cast(str, values["compilation_cache"])).mkdir(mode=0o700, parents=True, exist_ok=True)
    names: tuple[str, ...]
    shape = shape_directory(model)
    if shape is not None:
        path, model_format, names = str(shape), "huggingface", (model,)
        values["load_format"] = "dummy"
    else:
        files = resolve_model(model, environ=environ, weights=values.get("load_format") != "dummy")
        path, model_format, names = files.path, files.format, files.names
    fields = {**values, "model_path": path, "model_format": model_format, "served_model_names": names, "device": "tpu"}
    config = msgspec.convert(fields, EngineConfig)
    facts = read_model_facts(path, config.model_format, config.load_format)
    check_length(config.max_model_len, facts.context_length, facts.context_field)
    if facts.layers is not None:
        check_shards(config.tensor_parallel_size, [facts.layers], path)
    return config


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class _number:  # noqa: N801 - argparse shows its name
    """An integer within bounds."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, given: str) -> int:
        """Raises ArgumentTypeError saying what is wanted."""
        if not given.isdecimal() or not self._least <= int(given) <= self._most:
            raise argparse.ArgumentTypeError(f"{given}: a number from {self._least} to {self._most} is wanted")
        return int(given)
