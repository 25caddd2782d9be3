"""Looks at everything that a start would look at, and goes on where a start would end."""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

import msgspec

from frontend.launcher.accelerators.host import HERE, Places
from frontend.launcher.accelerators.tpu import TpuHost
from frontend.launcher.accelerators.versions import TWODEEP, read_versions
from frontend.launcher.addresses import check_port, check_socket
from frontend.launcher.download import Download
from frontend.launcher.flags import flag_names, read_flags
from frontend.launcher.habits import accept
from frontend.launcher.memory import check_memory
from frontend.launcher.models import ModelFiles, examine_model, resolve_model
from frontend.launcher.options import read_options
from frontend.launcher.placement import Host, Placement, look_at_host, obstacles, place_workers, resolve_device
from frontend.launcher.preflight.ask import ask
from frontend.launcher.preflight.report import Answer, CheckedChip, CheckedModel, Report
from frontend.launcher.repositories import Wanted
from protocol.config import EngineConfig, LoadFormat, LogFormat
from protocol.errors import DeviceError, EngineError
from protocol.gguf_shards import whole_name
from protocol.host_memory import memory_limit

_DRAFT = EngineConfig(model_path="", model_format="gguf", served_model_names=(), device="auto")
_OFFLINE = ("1", "on", "yes", "true")


class Ask(Protocol):
    """How chips are asked."""

    def __call__(self, device: str, placements: Sequence[Placement], environ: Mapping[str, str]) -> Sequence[Answer]:
        """One Answer for each placement."""
        ...


class _NotHere(Exception):
    """A start would have to download the model first."""


def check(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    own_port: bool = True,
    places: Places | None = None,
    ask_chips: Ask = ask,
) -> tuple[Report, LogFormat]:
    """What a start with these arguments would find, and in which form it is to be said. `own_port` is as in `read_options`."""
    report = Report(versions=_versions(environ))
    values: dict[str, object] = {}
    with _noted(report):
        own, _ = accept(arguments, flag_names())
        values = read_flags(own)
    config = _configuration(arguments, environ, own_port, places, report)
    draft = config or _draft(values)
    host = None
    with _noted(report):
        host = look_at_host(draft.device, environ, places)
    if host is not None:
        draft = msgspec.structs.replace(draft, device=resolve_device(draft.device, host)[0])
        _check_chips(draft, host, environ, report, ask_chips)
    _check_addresses(values, draft, environ, own_port, report)
    _check_model(values, environ, report)
    with _noted(report):
        check_memory(draft)
    report.memory, report.memory_free = memory_limit(), _free_memory(places or HERE)
    _remark_on_memory(draft, report)
    return report, cast(LogFormat, values.get("log_format", draft.log_format))


@contextmanager
def _noted(report: Report) -> Iterator[None]:
    """What would end a start is noted, and the check goes on behind it."""
    try:
        yield
    except EngineError as error:
        report.stop(str(error), error.exit_code)


def _configuration(
    arguments: Sequence[str], environ: Mapping[str, str], own_port: bool, places: Places | None, report: Report
) -> EngineConfig | None:
    """What a start would have, with what it would say; None: it would end, or download first."""
    with _noted(report):
        try:
            config, remarks = read_options(arguments, environ, own_port=own_port, download=_download(environ), places=places)
        except _NotHere as error:
            report.remarks.append(str(error))
        else:
            report.remarks += remarks
            return config
    return None


def _download(environ: Mapping[str, str]) -> Download | None:
    if environ.get("HF_HUB_OFFLINE", "").lower() in _OFFLINE:
        return None

    def refuse(wanted: Wanted, cache: Path) -> Path:
        raise _NotHere(f"{wanted.repository} is not in {cache}: a start downloads it first")

    return refuse


def _draft(values: Mapping[str, object]) -> EngineConfig:
    """What the chips are checked for where the rest does not fit together."""
    known = ("device", "workers", "tensor_parallel_size", "kv_cache_memory", "host", "port")
    return msgspec.structs.replace(_DRAFT, **{name: values[name] for name in known if name in values})


