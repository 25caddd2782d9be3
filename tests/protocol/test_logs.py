"""A line of a child's log names time, level and source, whoever writes it."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys

import pytest

from protocol.logs import LineSink

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


def test_lines_for_programs_hold_everything_in_one_object() -> None:
    program = PROGRAM.replace('set_up_logging("worker 3")', 'set_up_logging("worker 3", "json", "info")')
    program += """
logging.getLogger("frontend.access").info("one\\ntwo", extra={"fields": {"status": 200}, "request_id": "mine"})
logging.getLogger("frontend.access").debug("not worth a line")
logging.getLogger("frontend").info("%d", "no number")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["level"], line["source"]) for line in lines] == [
        ("warning", "some.library"),
        ("warning", "py.warnings"),
        ("error", "tpu_worker.loop"),
        ("info", "frontend.access"),
        ("warning", "protocol.logs"),
    ]
    assert lines[2]["trace"].endswith("ZeroDivisionError: division by zero")
    assert (lines[3]["message"], lines[3]["status"], lines[3]["request_id"]) == ("one\ntwo", 200, "mine")
    assert lines[4]["message"] == "a line that cannot be written, of frontend"
    assert all(line["process"] == "worker 3" and line["time"].endswith("Z") for line in lines)


def everything(fd: int) -> bytes:
    taken = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            taken += os.read(fd, 1 << 16)
    return taken


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_nobody_waits_for_a_log_that_nobody_reads(kind: str) -> None:
    if kind == "pipe":
        ours, theirs = os.pipe()
    else:
        ends = socket.socketpair()
        ours, theirs = (end.detach() for end in ends)
    try:
        sink = LineSink(theirs)
        for number in range(20_000):  # more than any buffer holds
            sink.write(f"{number:060}")
        os.set_blocking(ours, False)
        taken = everything(ours)
        sink.write("last")
        taken += everything(ours)
        sink.close()
        assert os.get_blocking(theirs), "others who share the descriptor are left alone"
    finally:
        os.close(ours)
        os.close(theirs)
    *numbers, remark, last = taken.decode().splitlines()
    assert [int(line) for line in numbers] == list(range(len(numbers))), "what is taken is whole, and in order"
    assert remark == f"{20_000 - len(numbers)} lines were left out: nobody read them" and last == "last"


def test_a_log_that_is_gone_is_nobodys_trouble() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    sink = LineSink(theirs)
    for _ in range(3):
        sink.write("nobody hears")
    sink.close()
    os.close(theirs)
    LineSink(theirs).write("closed")


def test_a_long_line_is_taken_whole_or_not_at_all() -> None:
    """Several processes write to one pipe: what is behind the part of a line would stand within it."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    try:
        sinks = [LineSink(theirs), LineSink(theirs)]
        for number in range(40):
            for sink in sinks:
                sink.write(f"{number:05}" * 1000)
                sink.write("short")
        lines = os.read(ours, 1 << 20).decode().split("\n")
        assert lines.pop() == ""
        long = [line for line in lines if not line.startswith(("short", "1", "2", "3")) or len(line) > 100]
        assert len(long) > 4
        assert all(line in ("short", line[:5] * 1000) or line.endswith("nobody read them") for line in lines)
        for sink in sinks:
            sink.close()
    finally:
        os.close(ours)
        os.close(theirs)
