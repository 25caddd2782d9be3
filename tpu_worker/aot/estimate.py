"""How long a program would take on the chip, from what the compiler says of it.

Where libtpu has a figure it is taken: cycles of each instruction, and of our kernels the bundles of their schedules. What it leaves
out is what is brought from memory ahead of time: so products never take less than their weights' bytes by the bandwidth.
Not in there: how long the chip waits for the host, and whatever the compiler's model does not know.
"""

from collections.abc import Sequence

from protocol.aot_report import Part, StepTime
from protocol.chips import Chip
from tpu_worker.aot.program_text import Cost

_MICROSECONDS = 1e6


def part_of(cost: Cost, steps: bool = True) -> Part:
    """Where an instruction belongs. steps: it is of a step's program, else of one that samples."""
    if cost.opcode.startswith(("all-", "reduce-scatter", "collective-")):
        return "collectives"
    if not steps:
        return "sampler"
    is_product = "dot_general" in cost.source or "ragged_dot" in cost.source
    if "_attend" in cost.source:
        return "products" if is_product else "attention"
    if "_mix" in cost.source:
        return "products"
    if is_product:
        return "head"
    if cost.source.endswith(("/reduce", "/argmax", "/reduce_max")) or "sample" in cost.source:
        return "sampler"
    return "other"


def cycles_by_part(costs: Sequence[Cost], *, steps: bool = True) -> dict[Part, int]:
    """Of all instructions."""
    found: dict[Part, int] = {}
    for cost in costs:
        part = part_of(cost, steps)
        found[part] = found.get(part, 0) + cost.cycles
    return found


def step_parts(
    cycles: dict[Part, int],
    chip: Chip,
    weights: dict[Part, int],
    attention: StepTime,
    collective_bytes: int,
    num_collectives: int,
    num_shards: int,
) -> tuple[StepTime, dict[Part, float]]:
    """The time of a step, and its fixed parts in microseconds.

    weights: bytes that products and head read; collective_bytes: that each chip has of what is summed or gathered.
    """
    parts: dict[Part, float] = {part: count / chip.clock * _MICROSECONDS for part, count in cycles.items()}
    for part, size in weights.items():
        parts[part] = max(parts.get(part, 0.0), size / chip.bandwidth * _MICROSECONDS)
    parts["attention"] = parts.get("attention", 0.0) + attention.fixed
    if num_shards > 1:  # a ring: each byte goes round twice, but for the share that is there already
        seconds = 2 * (num_shards - 1) / num_shards * collective_bytes / chip.link_bandwidth
        seconds += num_collectives * (num_shards - 1) * chip.link_latency
        parts["collectives"] = max(parts.get("collectives", 0.0), seconds * _MICROSECONDS)
    time = StepTime(
        fixed=sum(parts.values()),
        per_row=attention.per_row,
        per_context_token=attention.per_context_token,
        per_pair=attention.per_pair,
    )
    return time, parts


def roofline(weights: int, cache_bytes: int, operations: float, chip: Chip) -> float:
    """The least for a step, in microseconds: bytes of weights and cache by the bandwidth, or bfloat16 operations by their rate."""
    return max((weights + cache_bytes) / chip.bandwidth, operations / chip.bfloat16_rate) * _MICROSECONDS
