"""How long attention's own kernels take, by what they move and by libtpu's schedules of them.

A kernel brings the pages of the next run, or of the next item, while it computes with the last ones: it takes as long as the slower
of the two. The structure of the loops is that of `platforms.tpu`: who changes it there changes it here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.aot_report import StepTime
from protocol.chips import Chip
from tpu_worker.aot.schedule import Loop
from tpu_worker.platforms.tpu.heads import ROWS_AT_ONCE, TOKENS_AT_ONCE
from tpu_worker.platforms.tpu.writes import heads_unrolled

SINGLES, CHUNKS, WRITES = "attend_singles", "attend_chunks", "write_pages"
# What moves heads into their places and back: a kernel, and how many tokens it takes at a time.
ROWS_OF_HEADS, COLUMNS_OF_HEADS = ("split_rows", "join_rows"), ("split_columns", "join_columns")
KERNELS = (SINGLES, CHUNKS, WRITES, *ROWS_OF_HEADS, *COLUMNS_OF_HEADS)

_MICROSECONDS = 1e6


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of one layer's attention on one chip."""

    page: int  # positions
    run: int  # pages
    page_bytes: int
    window: int  # tokens that a query sees; 0: all
    chunk: int  # tokens of a block of queries …
    chunk_run: int  # … and pages of a run of theirs …
    heads_at_once: int  # … and heads of keys that are computed with together
    num_kv_heads: int


def singles_time(loop: Loop, of: Geometry, chip: Chip, context: int) -> StepTime:
    """One layer's decoding rows. context: tokens of each, which a window cuts off. Raises ValueError, as the next three."""
    token = _outer(loop)
    start, run = token.loops[0], _outer(token, inner=4)
    page_cycles = start.bundles + run.loops[2].bundles
    positions = of.run * of.page
    seen = min(context, of.window) if of.window else context
    computes = token.bundles + -(-seen // positions) * run.bundles + -(-seen // of.page) * page_cycles
    exact = max(computes / chip.clock, -(-seen // of.page) * of.page_bytes / chip.bandwidth) * _MICROSECONDS
    if seen < context:
        return StepTime(fixed=0.0, per_row=exact)
    # In between, and beyond, it grows evenly.
    slope = (run.bundles / positions + page_cycles / of.page) / chip.clock
    per_token = max(slope, of.page_bytes / of.page / chip.bandwidth) * _MICROSECONDS
    return StepTime(fixed=0.0, per_row=max(0.0, exact - per_token * context), per_context_token=per_token)


def chunks_time(loop: Loop, of: Geometry, chip: Chip, tokens: int) -> StepTime:
    """One layer's prompts, of a step of so many tokens that is full of them."""
    item = _outer(loop)
    times = of.num_kv_heads // of.heads_at_once
    run = _outer(item, inner=5 if times > 1 else 4)  # what runs once is no loop
    positions = of.chunk_run * of.page
    heads = times * run.loops[-1].bundles if times > 1 else 0
    computes = heads + run.bundles + of.chunk_run * (item.loops[0].bundles + run.loops[2].bundles)
    of_run = max(computes / chip.clock, of.chunk_run * of.page_bytes / chip.bandwidth) * _MICROSECONDS
    finish = of.num_kv_heads * item.loops[-1].bundles if of.num_kv_heads > 1 else 0
    # Of the last run half lies behind the queries, or before a window; of a block that is longer, half of all its runs.
    behind = max(of.chunk, positions) / positions / 2
    items = -(-tokens // of.chunk)
    fixed = items * ((item.bundles + finish) / chip.clock * _MICROSECONDS + behind * of_run)
    return StepTime(fixed=fixed, per_pair=of_run / (of.chunk * positions))


def writes_time(loop: Loop, of: Geometry, chip: Chip, tokens: int) -> StepTime:
    """One layer's new keys and values, of a step that one prompt fills, which begins and ends within a page."""
    if len(loop.loops) != 1:
        raise ValueError(_OTHERWISE)
    item = loop.loops[0]
    heads = item.loops[0].bundles * of.num_kv_heads // heads_unrolled(of.num_kv_heads) if item.loops else 0
    pages = tokens // of.page + 2
    return StepTime(fixed=pages * max((item.bundles + heads) / chip.clock, 2 * of.page_bytes / chip.bandwidth) * _MICROSECONDS)


def heads_time(loop: Loop, tokens: int, block: int, chip: Chip) -> StepTime:
    """One layer's heads of so many tokens, of which `block` are taken at a time."""
    blocks = -(-tokens // block)
    cycles = loop.bundles + blocks * sum(one.bundles for one in loop.loops)
    return StepTime(fixed=cycles / chip.clock * _MICROSECONDS)


def add(times: Sequence[StepTime]) -> StepTime:
    """One after the other."""
    return StepTime(
        fixed=sum(one.fixed for one in times),
        per_row=sum(one.per_row for one in times),
        per_context_token=sum(one.per_context_token for one in times),
        per_pair=sum(one.per_pair for one in times),
    )


def attention_time(
    loops: Mapping[str, Loop], layers: Mapping[Geometry, int], chip: Chip, tokens: int, rows: int, context: int
) -> StepTime:
    """All layers' kernels of a step: `layers` tells how many have which geometry.

    loops: the schedules of the kernels that the step has, by name. Where layers differ they are of one of them.
    """
    times = []
    for geometry, count in layers.items():
        own = []
        if SINGLES in loops:
            own.append(singles_time(loops[SINGLES], geometry, chip, context))
        if CHUNKS in loops:
            own.append(chunks_time(loops[CHUNKS], geometry, chip, tokens))
        if WRITES in loops:
            own.append(writes_time(loops[WRITES], geometry, chip, tokens))
        own += [heads_time(loops[name], rows, min(ROWS_AT_ONCE, rows), chip) for name in ROWS_OF_HEADS if name in loops]
        own += [heads_time(loops[name], tokens, min(TOKENS_AT_ONCE, tokens), chip) for name in COLUMNS_OF_HEADS if name in loops]
        times += count * [add(own)]
    return add(times)


_OTHERWISE = "libtpu's schedule of a kernel has other loops than its source: how long it takes is not known"


def _outer(loop: Loop, inner: int = 0) -> Loop:
    """The one loop within this one that has loops itself, so many where `inner` says it. Raises ValueError where there is none."""
    found = [one for one in loop.loops if one.loops]
    if len(found) != 1 or (inner and len(found[0].loops) != inner) or any(one.loops for one in found[0].loops if inner):
        raise ValueError(_OTHERWISE)
    return found[0]