def _check_chips(draft: EngineConfig, host: Host, environ: Mapping[str, str], report: Report, ask_chips: Ask) -> None:
    report.device = draft.device
    report.chips = [*_tpu_chips(host.tpu), *_gpus(host)]
    report.locked_memory = host.tpu.locked_memory
    found = obstacles(draft, host, environ)
    for error in found:
        report.stop(str(error), error.exit_code)
    if found or draft.device == "sim":
        return
    if draft.hosts and draft.device == "tpu":
        report.remarks.append("libtpu is not asked about the chips: it would wait for the other hosts")
        return
    wanted = draft.tensor_parallel_size // max(1, len(draft.hosts))
    placements = place_workers(draft, environ, host)
    # Workers on the CPU have nothing of their own that could be wrong.
    report.workers = list(ask_chips(draft.device, placements[:1] if draft.device == "cpu" else placements, environ))
    for answer in report.workers:
        if answer.error:
            error = DeviceError(f"--device {draft.device}: worker {answer.worker}: {answer.error}")
            report.stop(str(error), error.exit_code)
        elif len(answer.devices) < wanted and draft.device != "cpu":
            of = f" over {len(draft.hosts)} hosts" if draft.hosts else ""
            short = f"sees {len(answer.devices)} devices, and --tensor-parallel-size is {draft.tensor_parallel_size}{of}"
            error = DeviceError(f"--device {draft.device}: worker {answer.worker} {short}")
            report.stop(str(error), error.exit_code)


def _tpu_chips(host: TpuHost) -> Iterator[CheckedChip]:
    for chip in host.chips:
        kind, memory = (f"TPU {host.kind.name}", host.kind.memory) if host.kind is not None else ("", None)
        yield CheckedChip(chip.path, kind, memory, tuple(map(str, chip.holders)), chip.failure)


def _gpus(host: Host) -> Iterator[CheckedChip]:
    for gpu in host.cuda.gpus:
        yield CheckedChip(gpu.path, gpu.name, None, tuple(map(str, gpu.holders)), gpu.failure)


def _check_addresses(
    values: Mapping[str, object], draft: EngineConfig, environ: Mapping[str, str], own_port: bool, report: Report
) -> None:
    if draft.host_rank > 0:  # where nobody is served
        return
    if own_port:
        with _noted(report):
            check_port(draft.host, draft.port)
            report.port = f"{draft.host}:{draft.port}" if draft.port else f"a port of {draft.host}"
    with _noted(report):
        report.socket = check_socket(cast("str | None", values.get("ipc")), environ)


def _check_model(values: Mapping[str, object], environ: Mapping[str, str], report: Report) -> None:
    load_format: LoadFormat = "dummy" if values.get("load_format") == "dummy" else "auto"
    revision, directory = (cast("str | None", values.get(name)) for name in ("revision", "download_dir"))
    with _noted(report):
        try:
            files = resolve_model(
                cast(str, values.get("model", "demo")),
                _download(environ),
                revision=revision,
                download_dir=directory,
                environ=environ,
                weights=load_format != "dummy",
            )
        except _NotHere as error:
            if str(error) not in report.remarks:
                report.remarks.append(str(error))
            return
        examine_model(files, load_format)
        report.model = CheckedModel(files.path, files.format, files.names, _size_of(files))


def _size_of(files: ModelFiles) -> int:
    path = Path(files.path)
    if files.format == "huggingface":
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    parts = (file for file in path.parent.glob("*.gguf") if whole_name(file.name) == whole_name(path.name))
    return sum(file.stat().st_size for file in parts)


def _remark_on_memory(draft: EngineConfig, report: Report) -> None:
    """Weights that are read into the host's memory, where that is short: no obstacle, since much of a file is not kept as it is."""
    if draft.device != "cpu" or report.model is None or report.memory_free is None:
        return
    wanted = report.model.size * draft.workers
    if wanted > report.memory_free:
        needed, free = f"{wanted / 1e9:,.1f} GB in their files", f"{report.memory_free / 1e9:,.1f} GB of memory are free"
        way_out = "fewer --workers, or --quantization int8"
        report.remarks.append(f"the weights of {draft.workers} workers have {needed}, and {free}: {way_out}")


def _free_memory(places: Places) -> int | None:
    try:
        match = re.search(r"^MemAvailable:\s+(\d+) kB", (places.proc / "meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) << 10 if match is not None else None


def _versions(environ: Mapping[str, str]) -> dict[str, str]:
    found = dict(read_versions(environ).by_name)
    own = {TWODEEP: found.pop(TWODEEP)} if TWODEEP in found else {}
    return own | {"Python": platform.python_version()} | found
