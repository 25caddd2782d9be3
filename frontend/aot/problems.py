"""Why an engine would not run, or not run well, on the chips of a report. Pure."""

from frontend.aot.memory import gib, misfit
from protocol.aot_messages import Drawn
from protocol.aot_report import AotReport
from protocol.chips import parse_topology
from protocol.config import EngineConfig


def find_problems(report: AotReport, drawn: Drawn, config: EngineConfig) -> list[str]:
    """A line for each; none: everything compiles, fits and copies nothing."""
    found = [f"{program.name} does not compile: {program.error}" for program in report.programs if program.error]
    for program in report.programs:
        if program.copies:
            shown = "; ".join(program.copies[:2])
            found.append(f"{program.name} copies cache or weights, {len(program.copies)} times: {shown}")
    if lines := misfit(drawn, config, parse_topology(report.topology)):
        return found + lines
    taken = drawn.weights + drawn.state + drawn.num_blocks * drawn.bytes_per_block
    for program in report.programs:
        # What a program makes and runs from lies beside all that the engine keeps.
        beside = program.temporaries + program.outputs + program.code
        if taken + beside > drawn.hbm:
            found.append(
                f"{program.name} does not fit: it takes {gib(beside)} beside {gib(taken)} of weights, KV cache and slots, of "
                f"{gib(drawn.hbm)}, {gib(taken + beside - drawn.hbm)} too much: lower --max-num-batched-tokens or "
                "--gpu-memory-utilization"
            )
    return found
