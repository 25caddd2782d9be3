"""`engine-launch`: reads the flags, starts the engine, stays until it ends."""

import os
import signal
import sys

from frontend.launcher.output import Voice, finish, open_standard_descriptors, say, write_line
from frontend.launcher.signals import Signals
from protocol.errors import ConfigError, EngineError

CHECK = "--check"


def main() -> int:
    """Entry point. Returns the exit code: 0 after a requested stop, `protocol.errors.ExitCode` otherwise."""
    open_standard_descriptors()
    if CHECK in sys.argv[1:]:
        return _check()
    signals = Signals()
    try:
        _check_packages()
        # Imported here: a stop may come while they are, and the signals are caught by now.
        from frontend.launcher.activation import inherited_listener
        from frontend.launcher.download import Downloader, StopAsked
        from frontend.launcher.engine import Engine
        from frontend.launcher.options import read_options, read_reloadable

        listener = inherited_listener(os.environ)
        try:
            download = Downloader(signals, os.environ)
            config, remarks = read_options(sys.argv[1:], own_port=listener is None, download=download)
        except StopAsked:
            return 0
        engine = Engine(config, signals, reread=lambda: read_reloadable(sys.argv[1:]), listener=listener)
        voice = Voice(config.log_format)
        for remark in remarks:
            voice.say(remark)
        return engine.run()
    except EngineError as error:
        say(str(error))
        return error.exit_code
    finally:
        signals.end()
        finish()


def _check() -> int:
    """`--check`: nothing is started that stays, so signals end it as they end any program."""
    try:
        _check_packages()
        from frontend.launcher.activation import inherited_listener
        from frontend.launcher.preflight.gather import check
        from frontend.launcher.preflight.report import as_json, as_text

        listener = inherited_listener(os.environ)
        report, style = check(sys.argv[1:], os.environ, own_port=listener is None)
        write_line(sys.stdout, as_json(report) if style == "json" else as_text(report))
        return report.exit_code
    except EngineError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        finish()


def _check_packages() -> None:
    """Four packages of one installation: their names are common enough for another distribution to bring one of them."""
    import importlib.util
    from pathlib import Path

    home = Path(__file__).resolve().parents[2]
    for name in ("protocol", "scheduler_proc", "tpu_worker"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parents[1] != home:
            raise ConfigError(
                f"the package `{name}` is {origin}, not twodeep's in {home}: install twodeep in an environment of its own"
            )


if __name__ == "__main__":
    sys.exit(main())
