"""What `engine-bench serve` shows: a bar while it runs, a table at the end."""

from frontend.bench.metrics import METRICS, Summary
from protocol.clock import now


class ProgressBar:
    """Requests done and the rate of output, on a terminal."""

    def __init__(self, total: int, *, enabled: bool) -> None:
        from rich.console import Console  # a tenth of a second that only a terminal needs
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f} tokens/s"), TimeElapsedColumn())
        self._bars = Progress(*columns, console=Console(stderr=True), disable=not enabled, transient=True, refresh_per_second=4)
        self._task = self._bars.add_task("requests", total=total, rate=0.0)
        self._tokens = 0
        self._began = now()

    def __enter__(self) -> "ProgressBar":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def finish_request(self) -> None:
        """One more answer is complete."""
        self._bars.update(self._task, advance=1, rate=self._tokens / (now() - self._began))

    def add_tokens(self, count: int) -> None:
        """Output arrived."""
        self._tokens += count


def print_table(summary: Summary, title: str) -> None:
    """The figures, on standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("ms", "mean", "median", *(f"p{rank:g}" for rank in summary.percentiles), title=title)
    for name, meaning in METRICS.items():
        values = summary.distributions[name]
        numbers = (values.mean, values.median, *values.percentiles.values())
        table.add_row(f"{name.upper()} ({meaning})", *(f"{number:.2f}" for number in numbers))
    console.print(table)
    console.print(
        f"{summary.completed} answered, {summary.failed} failed in {summary.duration:.2f} s: "
        f"{summary.request_throughput:.2f} requests/s, {summary.output_throughput:.1f} output tokens/s, "
        f"{summary.total_token_throughput:.1f} tokens/s with prompts"
    )
