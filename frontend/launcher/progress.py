"""Shows how far the start has come: bars on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from frontend.launcher.events import Child
from frontend.launcher.output import Voice
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
    """One line when a child enters a phase for the first time, or is ready: fit for logs. Two phases may go on at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen: set[tuple[Child, str]] = set()

    def update(self, child: Child, progress: Progress) -> None:
        """The child came this far."""
        if (child, progress.phase) not in self._seen:
            self._seen.add((child, progress.phase))
            of = f" ({progress.total})" if progress.total > 1 else ""
            self._say(f"{child}: {progress.phase}{of}")

    def finish(self, child: Child) -> None:
        """The child is ready."""
        self._say(f"{child}: ready")

    def close(self) -> None:
        """Nothing more is shown."""


class TerminalDisplay:
    """One bar per child and phase, gone when the engine is ready."""

    def __init__(self) -> None:
        from rich.console import Console  # a tenth of a second that only a terminal needs
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=Console(stderr=True), transient=True, refresh_per_second=8)
        self._tasks: dict[tuple[Child, str], TaskID] = {}
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
        if (child, phase) not in self._tasks:
            self._tasks[child, phase] = self._bars.add_task(f"{child}: {phase}")
        self._bars.update(self._tasks[child, phase], completed=done, total=total or None)


def start_display(voice: Voice, *, plain: bool = False) -> StartDisplay:
    """The display that fits standard error. `plain`: lines, also on a terminal."""
    return TerminalDisplay() if sys.stderr.isatty() and not plain else PlainDisplay(voice.progress)
