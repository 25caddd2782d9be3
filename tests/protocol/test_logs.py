"""A line of a child's log names time, level and source, whoever writes it."""

import re
import subprocess
import sys

PROGRAM = """
import logging, warnings
from protocol.logs import set_up_logging
set_up_logging("worker 3")
logging.getLogger("some.library").warning("100 % of a disk")
logging.getLogger("some.library").info("not worth a line")
warnings.warn("old")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("tpu_worker.loop").exception("a fault")
"""


def test_lines_of_libraries_warnings_and_faults() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    start = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ "
    lines = [line for line in done.stderr.splitlines() if line.startswith("20")]
    assert done.stdout == ""
    assert len(lines) == 3
    assert re.fullmatch(start + "WARNING worker 3, some.library: 100 % of a disk", lines[0])
    assert re.fullmatch(start + "WARNING worker 3, py.warnings: .*UserWarning: old", lines[1])
    assert re.fullmatch(start + "ERROR worker 3, tpu_worker.loop: a fault", lines[2])
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
