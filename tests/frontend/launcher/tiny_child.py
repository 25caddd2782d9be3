"""A child of the launcher that does as little as each role must: run as a program by test_engine.py.

tiny_child.py BEHAVIOUR FD, where BEHAVIOUR is one of: good, no-restarts, cannot-boot, crash-once, mute-on-drain.
"""

import os
import select
import signal
import sys
import time
from pathlib import Path

from protocol.messages import Drain, Failed, Progress, Pulse, Ready, Stop, WorkerLost
from protocol.supervision import enter_child


def main() -> int:
    behaviour, fd = sys.argv[1], int(sys.argv[2])
    spec, link = enter_child(fd, "tiny", die_with_launcher=False)
    link.send(Progress("waking up", 0, 1))
    if behaviour == "cannot-boot":
        link.send(Failed(65, "model.gguf: cut short"))
        return 65
    Path(spec.run_dir, f"{spec.role}{spec.index}.epoch{spec.epoch}").write_text(str(os.getpid()))
    if behaviour == "crash-once" and spec.role == "worker" and spec.epoch == 0:
        wait_for(Path(spec.run_dir, "ready"))
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.role == "frontend":
        others = ("scheduler0", *(f"worker{index}" for index in range(spec.config.workers)))
        wait_for(*(Path(spec.run_dir, f"{other}.epoch0") for other in others))
        facts: dict[str, str | int] = {"address": "http://127.0.0.1:1", "socket": spec.config.ipc_path, "model": "m", "workers": 1}
        link.send(
            Ready(
                facts | {"device": "none", "queue_depth": 2, "kv_cache_tokens": 1234, "kv_block_size": 64, "run_dir": spec.run_dir}
            )
        )
        Path(spec.run_dir, "ready").touch()
    else:
        link.send(Ready())
    while True:
        select.select([link], [], [], spec.config.pulse_interval)
        link.send(Pulse("idle", 0))
        message = link.receive()
        if isinstance(message, WorkerLost):
            print(f"tiny scheduler: lost worker {message.worker} epoch {message.epoch}", file=sys.stderr, flush=True)
        if link.closed or isinstance(message, Stop) or (isinstance(message, Drain) and behaviour != "mute-on-drain"):
            return 0


def wait_for(*paths: Path) -> None:
    """Returns when all exist; the launcher's death ends the process before."""
    while not all(path.exists() for path in paths):
        time.sleep(0.005)
        if os.getppid() == 1:
            sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
