"""Entry point of the frontend process: `python -m frontend.server FD`, started by the launcher."""

import os
import sys

import uvloop

from frontend.server.access import name_requests
from frontend.server.http.limits import raise_descriptor_limit
from frontend.server.process import FrontendProcess
from protocol.supervision import enter_child, leave, run_child

_NICENESS = 5  # where cores are few: a late write delays one client, a late step delays all of them


def main() -> int:
    """Serves until told to end; returns the exit code."""
    spec, launcher = enter_child(int(sys.argv[1]), "frontend", die_with_launcher=False)
    name_requests()
    os.nice(_NICENESS)
    raise_descriptor_limit()
    loop = uvloop.new_event_loop()  # not closed at the end: that would wait for texts that threads still tokenize
    return run_child(launcher, lambda: loop.run_until_complete(FrontendProcess(spec, launcher).run()))


if __name__ == "__main__":
    leave(main())
