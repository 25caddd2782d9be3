"""`engine-launch`: reads the flags, starts the engine, stays until it ends."""

import importlib.util
import sys
from pathlib import Path

from frontend.launcher.engine import Engine
from frontend.launcher.options import read_options
from protocol.errors import ConfigError, EngineError


def main() -> int:
    """Entry point. Returns the exit code: 0 after a requested stop, `protocol.errors.ExitCode` otherwise."""
    try:
        _check_packages()
        config, remarks = read_options(sys.argv[1:])
        engine = Engine(config)
        for remark in remarks:
            print(f"engine-launch: {remark}", file=sys.stderr)
        return engine.run()
    except EngineError as error:
        print(f"engine-launch: {error}", file=sys.stderr)
        return error.exit_code


def _check_packages() -> None:
    """Four packages of one installation: their names are common enough for another distribution to bring one of them."""
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
