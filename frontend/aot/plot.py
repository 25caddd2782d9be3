"""The time of a step by its rows, beside the least that the chip allows."""

from frontend.aot.figures import decode_steps
from protocol.aot_report import AotReport
from protocol.errors import ConfigError


def write_plot(report: AotReport, path: str) -> None:
    """A picture. Raises ConfigError when matplotlib is not installed, or the file cannot be written."""
    try:
        from matplotlib.figure import Figure  # only this flag needs it
    except ImportError as error:
        raise ConfigError(f"--plot {path}: matplotlib is not installed: add twodeep[plot]") from error
    steps = decode_steps(report)
    rows = [step.rows for step in steps]
    times = [sum(step.parts.values()) / 1e3 for step in steps]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rows, times, "o-", label="estimate")
    axes.plot(rows, [step.roofline / 1e3 for step in steps], "--", color="gray", label="roofline")
    for count, time in zip(rows, times, strict=True):
        axes.annotate(
            f"{count / time:.0f}k tokens/s", (count, time), textcoords="offset points", xytext=(0, 7), ha="center", size=8
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(rows, [str(count) for count in rows])
    axes.set_ylim(bottom=0, top=1.15 * max(times, default=1.0))
    axes.set_xlabel("rows that decode")
    axes.set_ylabel("milliseconds a step")
    axes.set_title(
        f"{report.model} on {report.topology}, tensor parallel {report.tensor_parallel_size}, {report.context} tokens of context",
        size=10,
    )
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from error
