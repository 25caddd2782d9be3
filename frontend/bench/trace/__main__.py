"""`engine-trace`: writes the recent steps of a running engine as a Chrome trace, and says how busy its device was."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from frontend.bench.trace.chrome import chrome_trace
from frontend.bench.trace.stages import idle_share, stage_times
from frontend.client import Client
from protocol.errors import EngineError, ExitCode


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="engine-trace", description=__doc__)
    parser.add_argument("output", nargs="?", default="trace.json", help="for https://ui.perfetto.dev or chrome://tracing")
    parser.add_argument("--ipc", metavar="PATH", help="the socket of the engine; default: as the Python client finds it")
    parser.add_argument("--last", type=_count, default=2000, metavar="STEPS", help="how many steps at the most (2000)")
    options = parser.parse_args(arguments)
    try:
        with Client(options.ipc, reconnect=0) as client:
            steps = client.trace()
    except EngineError as error:
        print(f"engine-trace: {error}", file=sys.stderr)
        return error.exit_code
    steps = steps.last(options.last)
    if not len(steps):
        print("engine-trace: the engine has run no step yet", file=sys.stderr)
        return 1
    try:
        Path(options.output).write_bytes(chrome_trace(steps))
    except OSError as error:
        print(f"engine-trace: {options.output}: {error.strerror}; name another file to write", file=sys.stderr)
        return ExitCode.BAD_CONFIG
    stages = stage_times(steps)
    print(f"{options.output}: {len(steps)} steps, device idle {100 * idle_share(steps):.1f} % between the first and the last")
    print(f"mean µs a step: scheduler {stages.scheduler:.0f}, pipe {stages.pipe:.0f}, worker {stages.worker:.0f}")
    return 0


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("a whole number from 1 on is wanted")
    return value


if __name__ == "__main__":
    sys.exit(main())
