"""The report, to read: a row for each program, then what it comes to."""

from collections import Counter
from collections.abc import Sequence

from frontend.aot.figures import SEED_AT_A_TIME, SEED_OUTPUT, SEED_PROMPT, prefill, rates, seed_load
from frontend.aot.memory import gib, longest_context
from protocol.aot_messages import Drawn
from protocol.aot_report import AotReport, Part, ProgramReport
from protocol.config import EngineConfig

_PARTS: tuple[Part, ...] = ("attention", "products", "head", "sampler", "collectives", "other")
_COLUMNS = ("program", "compiled, s", "arguments", "temporaries", "code", "copies", "time, µs", "roofline", "share", *_PARTS)
_WIDE = 160  # columns at least, so that no row is folded
LEFT_OUT = (
    "All times are estimates, and nothing ran: cycles by the compiler's model of the chip, schedules of the kernels, and never "
    "less than memory takes for weights and cache. Left out: the host and waiting for it, how far the chip slows down, and what "
    "that model does not know."
)


def print_report(report: AotReport, drawn: Drawn, config: EngineConfig, problems: Sequence[str]) -> None:
    """On standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = max(console.width, _WIDE)
    rows = [row(program) for program in report.programs]
    used = [index for index in range(len(_COLUMNS)) if any(cells[index] for cells in rows)]
    chips = f"{report.topology} ({report.chip}), tensor parallel {report.tensor_parallel_size}"
    table = Table(
        title=f"{report.model} on {chips}, {report.dtype}, times in microseconds with {report.context} tokens in each row",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for index in used:
        table.add_column(_COLUMNS[index], justify="right" if index else "left", no_wrap=True)
    for program, cells in zip(report.programs, rows, strict=True):
        table.add_row(*(cells[index] for index in used), style="red" if program.error or program.copies else None)
    console.print(table)
    console.print()
    for line in summary(report, drawn, config):
        console.print(line, soft_wrap=True)
    for problem in problems:
        console.print(problem, style="bold red", soft_wrap=True)


def row(program: ProgramReport) -> list[str]:
    """A program in the table."""
    if program.error:
        return [program.name, f"{program.compile_seconds:.1f}", "does not", "compile", *[""] * (len(_COLUMNS) - 4)]
    whole = sum(program.parts.values())
    parts = [program.parts.get(part, 0.0) for part in _PARTS]
    return [
        program.name,
        f"{program.compile_seconds:.1f}",
        gib(program.arguments),
        gib(program.temporaries),
        gib(program.code),
        str(len(program.copies)),
        f"{whole:.0f}" if whole else "",
        f"{program.roofline:.0f}" if program.roofline else "",
        f"{program.roofline / whole:.0%}" if program.roofline and whole else "",
        *(f"{part:.0f}" if part >= 0.5 else "" for part in parts),
    ]


def summary(report: AotReport, drawn: Drawn, config: EngineConfig) -> list[str]:
    """What the programs come to, in lines."""
    cache = report.num_blocks * report.bytes_per_block
    blocks = f"{report.num_blocks:,} blocks of {report.block_size} tokens"
    if len(drawn.windows) == 1:
        blocks += f", {report.num_blocks * report.block_size:,} tokens"
    at_once = report.num_blocks // max(1, drawn.blocks_per_sequence)
    longest = longest_context(drawn, config, drawn.context_length)
    lines = [
        f"memory     {gib(report.hbm)} a chip: weights {gib(report.weights)}, slots {gib(drawn.state)}, KV cache {gib(cache)}",
        f"KV cache   {blocks}: {at_once} sequences of {report.max_model_len:,} tokens at once",
        f"context    {longest:,} tokens at most in one sequence ({drawn.context_length:,} are what the model was made for)",
    ]
    lines += [
        f"decoding   {one.rows} rows of {report.context} tokens: {one.microseconds / 1e3:.2f} ms a step, "
        f"{one.tokens_per_second:,.0f} tokens/s, {one.share:.0%} of the roofline"
        for one in rates(report)
    ]
    if (found := prefill(report)) is not None:
        share = "" if found.share is None else f", {found.share:.0%} of the matrix units' rate"
        lines.append(
            f"prefill    {found.tokens} tokens of one prompt: {found.microseconds / 1e3:.2f} ms, "
            f"{found.tokens_per_second:,.0f} tokens/s{share}"
        )
    if (requests := seed_load(report)) is not None:
        lines.append(
            f"load       {SEED_PROMPT} tokens in, {SEED_OUTPUT} out, {SEED_AT_A_TIME} at a time: {requests:.2f} requests/s, "
            "where the chip never waits"
        )
    for reason, number in Counter(program.unknown for program in report.programs if program.unknown).items():
        lines.append(f"times      of {number} programs are not known: {reason}")
    seconds = sum(program.compile_seconds for program in report.programs)
    lines.append(f"compiling  {len(report.programs)} programs, {seconds:,.0f} s of all compiling processes together")
    return [*lines, LEFT_OUT] if any(program.time for program in report.programs) else lines
