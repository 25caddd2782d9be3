"""The time of a step by its rows, beside the least that the chip allows."""

from matplotlib.figure import Figure

from frontend.aot.figures import decode_steps
from protocol.aot_report import AotReport
from protocol.errors import ConfigError

_LEAST = 1e-6  # milliseconds, in place of nothing
_TICKS = [mantissa * 10.0**power for power in range(-3, 5) for mantissa in (1, 1.5, 2, 3, 5, 7)]


def write_plot(report: AotReport, path: str) -> None:
    """A picture of every bucket for decoding, all its rows in use. Raises ConfigError when the file cannot be written."""
    steps = decode_steps(report)
    rows = [step.rows for step in steps]
    times = [sum(step.parts.values()) / 1e3 for step in steps]
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rows, times, "o-", color="tab:blue", label="estimate")
    axes.plot(rows, [step.roofline / 1e3 for step in steps], "s--", color="tab:gray", label="roofline")
    for step, time in zip(steps, times, strict=True):
        text = f"{step.rows / max(time, _LEAST) * 1e3:,.0f} tokens/s\n{step.roofline / 1e3 / max(time, _LEAST):.0%} of the roofline"
        axes.annotate(text, (step.rows, time), textcoords="offset points", xytext=(-4, 6), ha="right", size=8)
    if steps:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        least, most = min(*times, *(step.roofline / 1e3 for step in steps)), max(times)
        shown = [tick for tick in _TICKS if least / 1.5 <= tick <= 1.5 * most]
        axes.set_xticks(rows, [str(count) for count in rows])
        axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
        axes.set_xlim(rows[0] / 2.5, rows[-1] * 1.4)
        axes.set_ylim(max(least, _LEAST) / 1.25, max(most, _LEAST) * 1.35)
    axes.minorticks_off()
    axes.set_xlabel("rows that decode in a step")
    axes.set_ylabel("time of a step, ms")
    axes.set_title(
        f"{report.model} on {report.topology}, tensor parallel {report.tensor_parallel_size}, {report.dtype}\n"
        f"{report.context} tokens in each row; all times are estimates",
        size=10,
    )
    axes.legend(loc="upper left")
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from error
