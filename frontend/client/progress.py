"""The bar that `generate` shows on a terminal."""

import sys
from typing import TYPE_CHECKING

from protocol.clock import now

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_REDRAW_SECONDS = 0.1


class Progress:
    """Requests done and tokens per second. Costs nothing when it is not shown."""

    def __init__(self, total: int, *, shown: bool | None) -> None:
        """`shown=None`: only on a terminal."""
        self._bars: Bars | None = None
        self._began = self._drawn = now()
        if shown is None:
            shown = sys.stderr.isatty()
        if shown:
            from rich.console import Console  # a tenth of a second that only a terminal needs
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as ProgressBars

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:,.0f} tokens/s"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bars = ProgressBars(*columns, console=Console(stderr=True), auto_refresh=False)  # no thread of its own
            self._task = self._bars.add_task("generating", total=total, rate=0.0)
            self._bars.start()

    def update(self, finished: int, num_tokens: int) -> None:
        """So many requests are done, so many tokens came with them."""
        if self._bars is None:
            return
        time, last = now(), finished == self._bars.tasks[self._task].total
        if last or time - self._drawn >= _REDRAW_SECONDS:
            self._drawn = time
            self._bars.update(self._task, completed=finished, rate=num_tokens / (time - self._began), refresh=True)

    def close(self) -> None:
        """Leaves the terminal as it was. Idempotent."""
        if self._bars is not None:
            self._bars.stop()
