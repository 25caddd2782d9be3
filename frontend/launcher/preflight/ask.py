"""Asks the chips of every worker at once, each set in a process of its own, as workers would have them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import msgspec

from frontend.launcher.notify import MANAGER_VARIABLES
from frontend.launcher.placement import Placement
from frontend.launcher.preflight.report import Answer
from protocol.clock import now

# Seconds until all have to have answered. libtpu takes some ten to begin, and compiles little here.
PATIENCE = 90.0
PROGRAM = (sys.executable, "-P", "-m", "tpu_worker.probe")


class _Device(msgspec.Struct):
    kind: str
    memory: int | None = None


class _Told(msgspec.Struct):
    """What `tpu_worker.probe` writes."""

    devices: list[_Device] = []
    platform: str = ""
    error: str = ""


def ask(
    device: str,
    placements: Sequence[Placement],
    environ: Mapping[str, str],
    *,
    patience: float = PATIENCE,
    program: Sequence[str] = PROGRAM,
) -> list[Answer]:
    """One Answer for each placement, in their order."""
    inherited = {name: value for name, value in environ.items() if name not in MANAGER_VARIABLES}
    deadline = now() + patience
    with ExitStack() as ended:
        processes = []
        for placed in placements:
            process = subprocess.Popen(
                [*program, device],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=inherited | placed.environ,
            )
            ended.enter_context(process)
            ended.callback(process.kill)  # runs first
            processes.append(process)
        return [
            # Who has answered meanwhile is heard, even if another one used the time up.
            _read(worker, placed, process, max(1.0, deadline - now()), patience)
            for worker, (placed, process) in enumerate(zip(placements, processes, strict=True))
        ]


def _read(worker: int, placed: Placement, process: subprocess.Popen[bytes], timeout: float, patience: float) -> Answer:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        return Answer(worker, placed.chips, error=f"no answer within {patience:g} s")
    lines = out.splitlines() or [b""]
    try:
        told = msgspec.json.decode(lines[-1], type=_Told)
    except msgspec.DecodeError:
        said = err.decode(errors="replace").strip().splitlines() or [""]
        return Answer(worker, placed.chips, error=f"it ended with {process.returncode}: {said[-1][:300]}".rstrip(": "))
    if told.error:
        return Answer(worker, placed.chips, error=told.error)
    memory = min((chip.memory for chip in told.devices if chip.memory is not None), default=None)
    return Answer(worker, placed.chips, tuple(chip.kind for chip in told.devices), memory, told.platform)
