"""`--sim-report`: an engine whose device takes the times of a report of `engine-aot` is as large as that says, unless told."""

import os
from typing import cast

import msgspec

from protocol.aot_report import AotReport, check_model, read_report
from protocol.config import EngineConfig
from protocol.errors import ConfigError
from protocol.model_files import ModelFacts

FLAG = "--sim-report"
_FIXED = ("tensor_parallel_size", "quantization", "dtype", "kv_cache_dtype")  # the programs that were compiled are for these alone
_NUMBERS = ("sim_prefill_us_per_token", "sim_decode_us", "sim_decode_us_per_seq")


def take_report(values: dict[str, object], device: str, remarks: list[str]) -> None:
    """Puts what a report says of the engine among the values of flags, where these were not given. Raises ConfigError when they
    contradict it."""
    if "sim_report" not in values or device != "sim":
        return
    path = values["sim_report"] = os.path.abspath(os.path.expanduser(cast(str, values["sim_report"])))
    report = read_report(path, FLAG)
    if report.num_blocks < 1:
        raise ConfigError(f"{FLAG} {path}: {report.model} does not fit on {report.topology}: make one where it does")
    for name in _FIXED:
        _check_fixed(name, values.get(name, "auto"), report, path)
    for name in ("max_num_seqs", "max_num_batched_tokens", "tensor_parallel_size"):
        values.setdefault(name, getattr(report, name))
    for name in _NUMBERS:
        if values.pop(name, None) is not None:
            remarks.append(f"--{name.replace('_', '-')} has no effect beside {FLAG}")


def fit_report(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
    """The configuration, once the model is known, with the context of the report unless it has one. Raises ConfigError when that is
    of another model."""
    if not config.simulated.report or config.device != "sim":
        return config
    report = read_report(config.simulated.report, FLAG)
    check_model(report, config.simulated.report, facts.sizes)
    _check_fixed("quantization", config.quantization, report, config.simulated.report)  # whose "fp8" the files may explain
    length = config.max_model_len or min(report.max_model_len, facts.context_length)
    return msgspec.structs.replace(config, max_model_len=length)


def _check_fixed(name: str, given: object, report: AotReport, path: object) -> None:
    if given not in ("auto", getattr(report, name)):
        flag = f"--{name.replace('_', '-')}"
        raise ConfigError(
            f"{flag} {given}: {FLAG} {path} is of {flag} {getattr(report, name)}: leave the flag out, or make another report"
        )
