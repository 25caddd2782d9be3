"""`engine-bench`: measures an engine from outside, as its clients see it."""

import argparse
import sys
from collections.abc import Sequence

from frontend.bench import attack, chaos, control_plane, device, overlap, restart, serve
from frontend.bench.http_client import HttpError
from protocol.errors import EngineError, ExitCode

_COMMANDS = {
    "serve": serve,
    "device": device,
    "overlap": overlap,
    "control-plane": control_plane,
    "attack": attack,
    "chaos": chaos,
    "restart": restart,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns 0 when every request was answered in full."""
    parser = argparse.ArgumentParser(prog="engine-bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY))
    options = parser.parse_args(arguments)
    try:
        code: int = _COMMANDS[options.command].run(options)
        return code
    except (EngineError, HttpError) as error:
        print(f"engine-bench: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, EngineError) else ExitCode.CRASHED
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells have it


if __name__ == "__main__":
    sys.exit(main())
