"""How every child of an engine logs: to standard error, each line with its time, its level, and who says it."""

import logging
import time


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)  # of all hosts alike; a wall clock, since people compare it with their own
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def set_up_logging(process: str) -> None:
    """For the whole process, libraries and Python's own warnings included. `process`: as the launcher calls it."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)s {process}, %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
