"""Starts an Engine of tiny children: tiny_launch.py BEHAVIOUR IPC_PATH WORKERS."""

import sys
from pathlib import Path

from frontend.launcher.engine import Engine
from frontend.launcher.signals import Signals
from protocol.config import EngineConfig


def main() -> int:
    behaviour, ipc_path, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    program: tuple[str, ...] = (sys.executable, str(Path(__file__).with_name("tiny_child.py")), behaviour)
    config = EngineConfig(
        model_path="/none",
        model_format="gguf",
        served_model_names=("m",),
        device="sim",
        workers=workers,
        ipc_path=ipc_path,
        drain_timeout=0.2,
        port=0,
        max_restarts=0 if behaviour == "no-restarts" else 10,
    )
    good = (*program[:2], "good")
    frontend = good if behaviour == "cannot-boot" else program
    if behaviour == "no-program":
        program = (str(Path(__file__).with_name("no-such-program")),)
    return Engine(config, Signals(), programs={"frontend": frontend, "scheduler": good, "worker": program, "grammar": good}).run()


if __name__ == "__main__":
    sys.exit(main())
