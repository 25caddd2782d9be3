"""How a chat looks: on a terminal with colours and a line of figures, elsewhere the answers alone."""

import sys

from rich.console import Console

from frontend.terminal.plain import printable

_PROMPT, _CONTINUED = "> ", ". "


class Screen:
    """Reads the user's lines, writes answers. Answers go to standard output, everything else to standard error."""

    def __init__(self) -> None:
        self.interactive = sys.stdin.isatty()
        self._plain = not sys.stdout.isatty()
        self._notes = Console(stderr=True, highlight=False, markup=False, emoji=False)
        if self.interactive:
            import readline  # noqa: F401 - gives `input` its keys

    def read(self) -> str | None:
        """What the user types next, in one or more lines; None when there is nothing more. Ctrl-C raises KeyboardInterrupt."""
        if not self.interactive:
            return sys.stdin.read().strip() or None  # all of it is one question
        lines: list[str] = []
        try:
            while True:
                line = self._line(_CONTINUED if lines else _PROMPT)
                if not line.endswith("\\"):
                    return "\n".join([*lines, line]).strip()
                lines.append(line[:-1])
        except EOFError:
            self._notes.print()
            return None

    def note(self, text: str) -> None:
        """Says something beside the conversation. Nobody reads that where questions come from a file."""
        if self.interactive:
            self._notes.print(printable(text), style="dim")

    def error(self, text: str) -> None:
        """Says what went wrong."""
        self._notes.print(f"engine-chat: {printable(text)}", style="red", soft_wrap=True)

    def write(self, text: str) -> None:
        """A piece of an answer, at once."""
        sys.stdout.write(text if self._plain else printable(text))
        sys.stdout.flush()

    def _line(self, prompt: str) -> str:
        if not self._plain:
            return input(prompt)
        sys.stderr.write(prompt)  # `input` would write it among the answers
        sys.stderr.flush()
        return input()
