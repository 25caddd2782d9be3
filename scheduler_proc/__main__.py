"""Entry point of the scheduler process: `python -m scheduler_proc FD`, started by the launcher."""

import sys

from protocol.errors import EngineError
from protocol.messages import Failed
from protocol.supervision import enter_child
from scheduler_proc.loop import SchedulerLoop


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "scheduler_proc", die_with_launcher=True)
    try:
        loop = SchedulerLoop(spec, launcher)
        try:
            loop.run()
        finally:
            loop.close()
    except EngineError as error:
        launcher.send(Failed(error.exit_code, str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
