"""Reports whose figures can be worked out by hand."""

from typing import Any

import msgspec

from frontend.aot.report import make_report
from protocol.aot_messages import Drawn
from protocol.aot_report import AotReport, ProgramReport
from protocol.chips import parse_topology
from protocol.config import EngineConfig
from tests.frontend.aot.stand_in import NAMES, drawn, program


def config_of(**changes: Any) -> EngineConfig:
    given: dict[str, Any] = {"max_num_seqs": 16, "max_num_batched_tokens": 512}
    return EngineConfig(model_path="/m", model_format="huggingface", served_model_names=("m",), device="tpu", **given | changes)


def report_of(
    *programs: ProgramReport, topology: str = "v6e:1x1", found: Drawn | None = None, config: EngineConfig | None = None
) -> AotReport:
    """All programs of the stand-in; those given are in the place of others of their name."""
    changed = {one.name: one for one in programs}
    all_of_them = [changed.get(name) or program(name) for name in NAMES]
    return make_report("m", config or config_of(), parse_topology(topology), 500, found or drawn(), all_of_them)


def without_times(report: AotReport) -> AotReport:
    programs = (msgspec.structs.replace(one, time=None, parts={}, roofline=0.0) for one in report.programs)
    return msgspec.structs.replace(report, programs=tuple(programs))
