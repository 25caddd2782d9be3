"""`engine-aot`: compiles an engine's programs for chips that need not be here, and reports whether they fit and how fast."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from frontend.aot.compilers import COMMAND, compile_all
from frontend.aot.options import Options, read_options
from frontend.aot.problems import find_problems
from frontend.aot.progress import CompileProgress
from frontend.aot.report import make_report
from frontend.launcher.download import Downloader, StopAsked
from frontend.launcher.output import finish, open_standard_descriptors
from frontend.launcher.signals import STOP_SIGNALS, Signals
from protocol.aot_messages import Drawn
from protocol.aot_report import AotReport, ProgramReport
from protocol.errors import ConfigError, EngineError, ExitCode


class _Stopped(Exception):
    """A signal asks to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number  # as shells have it


def main(command: Sequence[str] = COMMAND) -> int:
    """Entry point; command: what starts a compiling process. Returns 0 where everything compiles, fits and copies nothing."""
    open_standard_descriptors()
    is_detached = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # as nohup does it
    stops = STOP_SIGNALS if is_detached else (*STOP_SIGNALS, signal.SIGHUP)
    try:
        options, remarks = _read_options()
        for remark in remarks:
            _say(remark)
        drawn, programs = asyncio.run(_compile(options, command, stops))
        report = make_report(options.model, options.config, options.topology, options.context, drawn, programs)
        return _tell(options, drawn, report)
    except StopAsked:
        return 128 + signal.SIGINT
    except _Stopped as stopped:
        return stopped.exit_code
    except EngineError as error:
        _say(str(error))
        return error.exit_code
    except OSError as error:
        _say(f"standard output takes nothing: {error.strerror}")
        return ExitCode.CRASHED
    finally:
        finish()


def _read_options() -> tuple[Options, list[str]]:
    signals = Signals()
    try:
        return read_options(sys.argv[1:], os.environ, Downloader(signals, os.environ))
    finally:
        signals.end()


async def _compile(options: Options, command: Sequence[str], stops: Sequence[int]) -> tuple[Drawn, list[ProgramReport]]:
    """Raises EngineError, or _Stopped, and no process is left."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    came: list[int] = []

    def stop(number: int) -> None:
        came.append(number)
        task.cancel()

    for number in stops:
        loop.add_signal_handler(number, stop, number)
    try:
        with CompileProgress() as progress:
            return await compile_all(options, progress.report, command)
    except asyncio.CancelledError:
        raise _Stopped(came[0]) from None


def _tell(options: Options, drawn: Drawn, report: AotReport) -> int:
    """Writes what is to be kept before what is to be read: a reader may be gone by now."""
    problems = find_problems(report, drawn, options.config)
    if options.json:
        _write(options.json, msgspec.json.format(msgspec.json.encode(report)))
    if options.plot:
        from frontend.aot.plot import write_plot  # brings matplotlib

        write_plot(report, options.plot)
    from frontend.aot.table import print_report  # brings rich

    print_report(report, drawn, options.config, problems)
    return ExitCode.DOES_NOT_FIT if problems else ExitCode.OK


def _write(path: str, data: bytes) -> None:
    """All or nothing."""
    draft = Path(f"{path}.draft")
    try:
        draft.write_bytes(data + b"\n")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise ConfigError(f"--json {path}: {error.strerror}") from error


def _say(text: str) -> None:
    print(f"engine-aot: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
