"""The report, of what the compiling processes said. Pure."""

from collections.abc import Iterable

from protocol.aot_messages import Drawn
from protocol.aot_report import AotReport, ProgramReport
from protocol.chips import Topology
from protocol.config import EngineConfig


def make_report(
    model: str, config: EngineConfig, topology: Topology, context: int, drawn: Drawn, programs: Iterable[ProgramReport]
) -> AotReport:
    """model: as it was named; context: tokens of each row that times are estimated for."""
    return AotReport(
        versions=drawn.versions,
        model=model,
        model_digest=drawn.model_digest,
        topology=topology.name,
        chip=drawn.chip,
        max_model_len=drawn.max_model_len,
        block_size=drawn.block_size,
        dtype=drawn.dtype,
        quantization=drawn.quantization,
        kv_cache_dtype=config.kv_cache_dtype,
        hbm=drawn.hbm,
        weights=drawn.weights,
        bytes_per_block=drawn.bytes_per_block,
        cache_of_row=drawn.cache_of_row,
        num_blocks=drawn.num_blocks,
        context=context,
        programs=tuple(sorted(programs, key=_place)),
        decodes_apart=drawn.decodes_apart,
        padding_costs=drawn.padding_costs,
        tensor_parallel_size=config.tensor_parallel_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )


def _place(program: ProgramReport) -> tuple[bool, bool, int, int, str, int]:
    """Steps that decode, other steps, what samples, by size; those whose names have none are last."""
    kind, _, size = program.name.partition(" ")
    digits = size.partition("x")[0]
    return (
        kind != "step",
        program.tokens != program.rows,
        program.tokens,
        program.rows,
        kind,
        int(digits) if digits.isdecimal() else 0,
    )
