"""`engine-aot`: compiles an engine's programs for chips that need not be here, and reports whether they fit and how fast."""

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import msgspec

from frontend.aot.compilers import compile_all
from frontend.aot.figures import make_report, problems
from frontend.aot.options import Options, read_options
from frontend.aot.plot import write_plot
from frontend.aot.progress import CompileProgress
from frontend.aot.table import print_report
from protocol.aot_messages import Drawn
from protocol.aot_report import ProgramReport
from protocol.errors import ConfigError, EngineError, ExitCode

_STOPPED = 130  # as shells have it


def main() -> int:
    """Entry point. Returns the exit code: 0 only where everything compiles, fits and copies nothing."""
    try:
        options = read_options(sys.argv[1:])
        drawn, programs = asyncio.run(_compile(options))
        report = make_report(options.model, options.config, options.topology, options.context, drawn, programs)
        found = problems(report, drawn, options.topology)
        print_report(report, drawn, found)
        if options.json:
            _write(options.json, msgspec.json.format(msgspec.json.encode(report)))
        if options.plot:
            write_plot(report, options.plot)
    except (asyncio.CancelledError, KeyboardInterrupt):
        return _STOPPED
    except EngineError as error:
        print(f"engine-aot: {error}", file=sys.stderr)
        return error.exit_code
    return ExitCode.DOES_NOT_FIT if found else ExitCode.OK


async def _compile(options: Options) -> tuple[Drawn, list[ProgramReport]]:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with CompileProgress() as progress:
        return await compile_all(options, progress.report)


def _write(path: str, data: bytes) -> None:
    try:
        draft = Path(f"{path}.draft")
        draft.write_bytes(data + b"\n")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigError(f"--json {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
