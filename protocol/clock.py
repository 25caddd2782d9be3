"""The one clock. Every timestamp in every process is read here."""

import time


def now_ns() -> int:
    """Nanoseconds on CLOCK_MONOTONIC: comparable between the processes of one host, unmoved by wall-clock changes."""
    return time.monotonic_ns()


def now() -> float:
    """Seconds on the same clock as `now_ns`."""
    return time.monotonic_ns() * 1e-9
