"""Entry point of the frontend process: `python -m frontend FD`, started by the launcher."""

import os
import sys

import uvloop

from frontend.process import FrontendProcess
from protocol.errors import EngineError
from protocol.messages import Failed
from protocol.supervision import enter_child

_NICENESS = 5  # where cores are few: a late write delays one client, a late step delays all of them


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "frontend", die_with_launcher=False)
    os.nice(_NICENESS)
    try:
        uvloop.run(FrontendProcess(spec, launcher).run())
    except EngineError as error:
        launcher.send(Failed(error.exit_code, str(error)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
