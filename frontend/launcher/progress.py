"""Shows how far the start has come: bars on a terminal, plain lines elsewhere."""

import sys
from typing import TYPE_CHECKING, Protocol, TextIO

from frontend.launcher.events import Child
from protocol.messages import Progress

if TYPE_CHECKING:
    from rich.progress import TaskID


class StartDisplay(Protocol):
    """What the launcher shows until the engine is ready."""

    def update(self, child: Child, progress: Progress) -> None:
        """The child came this far."""

    def finish(self, child: Child) -> None:
        """The child is ready."""

    def close(self) -> None:
        """Nothing more is shown."""


class PlainDisplay:
    """One line when a child enters a phase or is ready: fit for logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._phases: dict[Child, str] = {}

    def update(self, child: Child, progress: Progress) -> None:
        """The child came this far."""
        if self._phases.get(child) != progress.phase:
            self._phases[child] = progress.phase
            of = f" ({progress.total})" if progress.total > 1 else ""
            print(f"{child}: {progress.phase}{of}", file=self._stream, flush=True)

    def finish(self, child: Child) -> None:
        """The child is ready."""
        print(f"{child}: ready", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing more is shown."""


class TerminalDisplay:
    """One bar per child, gone when the engine is ready."""

    def __init__(self) -> None:
        from rich.console import Console  # a tenth of a second that only a terminal needs
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True, refresh_per_second=8)
        self._tasks: dict[Child, TaskID] = {}
        self._bars.start()

    def update(self, child: Child, progress: Progress) -> None:
        """The child came this far."""
        self._set(child, progress.phase, progress.done, progress.total)

    def finish(self, child: Child) -> None:
        """The child is ready."""
        self._set(child, "ready", 1, 1)

    def close(self) -> None:
        """Nothing more is shown."""
        self._bars.stop()

    def _set(self, child: Child, phase: str, done: int, total: int) -> None:
        text = f"{child}: {phase}"
        if child not in self._tasks:
            self._tasks[child] = self._bars.add_task(text)
        self._bars.update(self._tasks[child], description=text, completed=done, total=total or None)


def start_display() -> StartDisplay:
    """The display that fits standard error."""
    return TerminalDisplay() if sys.stderr.isatty() else PlainDisplay(sys.stderr)
