"""How far the compilation has come: a bar on a terminal, a line for each program elsewhere. On standard error."""

import sys
from typing import Self

from protocol.aot_report import ProgramReport


class CompileProgress:
    """Shown while the block runs."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._is_terminal = sys.stderr.isatty()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, disable=not self._is_terminal, transient=True, refresh_per_second=4)
        self._task = self._bar.add_task("compiling", total=None)
        self._done = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def report(self, program: ProgramReport, total: int) -> None:
        """One program more, of so many."""
        self._done += 1
        self._bar.update(self._task, completed=self._done, total=total, description=program.name)
        if not self._is_terminal:
            outcome = f"does not compile: {program.error}" if program.error else f"{program.compile_seconds:.1f} s"
            print(f"{self._done} of {total}: {program.name}: {outcome}", file=sys.stderr)
