"""Entry point of the grammar process: `python -m scheduler_proc.grammar FD`, started by the launcher."""

import sys

from protocol.supervision import enter_child, leave, run_child
from scheduler_proc.grammar.loop import GrammarLoop


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "grammar", die_with_launcher=True)

    def serve() -> None:
        loop = GrammarLoop(spec, launcher)
        try:
            loop.run()
        finally:
            loop.close()

    return run_child(launcher, serve)


if __name__ == "__main__":
    leave(main())
