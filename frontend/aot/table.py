"""The report, to read."""

from frontend.aot.figures import SEED_AT_A_TIME, SEED_OUTPUT, SEED_PROMPT, gib, prefill, rates, seed_load
from protocol.aot_messages import Drawn
from protocol.aot_report import AotReport, Part, ProgramReport

_PARTS: tuple[Part, ...] = ("attention", "products", "head", "sampler", "collectives", "other")
_WIDE = 150  # columns, where the output is no terminal
LEFT_OUT = (
    "Times are estimates: by libtpu's cycles and schedules, and never less than the bytes of weights and cache take. Left out are "
    "the host, whatever libtpu does not model, and how well it overlaps what it brings with what it computes."
)


def print_report(report: AotReport, drawn: Drawn, problems: list[str]) -> None:
    """On standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    title = f"{report.model} on {report.topology} ({report.chip}), tensor parallel {report.tensor_parallel_size}, {report.dtype}"
    table = Table(title=title, pad_edge=False)
    table.add_column("program")
    for name in ("compiled in s", "arguments", "temporaries", "code", "copies", "µs", "roofline", "share", "of these µs"):
        table.add_column(name, justify="left" if name.startswith("of") else "right")
    for program in report.programs:
        table.add_row(*_row(program))
    console.print(table)
    for line in summary(report, drawn):
        console.print(line, highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(problem, style="bold red", highlight=False, markup=False, soft_wrap=True)


def _row(program: ProgramReport) -> list[str]:
    if program.error:
        return [program.name, f"{program.compile_seconds:.1f}", "", "", "", "", "", "", "", "does not compile"]
    whole = sum(program.parts.values())
    parts = ", ".join(f"{part} {program.parts[part]:.0f}" for part in _PARTS if program.parts.get(part, 0) >= 1)
    share = f"{program.roofline / whole:.0%}" if program.roofline and whole else ""
    return [
        program.name,
        f"{program.compile_seconds:.1f}",
        gib(program.arguments),
        f"{program.temporaries / 2**20:.1f} MiB",
        f"{program.code / 2**20:.1f} MiB",
        str(len(program.copies)),
        f"{whole:.0f}" if whole else "",
        f"{program.roofline:.0f}" if program.roofline else "",
        share,
        parts,
    ]


def summary(report: AotReport, drawn: Drawn) -> list[str]:
    """What it comes to, in lines."""
    tokens = report.num_blocks * report.block_size
    lines = [
        f"Memory of each chip: {gib(report.hbm)}, weights {gib(report.weights)}, slots {gib(drawn.state)}, KV cache "
        f"{gib(report.num_blocks * report.bytes_per_block)}: {report.num_blocks} blocks of {report.block_size}, {tokens} tokens.",
        f"Longest sequence: {min(report.max_model_len, tokens)} tokens, {tokens // report.max_model_len} of these at once.",
    ]
    lines += [
        f"Decoding {one.rows} rows of {report.context} tokens: {one.microseconds / 1e3:.2f} ms a step, "
        f"{one.tokens_per_second:.0f} tokens/s, {one.share:.0%} of the roofline."
        for one in rates(report)
    ]
    if found := prefill(report):
        tokens, micros, share = found
        lines.append(
            f"Prefill of {tokens} tokens: {micros / 1e3:.2f} ms, {tokens / micros * 1e6:.0f} tokens/s, {share:.0%} of the roofline."
        )
    if requests := seed_load(report):
        lines.append(
            f"{SEED_PROMPT} tokens in, {SEED_OUTPUT} out, {SEED_AT_A_TIME} at a time: {requests:.2f} requests/s, if the "
            "device never waits."
        )
    compiled = sum(program.compile_seconds for program in report.programs)
    lines.append(f"{len(report.programs)} programs compiled in {compiled:.0f} s of the compiling processes together.")
    return [*lines, LEFT_OUT]
